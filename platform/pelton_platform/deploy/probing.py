"""Probes at work: the program of an instance is asked whether it is ready, and whether it still lives."""

from __future__ import annotations

import http.client
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pelton.core.spec import ProbeSpec
from pelton_platform import process

_WORDS: Final = 200

Run = Callable[[Sequence[str], float], str]
"""Runs a command for so many seconds at most; returns what was wrong with it, "" for nothing."""


def probe_of(data: Mapping[str, Any] | None) -> ProbeSpec | None:
    """Read a probe out of an instance file."""
    return None if data is None else ProbeSpec(**{**data, "command": tuple(data["command"])})


def ask(probe: ProbeSpec, port: int, run: Run) -> str:
    """Ask once.

    Args:
        probe: What to ask.
        port: Port of the instance, for probes that name none.
        run: Runs the command of an exec probe.

    Returns:
        Why the program is not well, "" when it is.
    """
    seconds = probe.timeout_ms / 1000
    place = probe.port or port
    if probe.kind == "exec":
        return run(probe.command, seconds)
    try:
        if probe.kind == "tcp":
            with socket.create_connection((process.LOOPBACK, place), timeout=seconds):
                return ""
        connection = http.client.HTTPConnection(process.LOOPBACK, place, timeout=seconds)
        try:
            connection.request(
                "GET", probe.path, headers={"User-Agent": "pelton-probe", "Connection": "close"}
            )
            status = connection.getresponse().status
        finally:
            connection.close()
        return "" if 200 <= status < 400 else f"GET {probe.path} at port {place} answers {status}"
    except TimeoutError:
        return f"port {place} does not answer within {seconds:g} s"
    except (OSError, http.client.HTTPException) as error:
        return f"port {place}: {getattr(error, 'strerror', None) or error or type(error).__name__}"


def run_beside(command: Sequence[str], seconds: float, *, env: Mapping[str, str], folder: Path) -> str:
    """Run the command of a probe where its program runs; see `Run`."""
    try:
        child = process.spawn(
            command,
            env=env,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            die_with_parent=True,
        )
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    try:
        output, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate_child(child, 0.0)
        child.communicate()
        return f"{command[0]} takes longer than {seconds:g} s"
    finally:
        process.terminate_child(child, 0.0)
    if child.returncode == 0:
        return ""
    words = output.decode(errors="replace").strip().splitlines()
    return f"{command[0]} ends with exit code {child.returncode}{': ' + words[-1][-_WORDS:] if words else ''}"


class Health:
    """How one program is, by its probes.

    Args:
        readiness: Says when it is ready; None: at once.
        liveness: Says when it is to be ended, from when it was first ready on; None for never.
        port: Port of the instance.
        run: Runs commands of exec probes.
        on_dead: Told why when it is to be ended.

    Attributes:
        ready: Whether it is ready.
        reason: Why it is not.
        changed: Set when one of these has changed.
    """

    def __init__(
        self,
        readiness: ProbeSpec | None,
        liveness: ProbeSpec | None,
        port: int,
        run: Run,
        on_dead: Callable[[str], None],
    ) -> None:
        self._readiness = readiness
        self._liveness = liveness
        self._port = port
        self._run = run
        self._on_dead = on_dead
        self._was_ready = threading.Event()
        self.ready = readiness is None
        self.reason = ""
        self.changed = threading.Event()
        if self.ready:
            self._was_ready.set()

    def start(self, over: threading.Event) -> None:
        """Begin to ask, on threads of its own, until the program is over."""
        for name, probe, work in (
            ("readiness", self._readiness, self._watch_readiness),
            ("liveness", self._liveness, self._watch_liveness),
        ):
            if probe is not None:
                threading.Thread(target=work, args=(probe, over), name=name, daemon=True).start()

    def _watch_readiness(self, probe: ProbeSpec, over: threading.Event) -> None:
        failures = 0
        while True:
            wrong = ask(probe, self._port, self._run)
            failures = failures + 1 if wrong else 0
            # Before it was ever ready each failure is one of a program that starts.
            if not wrong or failures >= probe.failures or not self._was_ready.is_set():
                self._tell(ready=not wrong, reason=f"it is not ready: {wrong}" if wrong else "")
            if over.wait(probe.period_ms / 1000):
                return

    def _watch_liveness(self, probe: ProbeSpec, over: threading.Event) -> None:
        while not self._was_ready.wait(0.1):
            if over.is_set():
                return
        failures = 0
        while not over.wait(probe.period_ms / 1000):
            wrong = ask(probe, self._port, self._run)
            failures = failures + 1 if wrong else 0
            if failures >= probe.failures and not over.is_set():
                self._on_dead(f"its liveness probe failed {failures} times: {wrong}")
                return

    def _tell(self, *, ready: bool, reason: str) -> None:
        if (ready, reason) == (self.ready, self.reason):
            return
        self.ready, self.reason = ready, reason
        if ready:
            self._was_ready.set()
        self.changed.set()

"""One instance of a plain program: `python -m pelton_platform.deploy.program --instance FILE`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pelton_platform import process
from pelton_platform.confinement import Confinement, Limits
from pelton_platform.deploy import image_root
from pelton_platform.deploy.output import BoundedFile, LineQueue, pump
from pelton_platform.deploy.probing import Health, probe_of, run_beside
from pelton_platform.redaction import Redactor

STATUS_INTERVAL_S = 2.0
EXIT_UNWELL = 4
"""Exit code of an instance whose program was ended because it was not well."""

_FLUSH_S = 5.0
_UNWELL_S = 5.0


class Program:
    """Runs the program of an instance file, and speaks for it in the registry and the log topic."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._lines = LineQueue()
        self._kept = BoundedFile(Path(settings["log"]))
        self._secrets: dict[str, str] = json.load(sys.stdin) if settings.get("secrets") else {}
        self._redact = Redactor(self._secrets)
        self._told_to_end = threading.Event()
        self._over = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._health: Health | None = None
        self._failed = ""

    def run(self) -> int:
        """Run the program to its end; returns its exit code, 0 when it ended because it was told to."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._told_to_end.set())
        settings = self._settings
        command, folder = _placed(settings)
        env = {**settings["env"], **self._secrets}
        confinement = Confinement(
            Limits(settings["memory"], settings["cpu"]),
            settings["instance"],
            lambda: self._fail("it took more memory than it may", 0.0),
        )
        try:
            self._child = child = process.spawn(
                command,
                env=env,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                die_with_parent=True,
            )
            confinement.hold(child.pid)
        except OSError as error:
            print(f"{' '.join(command)}: {error.strerror}", flush=True)
            return 127
        self._health = Health(
            probe_of(settings["readiness"]),
            probe_of(settings["liveness"]),
            settings["port"],
            lambda words, seconds: self._redact(run_beside(words, seconds, env=env, folder=folder)),
            self._fail,
        )
        readers = [self._read(child.stdout, "stdout"), self._read(child.stderr, "stderr")]
        # The connection to Kafka is made while the program runs already.
        speaker = threading.Thread(target=self._speak, args=(child.pid,), name="speaker", daemon=True)
        speaker.start()
        threading.Thread(target=self._await_end, args=(child,), name="waiter", daemon=True).start()
        ending = threading.Thread(target=self._end_when_told, args=(child,), name="ender", daemon=True)
        ending.start()
        while not self._over.wait(0.1):
            pass
        for reader in readers:
            # Programs that the program left behind may hold its output open.
            reader.join(timeout=1.0)
        self._lines.close()
        speaker.join(timeout=2 * _FLUSH_S)
        exceeded, peak = confinement.exceeded(), confinement.peak()
        confinement.close()
        if exceeded and child.wait() == -signal.SIGKILL:
            limit = self._settings["memory"] / 2**20
            self._failed = (
                f"it took more than its {limit:.0f} MiB of memory, {peak / 2**20:.0f} MiB at its peak"
            )
        if self._failed:
            # The deployer tells the last line.
            self._kept.write(f"{self._failed}\n".encode())
            return EXIT_UNWELL
        return 0 if self._told_to_end.is_set() else _exit_code(child.wait())

    def _fail(self, reason: str, grace_s: float = _UNWELL_S) -> None:
        """End the program, which is not well; the instance ends with it, and is started again."""
        self._failed = self._failed or reason
        if self._child is not None and self._child.poll() is None:
            process.terminate_child(self._child, min(grace_s, float(self._settings["drain_s"])))

    def _read(self, stream: IO[bytes] | None, source: str) -> threading.Thread:
        if stream is None:
            raise RuntimeError("a program is started with pipes")
        thread = threading.Thread(
            target=pump,
            args=(stream, source, self._kept.write, self._lines, self._redact.of_bytes),
            name=source,
            daemon=True,
        )
        thread.start()
        return thread

    def _await_end(self, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        self._over.set()
        if self._health is not None:
            self._health.changed.set()

    def _end_when_told(self, child: subprocess.Popen[bytes]) -> None:
        self._told_to_end.wait()
        if child.poll() is None:
            process.terminate_child(child, float(self._settings["drain_s"]))

    def _speak(self, pid: int) -> None:
        """Connect, then write statuses and lines until the program is over and all is said."""
        from pelton_platform.deploy.voice import Voice

        voice = Voice(self._settings, pid, socket.gethostname())
        if self._health is not None:
            self._health.start(self._over)
        beating = threading.Thread(target=self._beat, args=(voice,), name="heartbeat", daemon=True)
        beating.start()
        while lines := self._lines.take():
            voice.say(lines)
        self._over.wait()
        beating.join(timeout=_FLUSH_S)
        voice.leave(_FLUSH_S)

    def _beat(self, voice: Any) -> None:
        health = self._health
        while not self._over.is_set() and health is not None:
            voice.beat(draining=self._told_to_end.is_set(), ready=health.ready, reason=health.reason)
            health.changed.wait(STATUS_INTERVAL_S)
            health.changed.clear()


def _placed(settings: Mapping[str, Any]) -> tuple[list[str], Path]:
    """Return command and working folder of the program; shows it the files of its image where they belong.

    Where the machine gives no mount namespace, the command is made to name them where they really are.
    """
    command, root, workdir = list(settings["entrypoint"]), settings.get("root"), settings.get("workdir")
    if not root:
        return command, Path(settings["folder"])
    try:
        image_root.enter(root)
    except OSError as error:
        print(f"files of the image are in {root}: {error}", flush=True)
        command = image_root.rewritten(command, root)
        workdir = root + workdir if workdir else ""
    return command, Path(workdir or settings["folder"])


def _exit_code(code: int) -> int:
    """The code by which shells report a signal, since a process cannot exit with a negative one."""
    return 128 - code if code < 0 else code


def main(arguments: list[str]) -> int:
    """Read the instance file and run its program."""
    if len(arguments) != 2 or arguments[0] != "--instance":
        raise SystemExit("usage: python -m pelton_platform.deploy.program --instance FILE")
    return Program(json.loads(Path(arguments[1]).read_text())).run()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Reading threads may still hang on output that somebody else holds open: nothing waits for them.
    os._exit(code)

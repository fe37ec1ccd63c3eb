"""A supervisor in the background: started, heard until it is ready, and stopped from another process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import Any

from pelton_platform import process
from pelton_platform.deploy.home import Home
from pelton_platform.supervisor import state as states
from pelton_platform.supervisor.settings import SupervisorSettings
from pelton_platform.supervisor.state import AlreadyRunning, PlatformState
from pelton_platform.supervisor.supervise import SupervisorError, Tell

_STOP_MARGIN_S = 30.0


def start_detached(settings: SupervisorSettings, tell: Tell) -> PlatformState:
    """Start a supervisor that goes on running, and return when it is ready.

    Raises:
        AlreadyRunning: A platform runs from this home.
        PeltonError: It cannot be started; the message says why.
    """
    home = Home(settings.home)
    home.prepare()
    log = home.logs / "supervisor.log"
    with log.open("ab") as errors:
        child = process.spawn(
            [sys.executable, "-m", "pelton_platform.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    process.release(child)
    if child.stdin is None or child.stdout is None:
        raise RuntimeError("a supervisor is started with pipes")
    with child.stdin, child.stdout:
        child.stdin.write(json.dumps(settings.to_json()).encode())
        child.stdin.close()
        for line in child.stdout:
            said: dict[str, Any] = json.loads(line)
            if "ready" in said:
                return PlatformState.from_json(said["ready"])
            if "running" in said:
                child.wait()
                raise AlreadyRunning(PlatformState.from_json(said["running"]))
            if "error" in said:
                child.wait()
                raise SupervisorError(said["error"])
            tell(said["tell"])
    code = child.wait()
    raise SupervisorError(f"the supervisor ended with code {code} before it was ready; see {log}")


def stop(home: Home, tell: Tell, *, drain_s: float) -> bool:
    """Stop the platform of a home folder and everything it left behind.

    Args:
        home: The home folder.
        tell: Gets lines for people.
        drain_s: How long instances may take to finish.

    Returns:
        False when there was nothing to stop.
    """
    state = states.running(home)
    if state is not None:
        began = time.monotonic()
        process.send_signal(state.supervisor, signal.SIGTERM)
        if not process.wait_gone(state.supervisor, drain_s + _STOP_MARGIN_S):
            tell(f"the supervisor (pid {state.supervisor.pid}) does not end; killing it")
            process.terminate(state.supervisor, 0.0)
        else:
            tell(f"stopped after {time.monotonic() - began:.1f} s")
    orphans = states.find_orphans(home)
    for orphan in orphans:
        tell(f"ending what was left behind: pid {orphan.identity.pid}, {orphan.what}")
    states.end_orphans(orphans, 5.0)
    if state is not None or orphans or home.supervisor_file.exists():
        states.forget_state(home)
        return True
    return False

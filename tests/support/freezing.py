"""Freezing processes: SIGSTOP, and the wait until every thread of the process stands still."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

_ENDED = "ZX"
_STOPPED = "tT"


def freeze(pid: int, timeout_s: float = 10.0) -> None:
    """Stop a process; what it does before it stands still is seen by who looks after this.

    The signal reaches one thread after the other, and a thread that runs on another processor goes on until
    it has. A process that ends meanwhile stands still too.
    """
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        psutil.Process(pid).send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + timeout_s
        while not _stands_still(pid):
            assert time.monotonic() < deadline, f"process {pid} does not stand still"
            time.sleep(0.001)


def _stands_still(pid: int) -> bool:
    if not Path("/proc/self/task").is_dir():
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    with suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = (task / "stat").read_text(errors="replace")
                if stat[stat.rindex(")") + 2] not in _STOPPED + _ENDED:
                    return False
    return True

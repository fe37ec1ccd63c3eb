"""Killing what is busy: an executor or an instance that runs a call at that moment, by its own word."""

from __future__ import annotations

import os
import random
import signal

from support.worker_instance import Platform, Worker, wait_until


def busy(platform: Platform, worker: Worker) -> list[int]:
    """Executors of an instance that runs something, as it says itself."""
    status = platform.status(worker)
    return list(status.executors) if status is not None and status.running else []


def kill_busy(platform: Platform, dice: random.Random, *, instance: bool) -> None:
    """SIGKILL of an executor, or of an instance that is replaced, at a moment when it runs something."""
    found: list[tuple[Worker, int]] = []

    def look() -> bool:
        alive = [worker for worker in platform.workers if worker.child.poll() is None]
        found[:] = [(worker, pid) for worker in alive for pid in busy(platform, worker)]
        return bool(found)

    wait_until(look, 60, "somebody is busy")
    worker, pid = dice.choice(found)
    if instance:
        platform.start()
        worker.kill()
        return
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        # It ended between the look and the kill.
        kill_busy(platform, dice, instance=False)

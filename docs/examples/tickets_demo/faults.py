"""Kills workers of the demo, each at a moment when calls are in flight on it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ledger import Ledger
from platform_run import DemoFailed, Platform


@dataclass(frozen=True)
class Kill:
    """One kill: what, which process, how many calls were in flight in it."""

    what: str
    pid: int
    in_flight: int


def stop(pids: Iterable[int], number: signal.Signals) -> bool:
    """Signals all of them; False when one is gone already."""
    try:
        for pid in pids:
            os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_when_busy(
    what: str, choose: Callable[[], Iterable[tuple[int, list[int]]]], ledger: Ledger, within_s: float = 60.0
) -> Kill:
    """Freezes a process and its executors, counts the calls in flight, kills it if there is at least one.

    Args:
        what: for messages.
        choose: yields (pid to kill, pids of the executors that go with it).
        ledger: knows which calls began and did not end.
        within_s: how long to try.

    Raises:
        DemoFailed: no busy moment came.
    """
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        for pid, executors in choose():
            if not ledger.in_flight(executors):
                # Not frozen for nothing: who is stopped again and again never comes to begin a call.
                continue
            frozen = [pid, *(executor for executor in executors if executor != pid)]
            if not stop(frozen, signal.SIGSTOP):
                stop([x for x in frozen if os.path.exists(f"/proc/{x}")], signal.SIGCONT)
                continue
            in_flight = ledger.in_flight(executors)
            if in_flight:
                os.kill(pid, signal.SIGKILL)
                # The executors of a killed instance die with it, also frozen ones.
                return Kill(what, pid, in_flight)
            stop(frozen, signal.SIGCONT)
    raise DemoFailed(f"no {what} had a call in flight within {within_s:g} s")


def kill_executor(platform: Platform, ledger: Ledger) -> Kill:
    """Kills one executor with calls in flight."""
    return kill_when_busy(
        "executor",
        lambda: ((pid, [pid]) for worker in platform.workers() for pid in worker.executors),
        ledger,
    )


def kill_instance(platform: Platform, ledger: Ledger) -> Kill:
    """Kills one worker instance, coordinator first, with calls in flight in its executors."""
    return kill_when_busy(
        "worker instance",
        lambda: ((worker.pid, list(worker.executors)) for worker in platform.workers()),
        ledger,
    )

"""Which executor runs what: a shared one for most attempts, one of its own for each that may be deadly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from pelton.core.cancelling import CANCEL_GRACE_MS
from pelton.core.decisions import Credit, Interrupt, Start, Unpark
from pelton.protocol.frames import ToExecutor

_RUN: Final = int(ToExecutor.RUN)
_CREDIT: Final = int(ToExecutor.CREDIT)
_INTERRUPT: Final = int(ToExecutor.INTERRUPT)
_UNPARK: Final = int(ToExecutor.UNPARK)

ISOLATED_STOP_S: Final = 5.0
"""An isolated executor that is not needed any more gets so long to exit."""

SPARES: Final = 2
"""So many isolated executors stay for the next suspect: loading user code may take seconds."""

SPARE_MS: Final = 5_000
"""How long a spare one stays."""


class Pool(Protocol):
    """What placement needs of the executor pool; none of it blocks."""

    def start(self, *, isolated: bool = False) -> int:
        """Starts an executor."""

    def send(self, executor_id: int, records: Sequence[Sequence[Any]]) -> bool:
        """Sends records."""

    def interrupt(self, executor_id: int, run_id: int, grace_s: float) -> None:
        """Ends a run, by killing its executor if need be."""

    def stop(self, executor_id: int, grace_s: float) -> None:
        """Lets it finish and exit."""

    def kill(self, executor_id: int, reason: str = "") -> None:
        """Ends it at once."""


class Placement:
    """Keeps count of runs and executors; called under the lock of its host.

    Args:
        pool: the executors.
        grace_s: time an interrupted attempt gets to yield.

    Attributes:
        ready: whether the shared executor takes attempts.
    """

    def __init__(self, pool: Pool, grace_s: float) -> None:
        self._pool = pool
        self._grace_s = grace_s
        self._shared: int | None = None
        self._where: dict[int, int] = {}
        self._runs: dict[int, set[int]] = {}
        self._waiting: dict[int, Start] = {}
        self._writes: dict[int, list[Sequence[Any]]] = {}
        self._spare: dict[int, int] = {}
        self._stopping = False
        self.ready = False

    def open(self) -> None:
        """Starts the shared executor."""
        self._shared = self._pool.start()
        self._runs[self._shared] = set()

    def place(self, start: Start) -> None:
        """Gives an attempt to an executor."""
        shared = self._shared
        if start.isolated or shared is None:
            self._isolate(start)
            return
        run_id = start.run_id
        self._where[run_id] = shared
        self._runs[shared].add(run_id)
        self._write(shared, _run_record(start))

    def credit(self, action: Credit) -> None:
        """Lets a run send more chunks."""
        executor = self._where.get(action.run_id)
        if executor is not None:
            self._write(executor, (_CREDIT, action.run_id, action.chunks))

    def unpark(self, action: Unpark) -> None:
        """Tells a run that it has its slot again."""
        executor = self._where.get(action.run_id)
        if executor is not None:
            self._write(executor, (_UNPARK, action.run_id))

    def interrupt(self, action: Interrupt) -> bool:
        """Ends an attempt, or asks for it; False when it is in no executor (any more)."""
        executor = self._where.get(action.run_id)
        if executor is None:
            return False
        if executor in self._waiting:
            self._pool.kill(executor, action.reason)
            del self._waiting[executor]
        elif action.forced:
            grace_s = CANCEL_GRACE_MS / 1000 if action.cancelled else self._grace_s
            self._pool.interrupt(executor, action.run_id, grace_s)
        else:
            self._write(executor, (_INTERRUPT, action.run_id))
        return True

    def flush(self) -> None:
        """Writes what the calls since the last flush gathered: one write for each executor."""
        if self._writes:
            writes, self._writes = self._writes, {}
            for executor, records in writes.items():
                # False means that it is gone: its exit tells of its runs.
                self._pool.send(executor, records)

    def holds(self, executor_id: int, run_id: int) -> bool:
        """Whether this run is in this executor: user code may write frames and must not speak for others."""
        return self._where.get(run_id) == executor_id

    def over(self, run_id: int) -> None:
        """A run has left its executor."""
        executor = self._where.pop(run_id, None)
        if executor is None:
            return
        runs = self._runs[executor]
        runs.discard(run_id)
        if executor != self._shared and not runs:
            if len(self._spare) < SPARES and not self._stopping:
                self._spare[executor] = 0
            else:
                self._pool.stop(executor, ISOLATED_STOP_S)

    def retire(self, now_ms: int) -> None:
        """Ends spare executors that nothing came for."""
        for executor, since in list(self._spare.items()):
            if not since:
                self._spare[executor] = now_ms
            elif now_ms - since > SPARE_MS:
                del self._spare[executor]
                self._pool.stop(executor, ISOLATED_STOP_S)

    def became_ready(self, executor_id: int) -> int | None:
        """An executor has loaded user code; returns the isolated run that begins with it."""
        if executor_id == self._shared:
            self.ready = True
            return None
        start = self._waiting.pop(executor_id, None)
        if start is None:
            return None
        self._write(executor_id, _run_record(start))
        return start.run_id

    def exited(self, executor_id: int) -> list[int]:
        """An executor is gone; returns the runs that were in it, and starts what has to take its place."""
        lost = sorted(self._runs.pop(executor_id, ()))
        self._spare.pop(executor_id, None)
        self._writes.pop(executor_id, None)
        for run_id in lost:
            self._where.pop(run_id, None)
        waiting = self._waiting.pop(executor_id, None)
        if executor_id == self._shared:
            self._shared, self.ready = None, False
            if not self._stopping:
                self.open()
        elif waiting is not None and not self._stopping:
            # It never ran: user code could not be loaded, or memory was short. It waits for the next one.
            self._isolate(waiting)
            return []
        return lost

    def close(self) -> None:
        """Nothing that ends is replaced any more."""
        self._stopping = True

    def _isolate(self, start: Start) -> None:
        if self._spare:
            executor, _ = self._spare.popitem()
            self._where[start.run_id] = executor
            self._runs[executor].add(start.run_id)
            self._write(executor, _run_record(start))
            return
        executor = self._pool.start(isolated=True)
        self._where[start.run_id] = executor
        self._runs[executor] = {start.run_id}
        self._waiting[executor] = start

    def _write(self, executor: int, record: Sequence[Any]) -> None:
        records = self._writes.get(executor)
        if records is None:
            self._writes[executor] = [record]
        else:
            records.append(record)


def _run_record(start: Start) -> tuple[Any, ...]:
    return (
        _RUN,
        start.run_id,
        start.call_id,
        start.attempt,
        start.delivery,
        start.deadline_ms,
        start.value,
    )

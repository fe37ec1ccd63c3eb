"""One attempt inside an executor: what to run, whether it is still wanted, what it may send."""

from __future__ import annotations

import threading
from asyncio import Future, Task
from collections import deque
from typing import TYPE_CHECKING, Final

from pelton.core.call import CallId
from pelton.runtime.context import Attempt

if TYPE_CHECKING:
    from pelton_platform.executor.nesting import Place

MAX_UNACKNOWLEDGED_BYTES: Final = 8 * 1024 * 1024
"""Chunks of a run that Kafka has not acknowledged are bounded by this as well as by their number."""


class Run(Attempt):
    """An attempt with its place in the executor.

    Chunk counters have one writer each (the run, or the reading thread), so they need no lock.

    Attributes:
        run_id: names it in frames.
        value: body of the input record; emptied when read.
        credit: chunks that may be unacknowledged.
        task: its task when it is async.
        cancellable: user code runs in the task.
        blocked: it waits for credit.
        gate: where a sync run waits for credit.
        waiter: where an async run waits for credit.
        place: its slot, once it has waited for a call it made.
    """

    __slots__ = (
        "_acked",
        "_acked_bytes",
        "_sent",
        "_sent_bytes",
        "_sizes",
        "blocked",
        "cancellable",
        "credit",
        "gate",
        "place",
        "run_id",
        "task",
        "value",
        "waiter",
    )

    def __init__(
        self,
        run_id: int,
        call_id: CallId,
        attempt: int,
        delivery: int,
        deadline_ms: int,
        value: bytes,
        *,
        function: str,
        instance: str,
        credit: int,
    ) -> None:
        super().__init__(call_id, attempt, delivery, function, deadline_ms, instance)
        self.run_id = run_id
        self.value = value
        self.credit = credit
        self.task: Task[None] | None = None
        self.cancellable = False
        self.blocked = False
        self.gate: threading.Condition | None = None
        self.waiter: Future[None] | None = None
        self.place: Place | None = None
        self._sent = 0
        self._acked = 0
        self._sent_bytes = 0
        self._acked_bytes = 0
        self._sizes: deque[int] = deque()

    def has_room(self) -> bool:
        """Whether it may send a chunk now."""
        return (
            self._sent - self._acked < self.credit
            and self._sent_bytes - self._acked_bytes < MAX_UNACKNOWLEDGED_BYTES
        )

    def sent(self, size: int) -> None:
        """Counts a chunk of `size` bytes that was sent."""
        self._sizes.append(size)
        self._sent_bytes += size
        self._sent += 1

    def acknowledged(self, chunks: int) -> None:
        """Counts chunks that Kafka acknowledged; more than were sent are not counted."""
        chunks = min(chunks, len(self._sizes))
        self._acked_bytes += sum(self._sizes.popleft() for _ in range(chunks))
        self._acked += chunks

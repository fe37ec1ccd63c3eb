"""A run: one dispatch of a call inside an instance, with all input records bound to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from pelton.core.call import CallId, Failure, InputPartition, Result, Token

if TYPE_CHECKING:
    from pelton.core.decisions import InputRecord, SendDeadLetter, SendInput, SendTimer
    from pelton.core.ownership import Owned

RunKey = tuple[CallId, int]
"""Call id and attempt in the record's header: a second record with the same key is bound to the run."""


class RunState(IntEnum):
    """Where a run stands."""

    COUNTING = 0
    """Its delivery count is being committed."""
    FENCING = 1
    """`started` or `reset` is being acknowledged, a stream's history read."""
    RUNNING = 2
    """In an executor."""
    BACKOFF = 3
    """Waits in process for its next attempt."""
    CLOSING = 4
    """Its last records wait for acknowledgement."""
    DONE = 5


class Item:
    """One unfinished record of an owned partition.

    Attributes:
        own: the assignment it belongs to.
        offset: its offset.
        record: the record.
        suspect: it may have run before (below the bound, or its header says so).
        local: it ran here in an executor that died with others; it runs again in one of its own.
        run: the run it is bound to.
        expired: its deadline passed while it waited.
        raised: this assignment raised its delivery count.
        dispatched: this assignment dispatched it.
    """

    __slots__ = ("dispatched", "expired", "local", "offset", "own", "raised", "record", "run", "suspect")

    def __init__(self, own: Owned, offset: int, record: InputRecord, suspect: bool) -> None:
        self.own = own
        self.offset = offset
        self.record = record
        self.suspect = suspect
        self.local = False
        self.run: Run | None = None
        self.expired = False
        self.raised = False
        self.dispatched = False


class Entry:
    """A record on its way to Kafka.

    Attributes:
        action: what was sent.
        run: the run it belongs to, None for copies.
        out: handed to the producer, not yet reported.
        acked: acknowledged, and nothing before it of the same run unacknowledged by an expiry since.
        offset: where Kafka put it.
        chunks: how many chunks it carries.
        answer: called with (acknowledged, offset) instead of the run's flow.
        ancestry: of its call, to be written beside a result.
    """

    __slots__ = ("acked", "action", "ancestry", "answer", "chunks", "offset", "out", "run")

    def __init__(
        self,
        action: Result | SendDeadLetter | SendInput | SendTimer,
        run: Run | None,
        chunks: int = 0,
        answer: Callable[[bool, int], None] | None = None,
    ) -> None:
        self.action = action
        self.run = run
        self.out = False
        self.acked = False
        self.offset = -1
        self.chunks = chunks
        self.answer = answer
        self.ancestry = b""


class Run:
    """One dispatch of a call.

    Attributes:
        id: names it in events from executors.
        key: call id and attempt.
        items: the records bound to it; the first one gave it its token.
        token: written on every record of this execution.
        partition: the input partition in the token.
        state: where it stands.
        alive: False once nothing it does counts any more.
        isolated: in an executor of its own.
        sequence: sequence of the next chunk or of the outcome.
        wrote: whether a record with this token was sent.
        out: records from the first unacknowledged one on, in order.
        expired: one of them expired; nothing is sent until all are reported.
        then: what to do when all are acknowledged.
        last_offset: offset of the last acknowledged record.
        began_ms: when it reached its executor.
        delivery: delivery count told to user code.
        attempt: attempt told to user code.
        ancestry: of its call, 16 bytes for each ancestor.
        parked: it gave back its place while it waits for calls it made.
        apart: whether that place was in an executor of its own.
        cancelled: why its call is cancelled, "" while it is not.
    """

    __slots__ = (
        "alive",
        "ancestry",
        "apart",
        "attempt",
        "began_ms",
        "cancelled",
        "deadline_ms",
        "delivery",
        "due_ms",
        "expired",
        "failures",
        "id",
        "isolated",
        "items",
        "key",
        "last_offset",
        "out",
        "parked",
        "partition",
        "sequence",
        "slot",
        "state",
        "submitted_ms",
        "then",
        "token",
        "wrote",
    )

    def __init__(self, run_id: int, key: RunKey, item: Item, token: Token) -> None:
        self.id = run_id
        self.key = key
        self.items = [item]
        self.token = token
        self.partition: InputPartition = item.own.partition
        self.state = RunState.COUNTING
        self.alive = True
        self.isolated = False
        self.slot = False
        self.sequence = 0
        self.wrote = False
        self.out: deque[Entry] = deque()
        self.expired = False
        self.then: Callable[[Run, int], None] | None = None
        self.last_offset = -1
        self.began_ms = 0
        self.delivery = 1
        self.attempt = 1
        self.submitted_ms = 0
        self.ancestry = b""
        self.parked = False
        self.apart = False
        self.cancelled = ""
        self.due_ms = 0
        self.deadline_ms = 0
        self.failures: tuple[Failure, ...] = ()

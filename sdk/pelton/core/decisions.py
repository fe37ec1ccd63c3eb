"""What the engine decides: the actions that a coordinator carries out for it, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from pelton.core.call import CallId, Failure, InputHeaders, InputPartition, Result, Token


class InputRecord(NamedTuple):
    """A record of an input topic as the coordinator hands it to the engine.

    Attributes:
        offset: its offset.
        headers: routing data, None when they cannot be read (poison).
        value: the body, None for a null value.
        key: the record key.
        raw_headers: headers as they were, for dead letters and copies.
        poison: why it cannot be read, "" when it can.
        submitted_ms: append time (broker ms).
    """

    offset: int
    headers: InputHeaders | None
    value: bytes | None
    key: bytes | None
    raw_headers: Sequence[tuple[str, bytes | None]] = ()
    poison: str = ""
    submitted_ms: int = 0


class CommitOutcome(Enum):
    """How a synchronous offset commit ended."""

    OK = "ok"
    REFUSED = "refused"
    """Generation moved or rebalance in progress: repeat while the partition is still ours."""
    UNKNOWN = "unknown"
    """No answer, or the coordinator moved: repeat."""
    LOST = "lost"
    """Unknown or fenced member: everything of that assignment is dropped."""


class SendResult(NamedTuple):
    """Append a record to the results topic (partition: from the call id).

    Attributes:
        send_id: names it in its report.
        result: the record.
        ancestry: of the call, where the record says where that stands; 16 bytes for each ancestor.
    """

    send_id: int
    result: Result
    ancestry: bytes = b""


class SendDeadLetter(NamedTuple):
    """Append a dead letter.

    Attributes:
        send_id: names it in its report.
        origin, record: what is given up.
        reason: why.
        failures: of earlier attempts, oldest first, that are not in the record's history yet.
    """

    send_id: int
    origin: InputPartition
    record: InputRecord
    reason: Failure
    failures: tuple[Failure, ...] = ()


class SendInput(NamedTuple):
    """Append a copy or a retry: the body as it was, these headers.

    Attributes:
        send_id: names it in its report.
        target: where to.
        key, value: as they were.
        headers: of the new record.
        failures: of attempts, oldest first, to be added to the history in the headers.
    """

    send_id: int
    target: InputPartition
    key: bytes | None
    value: bytes
    headers: InputHeaders
    failures: tuple[Failure, ...] = ()


class SendTimer(NamedTuple):
    """Write a timer: what `SendInput` would append, to be appended when `headers.due_ms` has come."""

    send_id: int
    target: InputPartition
    key: bytes | None
    value: bytes
    headers: InputHeaders
    failures: tuple[Failure, ...] = ()


class Commit(NamedTuple):
    """Commit offsets with metadata, synchronously on the committing thread; answered with `committed`."""

    commit_id: int
    offsets: Mapping[InputPartition, tuple[int, str]]


class Start(NamedTuple):
    """Hand an attempt to an executor: a shared one, or one of its own.

    Attributes:
        run_id: names this run in later events; unique in the engine.
        isolated: needs an executor of its own, ended afterwards.
        call_id, attempt, delivery, token: context of the attempt.
        value: body of the input record.
        deadline_ms: broker time after which it must not start; 0 for none.
    """

    run_id: int
    isolated: bool
    call_id: CallId
    attempt: int
    delivery: int
    token: Token
    value: bytes
    deadline_ms: int


class Interrupt(NamedTuple):
    """An attempt must stop: its time is up, or its partition went to another instance.

    Its outcome, should one still come, is dropped by the engine; but it keeps its place until `finished`,
    `poisoned` or `executor_died` names it. An executor killed for it reports *all* runs in it, this one too.

    Attributes:
        run_id: which one.
        reason: for logs.
        forced: replace the executor if the attempt does not yield within a grace; else only ask (async ones
            are cancelled, sync ones run to their end).
        cancelled: its call is cancelled: what it still ends with counts, and it gets the longer grace
            `CANCEL_GRACE_MS`.
    """

    run_id: int
    reason: str
    forced: bool
    cancelled: bool = False


class Unpark(NamedTuple):
    """A run that was parked and wants to go on has its place again; or nothing it does counts any more."""

    run_id: int


class Credit(NamedTuple):
    """So many chunks of this run were acknowledged: the executor may send as many more."""

    run_id: int
    chunks: int


class ReadResults(NamedTuple):
    """Read a call's results from its start up to (not including) `end_offset`; answered with `fence_read`."""

    run_id: int
    call_id: CallId
    end_offset: int


class ReadCancellations(NamedTuple):
    """Read the requests to cancel up to what is in the log now; answered with `cancellations_read`.

    Attributes:
        partition: which assignment waits for that.
        epoch: its owner epoch.
    """

    partition: InputPartition
    epoch: int


class Pause(NamedTuple):
    """Take no more records of this partition for now."""

    partition: InputPartition


class Resume(NamedTuple):
    """Take records of this partition again."""

    partition: InputPartition


class Released(NamedTuple):
    """These partitions may go: the revoke callback may return."""

    partitions: Sequence[InputPartition]


class Trim(NamedTuple):
    """Everything below these acknowledged committed offsets may be deleted from the log."""

    offsets: Mapping[InputPartition, int]


class Alarm(NamedTuple):
    """Something an operator must see."""

    event: str
    fields: Mapping[str, object]


Action = (
    SendResult
    | SendDeadLetter
    | SendInput
    | SendTimer
    | Commit
    | Start
    | Interrupt
    | Credit
    | ReadResults
    | ReadCancellations
    | Pause
    | Resume
    | Released
    | Trim
    | Alarm
    | Unpark
)

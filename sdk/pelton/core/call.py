"""What a call is made of: ids, tokens, invocations, results, failures, cancellations, dead letters."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple
from uuid import UUID

CallId = bytes
"""16 bytes in UUIDv7 layout: 48 bits of broker time in ms, 12 bits of reply partition, the rest random."""

MAX_REPLY_PARTITIONS = 4096
"""`rand_a` of the call id has 12 bits."""

MAX_DEPTH = 64
"""A call has at most so many ancestors."""


def mint_call_id(now_ms: int, reply_partition: int, dice: bytes) -> CallId:
    """Makes a call id.

    Args:
        now_ms: broker time in milliseconds since the epoch.
        reply_partition: partition of the function's results topic the caller reads, 0..4095.
        dice: at least 8 random bytes.

    Raises:
        ValueError: the partition does not fit 12 bits.
    """
    if not 0 <= reply_partition < MAX_REPLY_PARTITIONS:
        raise ValueError(f"reply partition {reply_partition} does not fit 12 bits")
    return (
        now_ms.to_bytes(6, "big")
        + (0x7000 | reply_partition).to_bytes(2, "big")
        + bytes((0x80 | dice[0] & 0x3F,))
        + dice[1:8]
    )


def call_time_ms(call_id: CallId) -> int:
    """The broker time in milliseconds at which the caller minted this id."""
    return int.from_bytes(call_id[:6], "big")


def reply_partition(call_id: CallId) -> int:
    """The partition of the results topic in which all records of this call lie."""
    return int.from_bytes(call_id[6:8], "big") & 0x0FFF


def call_id_text(call_id: CallId) -> str:
    """The id as people read it: UUID text with hyphens."""
    return str(UUID(bytes=call_id))


def parse_call_id(text: str) -> CallId:
    """Reads UUID text.

    Raises:
        ValueError: it is no UUIDv7.
    """
    uuid = UUID(text)
    if uuid.version != 7:
        raise ValueError(f"{text!r} is no call id: call ids are UUIDs of version 7")
    return uuid.bytes


class InputTopic(IntEnum):
    """The topics a worker takes records from; the number orders tokens."""

    INVOCATIONS = 0
    RETRIES = 1


class InputPartition(NamedTuple):
    """One partition of one of the input topics of a function."""

    topic: InputTopic
    partition: int


class Token(NamedTuple):
    """Which execution wrote a result; compared left to right, the higher one wins.

    Attributes:
        attempt: attempt number in the header of the input record, from 1.
        epoch: owner epoch of the input partition (broker ms or higher).
        topic: input topic number.
        partition: input partition number.
        run: counts every dispatch of an assignment, from 1.
    """

    attempt: int
    epoch: int
    topic: int
    partition: int
    run: int


class ResultKind(IntEnum):
    """What a record of the results topic says."""

    STARTED = 0
    CHUNK = 1
    RESET = 2
    MOVED = 3
    OUTCOME = 4
    ALIAS = 5


class Origin(IntEnum):
    """Where a call comes from."""

    CALL = 0
    SCHEDULE = 1
    TOPIC = 2
    HTTP = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt or a call failed.

    Attributes:
        type: qualified name of the original exception type, as text; never imported.
        message: `str()` of the exception, bounded.
        traceback: remote traceback as text, bounded; "" when there is none.
        code: gRPC status name, e.g. "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED".
        retriable: whether trying again may help.
        attempt: the attempt that failed, from 1; 0 when none ran.
        after_ms: how long the next attempt is to wait, as user code asked; -1 leaves it to the policy. Known
            where the attempt ran, and not written.
    """

    type: str
    message: str
    traceback: str = ""
    code: str = "UNKNOWN"
    retriable: bool = False
    attempt: int = 0
    after_ms: int = -1


@dataclass(frozen=True, slots=True)
class Invocation:
    """The body of an input record, as the caller first submitted it.

    Attributes:
        call_id: the id of the call.
        function: name of the function.
        version: spec version the call is pinned to; None means the latest.
        arguments: payload bytes of `(args, kwargs)`.
        max_attempts: attempts granted; 0 leaves it to the spec.
        deadline_ms: broker time after which it must not start; None for never.
        parent: call id of the parent, None for a root call.
        ancestry: call ids from the root to the parent, at most 64.
        ordering_key, idempotency_key, limit_key: keys, None when not used.
        origin: where the call comes from.
        trace_parent: W3C trace parent, None when not traced.
        submitted_ms: broker time at which the caller submitted it.
    """

    call_id: CallId
    function: str
    arguments: bytes
    version: int | None = None
    max_attempts: int = 0
    deadline_ms: int | None = None
    parent: CallId | None = None
    ancestry: tuple[CallId, ...] = ()
    ordering_key: str | None = None
    idempotency_key: str | None = None
    limit_key: str | None = None
    origin: Origin = Origin.CALL
    trace_parent: str | None = None
    submitted_ms: int = 0


class InputHeaders(NamedTuple):
    """The routing data of an input record; headers win over the body.

    Attributes:
        call_id: 16 bytes.
        function: name of the function.
        attempt: from 1.
        may_have_run: delivery count carried by a copy or retry of a suspect; None when it never ran.
        used: attempts used so far, carried with `may_have_run`.
        due_ms: not before this broker time; 0 for at once.
        deadline_ms: broker time; 0 for none.
        history: bounded list of earlier failures, opaque bytes; b"" for none.
        ancestry: call ids from the root to the parent, 16 bytes each; b"" for a root call.
    """

    call_id: CallId
    function: str
    attempt: int = 1
    may_have_run: int | None = None
    used: int = 0
    due_ms: int = 0
    deadline_ms: int = 0
    history: bytes = b""
    ancestry: bytes = b""


@dataclass(frozen=True, slots=True)
class Result:
    """One record of the results topic.

    Attributes:
        call_id: the call it belongs to.
        token: the execution that wrote it.
        kind: what it says.
        first: sequence of the first item (chunk), or of the outcome itself (number of chunks before it).
        items: payload bytes: chunks, or for an outcome of success exactly one item, the value.
        checkpoint: state that travels with a chunk; None when there is none.
        failure: why the call failed; None on success.
        submitted_ms: on outcomes: when the caller submitted the call, broker ms.
        attempts: on outcomes: attempts used.
        worker: on outcomes and started: the instance that ran it.
        moved_to: on moved: text naming the target topic and partition.
    """

    call_id: CallId
    token: Token
    kind: ResultKind
    first: int = 0
    items: tuple[bytes, ...] = ()
    checkpoint: bytes | None = None
    failure: Failure | None = None
    submitted_ms: int = 0
    attempts: int = 0
    worker: str = ""
    moved_to: str = ""


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A request to cancel a call and all calls below it.

    Attributes:
        call_id: the call.
        requested_ms: broker time of the request.
        reason: who asked for it, in words that follow "the call was cancelled: "; bounded.
    """

    call_id: CallId
    requested_ms: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Timer:
    """An input record that is to be appended when its time has come.

    Attributes:
        due_ms: not before this broker time.
        topic, partition: where to.
        value: its body.
        key: its key.
        headers: its headers, each with a value.
    """

    due_ms: int
    topic: str
    partition: int
    value: bytes
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A call that was given up, or a record that could not be read.

    Attributes:
        call_id: 16 bytes, None when the record had none.
        function: the function whose topic it came from.
        reason: the failure that ended it.
        history: earlier failures, oldest first.
        topic, partition, offset: origin of the record.
        key, value, headers: the record as it was; value may be None or cut to 900 KiB (then `truncated`).
        given_up_ms: broker time.
        truncated: whether `value` was cut.
    """

    call_id: CallId | None
    function: str
    reason: Failure
    topic: str
    partition: int
    offset: int
    given_up_ms: int
    history: tuple[Failure, ...] = ()
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = field(default=())
    truncated: bool = False

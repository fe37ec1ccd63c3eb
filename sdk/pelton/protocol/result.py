"""Results to bytes and back: the second of the two hot contracts, with a codec of its own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NoReturn

from pelton.core.call import CallId, Failure, Result, ResultKind, Token
from pelton.errors import RecordError
from pelton.protocol.avro import PREFIX_BYTES, Subject, Values, check_marker
from pelton.protocol.text import clean_text, encode_text
from pelton.protocol.varint import SMALL, SMALL_LONGS, decode_long, encode_long

RESULT: Final = Subject("result")
RESULT_PREFIX: Final = bytes.fromhex("c3018d5bb395f307e1eb")
"""What a result written by this version starts with; a test holds it to the schema."""

_TOKEN_AT: Final = PREFIX_BYTES + 16
"""Where the first field after the call id starts."""

_RUN_AT: Final = _TOKEN_AT + 9
"""Where the run starts when the parts of the token before it have their usual lengths."""

_USUAL_TAIL_BYTES: Final = 128
"""Longer ones are not worth remembering."""

_KINDS: Final = tuple(ResultKind)
_SYMBOLS: Final = tuple(kind.name for kind in ResultKind)


class _Draft:
    """A result while it is read.

    Setting the fields of a frozen dataclass costs more than reading them from bytes. A draft has the same
    slots, and becomes a `Result` by changing its class.
    """

    __slots__ = Result.__slots__

    def __init__(
        self,
        call_id: CallId,
        token: Token,
        kind: ResultKind,
        first: int,
        items: tuple[bytes, ...],
        checkpoint: bytes | None,
        failure: Failure | None,
        submitted_ms: int,
        attempts: int,
        worker: str,
        moved_to: str,
    ) -> None:
        self.call_id = call_id
        self.token = token
        self.kind = kind
        self.first = first
        self.items = items
        self.checkpoint = checkpoint
        self.failure = failure
        self.submitted_ms = submitted_ms
        self.attempts = attempts
        self.worker = worker
        self.moved_to = moved_to


def encode_result(result: Result) -> bytes:
    """The value of a results record.

    Raises:
        RecordError: a value does not fit its field.
    """
    if len(result.call_id) != 16:
        raise RecordError(f"a call id has 16 bytes, not {len(result.call_id)}")
    attempt, epoch, topic, partition, run = result.token
    first = result.first
    items = result.items
    checkpoint = result.checkpoint
    failure = result.failure
    worker = result.worker
    moved_to = result.moved_to
    small = SMALL_LONGS
    try:
        return b"".join(
            (
                RESULT_PREFIX,
                result.call_id,
                small[attempt] if 0 <= attempt < SMALL else encode_long(attempt),
                encode_long(epoch),
                small[topic] if topic in (0, 1) else _refuse_topic(topic),
                small[partition] if 0 <= partition < SMALL else encode_long(partition),
                encode_long(run),
                small[result.kind],
                small[first] if 0 <= first < SMALL else encode_long(first),
                _encode_items(items) if items else b"\x00",
                b"\x00" if checkpoint is None else b"\x02" + encode_long(len(checkpoint)) + checkpoint,
                b"\x00" if failure is None else b"\x02" + _encode_failure(failure),
                encode_long(result.submitted_ms),
                small[result.attempts] if 0 <= result.attempts < SMALL else encode_long(result.attempts),
                _encode_name(worker) if worker else b"\x00",
                _encode_text(moved_to) if moved_to else b"\x00",
            )
        )
    except TypeError as error:
        raise RecordError(f"a result that cannot be written: {error}") from error


def _refuse_topic(topic: int) -> NoReturn:
    """Stands where a number that names no input topic would be written."""
    raise RecordError(f"{topic} names no input topic")


def decode_result(data: bytes | None) -> Result:
    """Reads the value of a results record, of this version or any other known here.

    Raises:
        RecordError: it is no result.
    """
    if data is None or not data.startswith(RESULT_PREFIX):
        return _from_values(RESULT.decode(check_marker("result", data)))
    try:
        return _decode_latest(data)
    except IndexError:
        raise RecordError(f"the result is truncated at {len(data)} bytes") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"the result has a text that is no UTF-8: {error}") from error


def _decode_latest(data: bytes) -> Result:
    """Reads a result of the latest version."""
    owner = _usual_owner(data[_TOKEN_AT:_RUN_AT])
    at = _RUN_AT
    if owner is None:
        owner, at = _read_owner(data)
    run, at = _read_count(data, at)
    # A byte without 0x81: a number from 0 to 63, read on the spot because calls would cost more.
    if data[at] & 0x81:
        kind, at = _read_count(data, at)
    else:
        kind, at = data[at] >> 1, at + 1
    if kind >= len(_KINDS):
        raise RecordError(f"symbol {kind} of an enum of {len(_KINDS)}")
    items: tuple[bytes, ...] = ()
    checkpoint = failure = None
    if data[at] & 0x81:
        first, at = _read_count(data, at)
    else:
        first, at = data[at] >> 1, at + 1
    if data[at]:
        items, at = _read_items(data, at)
    else:
        at += 1
    if data[at]:
        checkpoint, at = _read_checkpoint(data, at)
    else:
        at += 1
    if data[at]:
        failure, at = _read_failure(data, at)
    else:
        at += 1
    submitted_ms, at = decode_long(data, at)
    if submitted_ms < 0:
        raise RecordError(f"a call submitted at {submitted_ms}")
    if data[at] & 0x81:
        attempts, at = _read_count(data, at)
    else:
        attempts, at = data[at] >> 1, at + 1
    tail = data[at:]
    worker, moved_to = _usual_tail(tail) if 0 < len(tail) <= _USUAL_TAIL_BYTES else _read_tail(tail)
    draft: Any = _Draft(
        data[PREFIX_BYTES:_TOKEN_AT],
        tuple.__new__(Token, (*owner, run)),
        _KINDS[kind],
        first,
        items,
        checkpoint,
        failure,
        submitted_ms,
        attempts,
        worker,
        moved_to,
    )
    draft.__class__ = Result
    result: Result = draft
    return result


def _read_count(data: bytes, at: int) -> tuple[int, int]:
    """Reads a number that is not negative."""
    byte = data[at]
    if not byte & 0x81:
        return byte >> 1, at + 1
    number, at = decode_long(data, at)
    if number < 0:
        raise RecordError(f"the result has the number {number}")
    return number, at


_Owner = tuple[int, int, int, int]
"""Attempt, epoch, topic and partition of a token."""


def _read_owner(data: bytes) -> tuple[_Owner, int]:
    """Reads the parts of a token before the run, of any length."""
    attempt, at = _read_count(data, _TOKEN_AT)
    epoch, at = _read_count(data, at)
    topic, at = _read_count(data, at)
    partition, at = _read_count(data, at)
    return (attempt, epoch, topic, partition), at


@lru_cache(maxsize=1024)
def _usual_owner(head: bytes) -> _Owner | None:
    """The parts of a token before the run in their usual nine bytes, which hardly differ from call to call.

    None when they take other lengths or are no such numbers; then they are read one by one.
    """
    try:
        attempt, at = decode_long(head, 0)
        epoch, at = decode_long(head, at)
        topic, at = decode_long(head, at)
        partition, at = decode_long(head, at)
    except (IndexError, RecordError):
        return None
    if at != len(head) or min(attempt, epoch, topic, partition) < 0:
        return None
    return attempt, epoch, topic, partition


def _read_tail(tail: bytes) -> tuple[str, str]:
    """Reads worker and target, and the end."""
    worker, at = _read_text(tail, 0)
    moved_to, at = _read_text(tail, at)
    if at > len(tail):
        raise IndexError
    if at < len(tail):
        raise RecordError(f"the result has {len(tail) - at} bytes after its end")
    return worker, moved_to


_usual_tail = lru_cache(maxsize=256)(_read_tail)
"""Results of one worker end alike."""


def _encode_items(items: tuple[bytes, ...]) -> bytes:
    """An array of payloads that has some."""
    if len(items) == 1:
        item = items[0]
        return b"".join((b"\x02", encode_long(len(item)), item, b"\x00"))
    parts = [encode_long(len(items))]
    for item in items:
        parts.append(encode_long(len(item)))
        parts.append(item)
    parts.append(b"\x00")
    return b"".join(parts)


def _encode_failure(failure: Failure) -> bytes:
    """A failure."""
    return b"".join(
        (
            _encode_text(failure.type),
            _encode_text(failure.message),
            _encode_text(failure.traceback),
            _encode_text(failure.code),
            b"\x01" if failure.retriable else b"\x00",
            encode_long(failure.attempt),
        )
    )


def _encode_text(text: str) -> bytes:
    """A text with its length."""
    encoded = encode_text(text)
    return encode_long(len(encoded)) + encoded


_encode_name = lru_cache(maxsize=64)(_encode_text)
"""For names of instances: a process writes few different ones."""


def _read_items(data: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """Reads an array of payloads."""
    if data[at] == 2:  # the usual block of one
        length, at = decode_long(data, at + 1)
        if length < 0:
            raise RecordError(f"an item of {length} bytes")
        end = at + length
        if not data[end]:
            return (data[at:end],), end + 1
        items, at = [data[at:end]], end
    else:
        items = []
    while True:
        count, at = decode_long(data, at)
        if count == 0:
            return tuple(items), at
        if count < 0:
            count = -count
            size, at = decode_long(data, at)
            if size < 0:
                raise RecordError(f"a block of {size} bytes")
        if count > len(data) - at:
            raise IndexError
        for _ in range(count):
            length, at = decode_long(data, at)
            if length < 0:
                raise RecordError(f"an item of {length} bytes")
            end = at + length
            items.append(data[at:end])
            at = end


def _read_text(data: bytes, at: int) -> tuple[str, int]:
    """Reads a text."""
    length, at = decode_long(data, at)
    if length < 0:
        raise RecordError(f"a text of {length} bytes")
    return data[at : at + length].decode(), at + length


def _read_branch(data: bytes, at: int) -> int:
    """Reads a union branch that is not null."""
    branch, at = decode_long(data, at)
    if branch != 1:
        raise RecordError(f"branch {branch} of a union of 2")
    return at


def _read_checkpoint(data: bytes, at: int) -> tuple[bytes, int]:
    """Reads a checkpoint that is there."""
    length, at = decode_long(data, _read_branch(data, at))
    if length < 0:
        raise RecordError(f"a checkpoint of {length} bytes")
    return data[at : at + length], at + length


def _read_failure(data: bytes, at: int) -> tuple[Failure, int]:
    """Reads a failure that is there."""
    at = _read_branch(data, at)
    type_, at = _read_text(data, at)
    message, at = _read_text(data, at)
    traceback, at = _read_text(data, at)
    code, at = _read_text(data, at)
    retriable = data[at]
    if retriable > 1:
        raise RecordError(f"a boolean of {retriable}")
    attempt, at = decode_long(data, at + 1)
    if attempt < 0:
        raise RecordError(f"a failure of attempt {attempt}")
    return Failure(type_, message, traceback, code, retriable == 1, attempt), at


def failure_values(failure: Failure) -> Values:
    """A failure as fastavro takes it."""
    return {
        "type": clean_text(failure.type),
        "message": clean_text(failure.message),
        "traceback": clean_text(failure.traceback),
        "code": clean_text(failure.code),
        "retriable": failure.retriable,
        "attempt": failure.attempt,
    }


def failure_from(values: Values) -> Failure:
    """A failure that fastavro read.

    Raises:
        RecordError: it has a negative attempt.
    """
    if values["attempt"] < 0:
        raise RecordError(f"a failure of attempt {values['attempt']}")
    return Failure(**values)


def result_values(result: Result) -> Values:
    """The result as fastavro takes it."""
    return {
        "call_id": result.call_id,
        "token": result.token._asdict(),
        "kind": result.kind.name,
        "first": result.first,
        "items": list(result.items),
        "checkpoint": result.checkpoint,
        "failure": None if result.failure is None else failure_values(result.failure),
        "submitted_ms": result.submitted_ms,
        "attempts": result.attempts,
        "worker": clean_text(result.worker),
        "moved_to": clean_text(result.moved_to),
    }


def _from_values(values: Values) -> Result:
    """A result that fastavro resolved to the latest version."""
    token = Token(**values["token"])
    if min(*token, values["first"], values["submitted_ms"], values["attempts"]) < 0:
        raise RecordError("the result has a negative number")
    return Result(
        **{
            **values,
            "token": token,
            "kind": ResultKind(_SYMBOLS.index(values["kind"])),
            "items": tuple(values["items"]),
            "failure": None if values["failure"] is None else failure_from(values["failure"]),
        }
    )

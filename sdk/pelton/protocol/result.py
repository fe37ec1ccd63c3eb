"""Results to bytes and back: the second of the two hot contracts, with a codec of its own."""

from __future__ import annotations

from typing import Final

from pelton.core.call import Failure, Result, ResultKind, Token
from pelton.errors import RecordError
from pelton.protocol.avro import PREFIX_BYTES, Subject, Values, check_marker
from pelton.protocol.text import clean_text, encode_text
from pelton.protocol.varint import decode_long, encode_long

RESULT: Final = Subject("result")
RESULT_PREFIX: Final = bytes.fromhex("c3018d5bb395f307e1eb")
"""What a result written by this version starts with; a test holds it to the schema."""

_KINDS: Final = tuple(ResultKind)
_SYMBOLS: Final = tuple(kind.name for kind in ResultKind)


def encode_result(result: Result) -> bytes:
    """The value of a results record.

    Raises:
        RecordError: a value does not fit its field.
    """
    if len(result.call_id) != 16:
        raise RecordError(f"a call id has 16 bytes, not {len(result.call_id)}")
    attempt, epoch, topic, partition, run = result.token
    items = result.items
    checkpoint = result.checkpoint
    failure = result.failure
    if len(items) == 1:
        packed = b"\x02" + encode_long(len(items[0])) + items[0] + b"\x00"
    else:
        packed = _encode_items(items)
    worker = result.worker
    moved_to = result.moved_to
    try:
        return b"".join(
            (
                RESULT_PREFIX,
                result.call_id,
                encode_long(attempt),
                encode_long(epoch),
                encode_long(topic),
                encode_long(partition),
                encode_long(run),
                encode_long(result.kind),
                encode_long(result.first),
                packed,
                b"\x00" if checkpoint is None else b"\x02" + encode_long(len(checkpoint)) + checkpoint,
                b"\x00" if failure is None else b"\x02" + _encode_failure(failure),
                encode_long(result.submitted_ms),
                encode_long(result.attempts),
                _text(worker) if worker else b"\x00",
                _text(moved_to) if moved_to else b"\x00",
            )
        )
    except TypeError as error:
        raise RecordError(f"a result that cannot be written: {error}") from error


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
    attempt, at = decode_long(data, PREFIX_BYTES + 16)
    epoch, at = decode_long(data, at)
    topic, at = decode_long(data, at)
    partition, at = decode_long(data, at)
    run, at = decode_long(data, at)
    kind, at = decode_long(data, at)
    first, at = decode_long(data, at)
    items, at = _read_items(data, at)
    checkpoint = failure = None
    if data[at]:
        checkpoint, at = _read_checkpoint(data, at)
    else:
        at += 1
    if data[at]:
        failure, at = _read_failure(data, at)
    else:
        at += 1
    submitted_ms, at = decode_long(data, at)
    attempts, at = decode_long(data, at)
    worker = moved_to = ""
    if data[at]:
        worker, at = _read_text(data, at)
    else:
        at += 1
    if data[at]:
        moved_to, at = _read_text(data, at)
    else:
        at += 1
    if at != len(data):
        if at > len(data):
            raise IndexError
        raise RecordError(f"the result has {len(data) - at} bytes after its end")
    if (attempt | epoch | topic | partition | run | kind | first | submitted_ms | attempts) < 0:
        raise RecordError("the result has a negative number")
    if kind >= len(_KINDS):
        raise RecordError(f"symbol {kind} of an enum of {len(_KINDS)}")
    return Result(
        data[10:26],
        Token(attempt, epoch, topic, partition, run),
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


def _encode_items(items: tuple[bytes, ...]) -> bytes:
    """An array of payloads."""
    if not items:
        return b"\x00"
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
            _text(failure.type),
            _text(failure.message),
            _text(failure.traceback),
            _text(failure.code),
            b"\x01" if failure.retriable else b"\x00",
            encode_long(failure.attempt),
        )
    )


def _text(text: str) -> bytes:
    """A text with its length."""
    encoded = encode_text(text)
    return encode_long(len(encoded)) + encoded


def _read_items(data: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """Reads an array of payloads."""
    if not data[at]:
        return (), at + 1
    items: list[bytes] = []
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

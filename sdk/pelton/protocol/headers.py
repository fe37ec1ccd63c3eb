"""The headers of records: one table of names and types, and the way from routing data to bytes and back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pelton.core.call import MAX_DEPTH, CallId, InputHeaders, Token
from pelton.errors import RecordError
from pelton.protocol.history import MAX_HISTORY_BYTES, read_history

Headers = Sequence[tuple[str, bytes | None]]
"""Headers as the Kafka client gives and takes them: order kept, values may be null."""


class Header(NamedTuple):
    """One row of the header table.

    Attributes:
        name: two letters.
        type: what the bytes are, in words; all numbers are big-endian.
        records: "input" (invocations, retries) or "results"; both for the call id.
        absent: when it is left out; "" when it never is.
        meaning: what it says.
    """

    name: str
    type: str
    records: str
    absent: str
    meaning: str


HEADERS: Final = (
    Header("id", "16 raw bytes", "input, results", "", "call id"),
    Header("fn", "UTF-8", "input", "", "function"),
    Header("at", "u32", "input", "when 1", "attempt, from 1"),
    Header(
        "mr", "u32 + u32", "input", "when it has not run", "may have run: deliveries counted, attempts used"
    ),
    Header("du", "i64", "input", "when 0", "not before this broker time, ms"),
    Header("dl", "i64", "input", "when 0", "must have ended by this broker time, ms"),
    Header("hi", "MessagePack, at most 2 KiB", "input", "when empty", "earlier failures, oldest first"),
    Header(
        "an",
        "n x 16 raw bytes, at most 64",
        "input, results",
        "when empty; on results also of chunks",
        "ancestry: call ids from the root to the parent",
    ),
    Header("tk", "u32 i64 u8 u32 i64", "results", "", "token: attempt, epoch, input topic, partition, run"),
    Header(
        "st",
        "16 raw bytes + i64",
        "dead-letters",
        "on dead letters",
        "settled: the call sent instead, or zeros for purged; offset of the dead letter",
    ),
)
"""Every header there is; an input record carries at most eight. Readers ignore names they do not know."""

_U32 = struct.Struct(">I")
_TWO_U32 = struct.Struct(">II")
_I64 = struct.Struct(">q")
NO_CALL: Final = bytes(16)
"""Stands for no call at all."""

_TOKEN = struct.Struct(">IqBIq")
_INPUT_NAMES: Final = frozenset(header.name for header in HEADERS if "input" in header.records)


def encode_input(headers: InputHeaders) -> list[tuple[str, bytes]]:
    """The headers of an input record; what has its default is left out.

    Raises:
        RecordError: a value does not fit its type.
    """
    call_id, function, attempt, may_have_run, used, due_ms, deadline_ms, history, ancestry = headers
    if len(call_id) != 16:
        raise RecordError(f"a call id has 16 bytes, not {len(call_id)}")
    try:
        encoded = [("id", call_id), ("fn", function.encode())]
        if attempt != 1:
            if attempt < 1:
                raise RecordError(f"attempts count from 1, not {attempt}")
            encoded.append(("at", _U32.pack(attempt)))
        if may_have_run is not None:
            encoded.append(("mr", _TWO_U32.pack(may_have_run, used)))
        if due_ms:
            encoded.append(("du", _I64.pack(due_ms)))
        if deadline_ms:
            encoded.append(("dl", _I64.pack(deadline_ms)))
    except (struct.error, UnicodeEncodeError) as error:
        raise RecordError(f"headers of a call of {function!r} cannot be written: {error}") from error
    if history:
        if len(history) > MAX_HISTORY_BYTES:
            raise RecordError(f"a history of {len(history)} bytes is over the limit of {MAX_HISTORY_BYTES}")
        encoded.append(("hi", history))
    if ancestry:
        _check_ancestry(ancestry)
        encoded.append(("an", ancestry))
    return encoded


def decode_input(headers: Headers | None) -> InputHeaders:
    """Reads the headers of an input record.

    Args:
        headers: as the Kafka client gives them; None when the record has none.

    Raises:
        RecordError: a header is missing, null, there twice, or no value of its type.
    """
    # Nearly every record carries exactly these two.
    if headers is not None and len(headers) == 2:
        (first, call_id), (second, name) = headers
        if (
            first == "id"
            and second == "fn"
            and type(call_id) is bytes
            and len(call_id) == 16
            and type(name) is bytes
            and name.isascii()
            and name
        ):
            return InputHeaders(call_id, name.decode("ascii"))
    return _decode_any_input(headers or ())


def _decode_any_input(headers: Headers) -> InputHeaders:
    """Reads any set of headers of an input record."""
    found = _collect(headers, _INPUT_NAMES)
    call_id = found.get("id")
    if call_id is None:
        raise RecordError("the record has no header `id`")
    if len(call_id) != 16:
        raise RecordError(f"header `id` has {len(call_id)} bytes, not 16")
    name = found.get("fn")
    if not name:
        raise RecordError("the record has no header `fn`, or an empty one")
    try:
        function = name.decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"header `fn` is no UTF-8: {error}") from error
    attempt = _number(found, "at", _U32, 1)
    if attempt < 1:
        raise RecordError("header `at` says attempt 0; attempts count from 1")
    may_have_run, used = None, 0
    if (pair := found.get("mr")) is not None:
        if len(pair) != 8:
            raise RecordError(f"header `mr` has {len(pair)} bytes, not 8")
        may_have_run, used = _TWO_U32.unpack(pair)
    history = found.get("hi", b"")
    if history:
        read_history(history)  # nobody who relays it later meets one that cannot be read
    due_ms = _number(found, "du", _I64, 0)
    deadline_ms = _number(found, "dl", _I64, 0)
    if due_ms < 0 or deadline_ms < 0:
        raise RecordError(f"header `{'du' if due_ms < 0 else 'dl'}` is a negative time")
    ancestry = found.get("an", b"")
    _check_ancestry(ancestry)
    return InputHeaders(
        call_id, function, attempt, may_have_run, used, due_ms, deadline_ms, history, ancestry
    )


def _check_ancestry(ancestry: bytes) -> None:
    if len(ancestry) % 16 or len(ancestry) > 16 * MAX_DEPTH:
        raise RecordError(
            f"header `an` has {len(ancestry)} bytes: it is at most {MAX_DEPTH} call ids of 16 bytes each"
        )


def encode_result(call_id: CallId, token: Token, ancestry: bytes = b"") -> list[tuple[str, bytes]]:
    """The headers of a record of the results topic.

    Args:
        call_id: of the call.
        token: of the execution that writes it.
        ancestry: of the call, on records that say where it stands.

    Raises:
        RecordError: a value does not fit its type.
    """
    if len(call_id) != 16:
        raise RecordError(f"a call id has 16 bytes, not {len(call_id)}")
    try:
        encoded = [("id", call_id), ("tk", _TOKEN.pack(*token))]
        return [*encoded, ("an", ancestry)] if ancestry else encoded
    except struct.error as error:
        raise RecordError(f"{token} cannot be written: {error}") from error


def decode_ancestry(headers: Headers | None) -> tuple[CallId, ...]:
    """The ancestors of the call of an input or results record, the root first; () when it says none."""
    for name, value in headers or ():
        if name == "an" and value is not None and not len(value) % 16:
            return tuple(value[at : at + 16] for at in range(0, len(value), 16))
    return ()


def decode_result_id(headers: Headers | None) -> CallId | None:
    """The call id of a results record or None; cheap, to drop records of foreign calls undecoded."""
    if headers:
        for name, value in headers:
            if name == "id":
                return value if type(value) is bytes and len(value) == 16 else None
    return None


def decode_result(headers: Headers | None) -> tuple[CallId, Token]:
    """Reads the headers of a results record.

    Raises:
        RecordError: a header is missing, null, there twice, or no value of its type.
    """
    found = _collect(headers or (), ("id", "tk"))
    call_id, packed = found.get("id"), found.get("tk")
    if call_id is None or len(call_id) != 16:
        raise RecordError("the record has no header `id` of 16 bytes")
    if packed is None or len(packed) != _TOKEN.size:
        raise RecordError(f"the record has no header `tk` of {_TOKEN.size} bytes")
    token = Token(*_TOKEN.unpack(packed))
    if token.epoch < 0 or token.run < 0:
        raise RecordError(f"header `tk` has negative parts: {token}")
    return call_id, token


def encode_settled(call_id: CallId, offset: int) -> list[tuple[str, bytes]]:
    """The headers of a record that says what became of a dead letter; its value is null.

    Args:
        call_id: the call that was sent instead of it; `NO_CALL` when it was purged.
        offset: where the dead letter lies.
    """
    return [("st", call_id + _I64.pack(offset))]


def decode_settled(headers: Headers | None) -> tuple[CallId, int] | None:
    """Reads them; None for any other record."""
    for name, value in headers or ():
        if name == "st" and value is not None and len(value) == 16 + _I64.size:
            offset: int = _I64.unpack(value[16:])[0]
            return value[:16], offset
    return None


def _collect(headers: Headers, names: Any) -> dict[str, bytes]:
    """Known headers by name; unknown ones are ignored."""
    found: dict[str, bytes] = {}
    for name, value in headers:
        if name not in names:
            continue
        if value is None:
            raise RecordError(f"header `{name}` is null")
        if name in found:
            raise RecordError(f"header `{name}` is there twice")
        found[name] = value
    return found


def _number(found: dict[str, bytes], name: str, shape: struct.Struct, default: int) -> int:
    """A header that is one number."""
    value = found.get(name)
    if value is None:
        return default
    if len(value) != shape.size:
        raise RecordError(f"header `{name}` has {len(value)} bytes, not {shape.size}")
    number: int = shape.unpack(value)[0]
    return number

"""Invocations to bytes and back: the first of the two hot contracts, with a codec of its own."""

from __future__ import annotations

from typing import Any, Final

from pelton.core.call import MAX_DEPTH, CallId, Invocation, Origin
from pelton.errors import RecordError
from pelton.protocol.avro import PREFIX_BYTES, Subject, Values, check_marker
from pelton.protocol.varint import decode_long, encode_long

INVOCATION: Final = Subject("invocation")
INVOCATION_PREFIX: Final = bytes.fromhex("c3017129a67fa98bb952")
"""What an invocation written by this version starts with; a test holds it to the schema."""

_DEFAULTS: Final = bytes(10)
"""Version, attempts, deadline, parent, ancestry, three keys, origin and trace of a plain call."""

_FUNCTION_AT: Final = PREFIX_BYTES + 16
"""Where the first field after the call id starts."""

_ORIGINS: Final = tuple(Origin)
_SYMBOLS: Final = tuple(origin.name for origin in Origin)


class _Draft:
    """An invocation while it is read.

    Setting the fields of a frozen dataclass costs more than reading them from bytes. A draft has the same
    slots, and becomes an `Invocation` by changing its class.
    """

    __slots__ = Invocation.__slots__

    def __init__(self, call_id: CallId, function: str, arguments: bytes, submitted_ms: int) -> None:
        self.call_id = call_id
        self.function = function
        self.arguments = arguments
        self.version = None
        self.max_attempts = 0
        self.deadline_ms = None
        self.parent = None
        self.ancestry = ()
        self.ordering_key = None
        self.idempotency_key = None
        self.limit_key = None
        self.origin = Origin.CALL
        self.trace_parent = None
        self.submitted_ms = submitted_ms


def encode_invocation(invocation: Invocation) -> bytes:
    """The body of an input record.

    Raises:
        RecordError: a value does not fit its field.
    """
    call_id = invocation.call_id
    if len(call_id) != 16:
        raise RecordError(f"a call id has 16 bytes, not {len(call_id)}")
    try:
        function = invocation.function.encode()
        arguments = invocation.arguments
        return b"".join(
            (
                INVOCATION_PREFIX,
                call_id,
                encode_long(len(function)),
                function,
                encode_long(len(arguments)),
                arguments,
                encode_long(invocation.submitted_ms),
                _DEFAULTS if _is_plain(invocation) else _encode_options(invocation),
            )
        )
    except (UnicodeEncodeError, TypeError) as error:
        raise RecordError(
            f"an invocation of {invocation.function!r} that cannot be written: {error}"
        ) from error


def decode_invocation(data: bytes | None) -> Invocation:
    """Reads the body of an input record, of this version or any other known here.

    Raises:
        RecordError: it is no invocation.
    """
    if data is None or not data.startswith(INVOCATION_PREFIX):
        return _from_values(INVOCATION.decode(check_marker("invocation", data)))
    try:
        length, at = decode_long(data, _FUNCTION_AT)
        end = at + length
        if length < 0:
            raise RecordError(f"a function name of {length} bytes")
        function = data[at:end].decode()
        length, at = decode_long(data, end)
        if length < 0:
            raise RecordError(f"arguments of {length} bytes")
        end = at + length
        arguments = data[at:end]
        submitted_ms, at = decode_long(data, end)
        if submitted_ms < 0:
            raise RecordError(f"a call submitted at {submitted_ms}")
        if data[at:] == _DEFAULTS:
            draft: Any = _Draft(data[PREFIX_BYTES:_FUNCTION_AT], function, arguments, submitted_ms)
            draft.__class__ = Invocation
            invocation: Invocation = draft
            return invocation
        return _decode_options(data, at, function, arguments, submitted_ms)
    except IndexError:
        raise RecordError(f"the invocation is truncated at {len(data)} bytes") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"the invocation has a text that is no UTF-8: {error}") from error


def _is_plain(invocation: Invocation) -> bool:
    """Whether everything that has a default has it."""
    return (
        invocation.version is None
        and not invocation.max_attempts
        and invocation.deadline_ms is None
        and invocation.parent is None
        and not invocation.ancestry
        and invocation.ordering_key is None
        and invocation.idempotency_key is None
        and invocation.limit_key is None
        and invocation.origin is Origin.CALL
        and invocation.trace_parent is None
    )


def _encode_options(invocation: Invocation) -> bytes:
    """The fields that have defaults."""
    _check_ids(invocation.parent, invocation.ancestry)
    ancestry = b"\x00"
    if invocation.ancestry:
        ancestry = encode_long(len(invocation.ancestry)) + b"".join(invocation.ancestry) + b"\x00"
    return b"".join(
        (
            _optional_long(invocation.version),
            encode_long(invocation.max_attempts),
            _optional_long(invocation.deadline_ms),
            b"\x00" if invocation.parent is None else b"\x02" + invocation.parent,
            ancestry,
            _optional_text(invocation.ordering_key),
            _optional_text(invocation.idempotency_key),
            _optional_text(invocation.limit_key),
            encode_long(invocation.origin),
            _optional_text(invocation.trace_parent),
        )
    )


def _check_ids(parent: CallId | None, ancestry: tuple[CallId, ...]) -> None:
    """Refuses ids of a wrong length and too many of them."""
    if len(ancestry) > MAX_DEPTH:
        raise RecordError(f"a call {len(ancestry)} deep: at most {MAX_DEPTH} calls may be nested")
    for call_id in (*ancestry, *(() if parent is None else (parent,))):
        if len(call_id) != 16:
            raise RecordError(f"a call id has 16 bytes, not {len(call_id)}")


def _optional_long(number: int | None) -> bytes:
    """A number or null."""
    return b"\x00" if number is None else b"\x02" + encode_long(number)


def _optional_text(text: str | None) -> bytes:
    """A text or null."""
    if text is None:
        return b"\x00"
    encoded = text.encode()
    return b"\x02" + encode_long(len(encoded)) + encoded


def _decode_options(data: bytes, at: int, function: str, arguments: bytes, submitted_ms: int) -> Invocation:
    """Reads the fields that have defaults, and the end."""
    version, at = _read_optional_long(data, at)
    max_attempts, at = decode_long(data, at)
    deadline_ms, at = _read_optional_long(data, at)
    parent = None
    branch, at = decode_long(data, at)
    if branch == 1:
        parent = data[at : at + 16]
        at += 16
    elif branch:
        raise RecordError(f"branch {branch} of a union of 2")
    ancestry, at = _read_ids(data, at)
    ordering_key, at = _read_optional_text(data, at)
    idempotency_key, at = _read_optional_text(data, at)
    limit_key, at = _read_optional_text(data, at)
    origin, at = decode_long(data, at)
    if not 0 <= origin < len(_ORIGINS):
        raise RecordError(f"symbol {origin} of an enum of {len(_ORIGINS)}")
    trace_parent, at = _read_optional_text(data, at)
    if at != len(data):
        if at > len(data):
            raise IndexError
        raise RecordError(f"the invocation has {len(data) - at} bytes after its end")
    if (
        max_attempts < 0
        or (version is not None and version < 0)
        or (deadline_ms is not None and deadline_ms < 0)
    ):
        raise RecordError("the invocation has a negative version, number of attempts or deadline")
    return Invocation(
        data[PREFIX_BYTES:_FUNCTION_AT],
        function,
        arguments,
        version,
        max_attempts,
        deadline_ms,
        parent,
        ancestry,
        ordering_key,
        idempotency_key,
        limit_key,
        _ORIGINS[origin],
        trace_parent,
        submitted_ms,
    )


def _read_optional_long(data: bytes, at: int) -> tuple[int | None, int]:
    """Reads a number or null."""
    branch, at = decode_long(data, at)
    if branch == 0:
        return None, at
    if branch != 1:
        raise RecordError(f"branch {branch} of a union of 2")
    return decode_long(data, at)


def _read_optional_text(data: bytes, at: int) -> tuple[str | None, int]:
    """Reads a text or null."""
    length, at = _read_optional_long(data, at)
    if length is None:
        return None, at
    if length < 0:
        raise RecordError(f"a text of {length} bytes")
    return data[at : at + length].decode(), at + length


def _read_ids(data: bytes, at: int) -> tuple[tuple[CallId, ...], int]:
    """Reads an array of call ids."""
    ids: list[CallId] = []
    while True:
        count, at = decode_long(data, at)
        if count == 0:
            return tuple(ids), at
        if count < 0:
            count = -count
            size, at = decode_long(data, at)
            if size != 16 * count:
                raise RecordError(f"a block of {size} bytes for {count} call ids")
        if len(ids) + count > MAX_DEPTH:
            raise RecordError(f"more than {MAX_DEPTH} ancestors")
        end = at + 16 * count
        if end > len(data):
            raise IndexError
        ids.extend(data[start : start + 16] for start in range(at, end, 16))
        at = end


def invocation_values(invocation: Invocation) -> Values:
    """The invocation as fastavro takes it."""
    return {
        "call_id": invocation.call_id,
        "function": invocation.function,
        "arguments": invocation.arguments,
        "submitted_ms": invocation.submitted_ms,
        "version": invocation.version,
        "max_attempts": invocation.max_attempts,
        "deadline_ms": invocation.deadline_ms,
        "parent": invocation.parent,
        "ancestry": list(invocation.ancestry),
        "ordering_key": invocation.ordering_key,
        "idempotency_key": invocation.idempotency_key,
        "limit_key": invocation.limit_key,
        "origin": invocation.origin.name,
        "trace_parent": invocation.trace_parent,
    }


def _from_values(values: Values) -> Invocation:
    """An invocation that fastavro resolved to the latest version."""
    if len(values["ancestry"]) > MAX_DEPTH:
        raise RecordError(f"more than {MAX_DEPTH} ancestors")
    numbers = (values[name] for name in ("submitted_ms", "max_attempts", "version", "deadline_ms"))
    if any(number is not None and number < 0 for number in numbers):
        raise RecordError("the invocation has a negative version, number of attempts, deadline or time")
    return Invocation(
        **{
            **values,
            "ancestry": tuple(values["ancestry"]),
            "origin": Origin(_SYMBOLS.index(values["origin"])),
        }
    )

"""The history of a call: its earlier failures in at most 2 KiB, small enough to travel in a header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from pelton.core.call import Failure, InputHeaders
from pelton.errors import RecordError

MAX_HISTORY_BYTES: Final = 2048
"""A header of every later attempt carries it; the first failure and the latest ones tell the most."""

_TYPE_LENGTH: Final = 96
_MESSAGE_LENGTH: Final = 200
_CODE_LENGTH: Final = 32
# Cut to these, an entry takes at most 96*4 + 200*4 + 32*4 + 25 = 1,337 bytes, and one always fits.

_Entry = tuple[str, str, str, bool, int]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Entry]).decode


def read_history(history: bytes) -> tuple[Failure, ...]:
    """The failures in a history, oldest first, without their tracebacks; b"" is the empty history.

    Raises:
        RecordError: it is no history, or over 2 KiB.
    """
    return tuple(
        Failure(type=type_, message=message, code=code, retriable=retriable, attempt=attempt)
        for type_, message, code, retriable, attempt in _entries(history)
    )


def append_history(history: bytes, failure: Failure) -> bytes:
    """The history with one more failure at its end.

    Long messages are cut and tracebacks left out. While the whole is over 2 KiB, the second oldest goes.

    Raises:
        RecordError: `history` is no history.
    """
    entries = _entries(history)
    entries.append(
        (
            _cut(failure.type, _TYPE_LENGTH),
            _cut(failure.message, _MESSAGE_LENGTH),
            _cut(failure.code, _CODE_LENGTH),
            failure.retriable,
            failure.attempt,
        )
    )
    while len(encoded := _encode(entries)) > MAX_HISTORY_BYTES:
        del entries[1 if len(entries) > 2 else 0]
    return encoded


def with_history(headers: InputHeaders, failures: Sequence[Failure]) -> InputHeaders:
    """Headers whose history has these failures at its end."""
    history = headers.history
    for failure in failures:
        history = append_history(history, failure)
    return headers._replace(history=history)


def _entries(history: bytes) -> list[_Entry]:
    """The raw entries."""
    if not history:
        return []
    if len(history) > MAX_HISTORY_BYTES:
        raise RecordError(f"a history of {len(history)} bytes is over the limit of {MAX_HISTORY_BYTES}")
    try:
        return _decode(history)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RecordError(f"a history that cannot be read: {error}") from error


def _cut(text: str, length: int) -> str:
    """At most `length` characters that UTF-8 can carry."""
    if len(text) > length:
        text = text[: length - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()

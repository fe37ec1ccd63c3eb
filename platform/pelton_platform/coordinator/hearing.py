"""What executors say, checked: user code has the channel too, and may write to it what it wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pelton.core.call import Failure
from pelton.protocol.frames import FromExecutor
from pelton_platform.coordinator import relay
from pelton_platform.redaction import NOTHING, Redactor

_CHUNKS: Final = int(FromExecutor.CHUNKS)
_OUTCOME: Final = int(FromExecutor.OUTCOME)
_POISON: Final = int(FromExecutor.POISON)
_PLACES: Final = (int(FromExecutor.PARK), int(FromExecutor.UNPARK))


def is_sound(record: Sequence[Any]) -> bool:
    """Whether the fields of a record, which has its length, are of their types; ids of runs were checked."""
    kind = record[0]
    if kind in relay.KINDS:
        return relay.is_sound(record)
    if kind in _PLACES:
        return True
    if kind == _OUTCOME:
        value, failure, submitted = record[2:]
        if type(submitted) is not int:
            return False
        if failure is None:
            return type(value) is bytes
        return value is None and _types(failure, str, str, str, str, bool, int)
    if kind == _CHUNKS:
        return type(record[2]) is list and all(type(item) is bytes for item in record[2])
    if kind == _POISON:
        return type(record[2]) is str
    _, call_id, attempt, source, level, logger, text, fields, at_ms, dropped = record
    return (
        (call_id is None or (type(call_id) is bytes and len(call_id) == 16))
        and _types([attempt, source, level, logger, text, at_ms, dropped], int, str, str, str, str, int, int)
        and type(fields) is list
        and all(type(field) is list and len(field) == 2 for field in fields)
    )


def _types(values: object, *kinds: type) -> bool:
    return (
        isinstance(values, list)
        and len(values) == len(kinds)
        and all(type(value) is kind for value, kind in zip(values, kinds, strict=True))
    )


def failure_of(parts: Sequence[Any] | None, redact: Redactor = NOTHING) -> Failure | None:
    """A failure as an executor sends it, without the values of secrets."""
    if parts is None:
        return None
    kind, message, traceback, code, retriable, after_ms = parts
    return redact.of_failure(Failure(kind, message, traceback, code, retriable, after_ms=after_ms))

"""Dead letters, log records, cancellations and timers to bytes and back."""

from __future__ import annotations

from typing import Final

from pelton.core.call import Cancellation, DeadLetter, Timer
from pelton.core.spec import LogRecord
from pelton.errors import RecordError
from pelton.protocol.avro import Subject
from pelton.protocol.result import failure_from, failure_values
from pelton.protocol.text import clean_text

DEAD_LETTER: Final = Subject("dead_letter")
LOG_RECORD: Final = Subject("log_record")
CANCELLATION: Final = Subject("cancellation")
TIMER: Final = Subject("timer")

MAX_QUOTED_BYTES: Final = 900 * 1024
"""Longer values are cut in dead letters: a dead letter must fit its topic whatever killed the record."""

MAX_QUOTED_HEADER_BYTES: Final = 64 * 1024
"""So many bytes of headers, and of the key, are quoted."""


MAX_REASON_CHARACTERS: Final = 200
"""The reason of a cancellation is cut to this."""


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """A dead letter; value, key and headers are cut where they would not fit, and `truncated` is set.

    Raises:
        RecordError: a value does not fit its field.
    """
    value, key = letter.value, letter.key
    truncated = letter.truncated
    if value is not None and len(value) > MAX_QUOTED_BYTES:
        value, truncated = value[:MAX_QUOTED_BYTES], True
    if key is not None and len(key) > MAX_QUOTED_HEADER_BYTES:
        key, truncated = key[:MAX_QUOTED_HEADER_BYTES], True
    headers = []
    room = MAX_QUOTED_HEADER_BYTES
    for name, content in letter.headers:
        room -= len(name) + len(content or b"")
        if room < 0:
            truncated = True
            break
        headers.append({"name": clean_text(name), "value": content})
    return DEAD_LETTER.encode(
        {
            "call_id": letter.call_id,
            "function": clean_text(letter.function),
            "reason": failure_values(letter.reason),
            "topic": letter.topic,
            "partition": letter.partition,
            "offset": letter.offset,
            "given_up_ms": letter.given_up_ms,
            "history": [failure_values(failure) for failure in letter.history],
            "key": key,
            "value": value,
            "headers": headers,
            "truncated": truncated,
        }
    )


def decode_dead_letter(data: bytes | None) -> DeadLetter:
    """Reads a dead letter.

    Raises:
        RecordError: it is none.
    """
    values = DEAD_LETTER.decode(data)
    if min(values["partition"], values["offset"], values["given_up_ms"]) < 0:
        raise RecordError("a dead_letter with a negative partition, offset or time")
    return DeadLetter(
        **{
            **values,
            "reason": failure_from(values["reason"]),
            "history": tuple(failure_from(failure) for failure in values["history"]),
            "headers": tuple((header["name"], header["value"]) for header in values["headers"]),
        }
    )


def encode_log(record: LogRecord) -> bytes:
    """One line of output.

    Raises:
        RecordError: a value does not fit its field.
    """
    return LOG_RECORD.encode(
        {
            "at_ms": record.at_ms,
            "function": record.function,
            "container": record.container,
            "instance": record.instance,
            "pid": record.pid,
            "call_id": record.call_id,
            "attempt": record.attempt,
            "source": record.source,
            "text": clean_text(record.text),
            "level": clean_text(record.level),
            "logger": clean_text(record.logger),
            "fields": [
                {"name": clean_text(name), "value": clean_text(value)} for name, value in record.fields
            ],
            "dropped": record.dropped,
        }
    )


def decode_log(data: bytes | None) -> LogRecord:
    """Reads one line of output.

    Raises:
        RecordError: it is none.
    """
    values = LOG_RECORD.decode(data)
    if min(values["at_ms"], values["pid"], values["attempt"], values["dropped"]) < 0:
        raise RecordError("a log_record with a negative number")
    return LogRecord(
        **{**values, "fields": tuple((field["name"], field["value"]) for field in values["fields"])}
    )


def encode_cancellation(request: Cancellation) -> bytes:
    """A request to cancel a call; a long reason is cut.

    Raises:
        RecordError: a value does not fit its field.
    """
    return CANCELLATION.encode(
        {
            "call_id": request.call_id,
            "requested_ms": request.requested_ms,
            "reason": clean_text(request.reason[:MAX_REASON_CHARACTERS]),
        }
    )


def decode_cancellation(data: bytes | None) -> Cancellation:
    """Reads a request to cancel a call.

    Raises:
        RecordError: it is none.
    """
    values = CANCELLATION.decode(data)
    if values["requested_ms"] < 0:
        raise RecordError("a cancellation with a negative time")
    return Cancellation(**{**values, "reason": values["reason"][:MAX_REASON_CHARACTERS]})


def encode_timer(timer: Timer) -> bytes:
    """A timer.

    Raises:
        RecordError: a value does not fit its field.
    """
    return TIMER.encode(
        {
            "due_ms": timer.due_ms,
            "topic": timer.topic,
            "partition": timer.partition,
            "key": timer.key,
            "value": timer.value,
            "headers": [{"name": name, "value": value} for name, value in timer.headers],
        }
    )


def decode_timer(data: bytes | None) -> Timer:
    """Reads a timer.

    Raises:
        RecordError: it is none.
    """
    values = TIMER.decode(data)
    if min(values["due_ms"], values["partition"]) < 0:
        raise RecordError("a timer with a negative time or partition")
    return Timer(
        **{**values, "headers": tuple((header["name"], header["value"]) for header in values["headers"])}
    )

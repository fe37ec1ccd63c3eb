"""From messages of the Kafka client to input records: the headers are read, the body is only looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from confluent_kafka import Message

from pelton.core.call import InputHeaders
from pelton.core.decisions import InputRecord
from pelton.errors import RecordError
from pelton.protocol.codec import is_invocation
from pelton.protocol.headers import decode_input
from pelton.protocol.topics import MAX_RECORD_BYTES


class Intake:
    """Turns messages of the client into input records; what cannot be read is marked as poison.

    Args:
        function: name that records must bear in their header.
    """

    __slots__ = ("_function",)

    def __init__(self, function: str) -> None:
        self._function = function

    def read(self, message: Message) -> InputRecord:
        """One record; never raises for what the log holds."""
        offset, value, key = message.offset() or 0, message.value(), message.key()
        at_ms = message.timestamp()[1]
        raw: Sequence[tuple[str, bytes | None]] = ()
        headers: InputHeaders | None = None
        try:
            raw = cast("Sequence[tuple[str, bytes | None]]", message.headers() or ())
            headers = decode_input(raw)
        except RecordError as error:
            return InputRecord(offset, None, value, key, raw, str(error), at_ms)
        except UnicodeDecodeError as error:
            reason = f"a header has a name that is no UTF-8: {error}"
            return InputRecord(offset, None, value, key, raw, reason, at_ms)
        poison = ""
        if (
            headers.function != self._function
            or key is None
            or not is_invocation(value)
            or value is None
            or len(value) > MAX_RECORD_BYTES
        ):
            poison = self._reason(headers, value, key)
        return InputRecord(offset, headers, value, key, raw, poison, at_ms)

    def _reason(self, headers: InputHeaders, value: bytes | None, key: bytes | None) -> str:
        """Why a record with readable headers is poison."""
        if value is None:
            return "the record has no value"
        if key is None:
            return "the record has no key"
        if headers.function != self._function:
            return f"the record is for the function {headers.function!r}, not {self._function!r}"
        if len(value) > MAX_RECORD_BYTES:
            return f"the record has {len(value)} bytes; at most {MAX_RECORD_BYTES} are taken"
        if len(value) < 10:
            return f"the record is cut off after {len(value)} bytes"
        return f"unknown schema fingerprint {value[:10].hex()}"

"""Output of user code on its way to `control.logs`: bounded, with what had to be dropped counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pelton.core.spec import LogRecord
from pelton.errors import RecordError, TransportError
from pelton.protocol.codec import encode_log
from pelton.protocol.topics import Control, Topics
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.log import KafkaFailure
from pelton_platform.coordinator.counters import Counters
from pelton_platform.redaction import NOTHING, Redactor

MAX_WAITING: Final = 5_000
"""Lines waiting for acknowledgement; output must never take the room that results need."""


class OutputLog:
    """Sends lines of output.

    Args:
        producer: sends.
        topics: names in the namespace.
        counters: gets `log_lines` and `log_lines_dropped`.
        redact: takes the values of secrets out of them.
    """

    def __init__(
        self, producer: RecordProducer, topics: Topics, counters: Counters, redact: Redactor = NOTHING
    ) -> None:
        self._redact = redact
        self._producer = producer
        self._topic = topics.control(Control.LOGS)
        self._counters = counters
        self._lock = threading.Lock()
        self._waiting = 0
        self._dropped: dict[str, int] = {}

    def write(self, records: Sequence[LogRecord]) -> None:
        """Sends lines, or drops and counts them while too many wait; the next line sent says how many."""
        for record in records:
            with self._lock:
                if self._waiting >= MAX_WAITING:
                    before = self._dropped.get(record.function, 0)
                    self._dropped[record.function] = before + 1 + record.dropped
                    self._counters.add("log_lines_dropped")
                    continue
                self._waiting += 1
                missing = self._dropped.pop(record.function, 0)
            self._send(record, missing)

    def _send(self, record: LogRecord, missing: int) -> None:
        line = replace(record, dropped=record.dropped + missing) if missing else record
        if self._redact.has_values:
            fields = tuple((self._redact(name), self._redact(text)) for name, text in record.fields)
            line = replace(line, text=self._redact(record.text), fields=fields)
        try:
            self._producer.send(
                self._topic,
                encode_log(line),
                key=record.call_id or record.container.encode(),
                on_report=self._reported,
            )
            self._counters.add("log_lines")
        except (TransportError, RecordError):
            self._counters.add("log_lines_dropped")
            self._reported(None, -1, -1, -1)

    def _reported(self, failure: KafkaFailure | None, partition: int, offset: int, at_ms: int) -> None:
        with self._lock:
            self._waiting -= 1
        if failure is not None:
            self._counters.add("log_lines_dropped")

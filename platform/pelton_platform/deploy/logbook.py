"""The log topic as it is read: the past of so many minutes, and what comes."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from pelton.core.call import parse_call_id
from pelton.core.spec import LogRecord as LogLine
from pelton.errors import RecordError
from pelton.protocol import codec
from pelton.protocol.topics import CONTROL_PARTITIONS, Control, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.probe import broker_now_ms
from pelton.transport.kafka.reader import PartitionReader
from pelton.transport.log import LogRecord

_READ_S: Final = 30.0


def selector(name: str) -> Callable[[LogLine], bool]:
    """Return what decides whether a line belongs to a function, container or call of this name."""
    try:
        call_id = parse_call_id(name)
    except ValueError:
        return lambda line: name in (line.function, line.container, line.instance)
    return lambda line: line.call_id == call_id


class Past:
    """Lines that were there, and where the log ended then."""

    def __init__(self, lines: list[LogLine], ends: dict[Any, int]) -> None:
        self.lines = lines
        self.ends = ends


class LogTopic:
    """The log topic of a platform; a context manager.

    Args:
        config: How to reach Kafka.
        tell: Gets lines for people about records that cannot be read.
    """

    def __init__(self, config: ConnectionConfig, tell: Callable[[str], None] = lambda line: None) -> None:
        self._tell = tell
        topic = Topics(config.namespace).control(Control.LOGS)
        self._config = config
        self._places = [(topic, number) for number in range(CONTROL_PARTITIONS)]
        self._came: queue.SimpleQueue[Sequence[LogRecord]] = queue.SimpleQueue()
        self._reader = PartitionReader(config, self._came.put)

    def __enter__(self) -> LogTopic:
        """Return the topic."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the connection."""
        self._reader.close()

    def ends(self) -> dict[Any, int]:
        """Return where the log ends now."""
        return self._reader.ends(self._places)

    def read_past(self, back_ms: int) -> Past:
        """Read what was logged in the last so many milliseconds."""
        since_ms = broker_now_ms(self._config) - back_ms
        ends = self.ends()
        starts = self._reader.offsets_for_time(self._places, since_ms)
        spans = {place: (starts[place], ends[place]) for place in self._places if starts[place] >= 0}
        records = (record for batch in self._reader.ranges.read(spans, _READ_S) for record in batch)
        return Past(self.decode(records), ends)

    def follow(self, ends: dict[Any, int]) -> Iterable[LogLine]:
        """Yield what is logged from there on, for ever."""
        self._reader.follow_all(ends)
        while True:
            try:
                batch = self._came.get(timeout=0.5)
            except queue.Empty:
                continue  # lets Ctrl-C through where a blocked get does not
            yield from self.decode(batch)

    def take(self, timeout_s: float) -> Sequence[LogRecord]:
        """Return records that have come; none when nothing comes in time."""
        try:
            return self._came.get(timeout=timeout_s)
        except queue.Empty:
            return ()

    def start(self, ends: dict[Any, int]) -> None:
        """Let records come from there on; `take` returns them."""
        self._reader.follow_all(ends)

    def decode(self, records: Iterable[LogRecord]) -> list[LogLine]:
        """Return the lines in records, without those that are none."""
        lines = []
        for record in records:
            if record.value is None:
                continue  # a probe
            try:
                lines.append(codec.decode_log(record.value))
            except RecordError as error:
                self._tell(f"a record of the log topic cannot be read: {error}")
        return lines

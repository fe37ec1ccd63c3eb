"""The log as a transport sees it: records, failures of appends, and the port that every log implements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Headers = Sequence[tuple[str, bytes | None]]
"""Headers of a record, in order; values may be null."""

Place = tuple[str, int]
"""A topic and one of its partitions."""


class LogRecord(NamedTuple):
    """One record as it lies in a log.

    Attributes:
        topic: name of the topic.
        partition: number of the partition.
        offset: position in the partition.
        appended_ms: append time in broker milliseconds since the epoch.
        key: None when the record has none.
        value: None for a null value.
        headers: in order; empty when the record has none.
    """

    topic: str
    partition: int
    offset: int
    appended_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class KafkaFailure:
    """Why the log did not acknowledge a record.

    Attributes:
        code: Kafka's error code; negative ones are made by the client.
        name: Kafka's name of the error, e.g. "MSG_SIZE_TOO_LARGE".
        message: what it says, for people.
        certain: whether the record certainly is not in the log; False means that it may be there.
    """

    code: int
    name: str
    message: str
    certain: bool

    def __str__(self) -> str:
        """The message and Kafka's name for it."""
        return f"{self.message} ({self.name})"


OnReport = Callable[[KafkaFailure | None, int, int, int], None]
"""Called once for each append, on the reporting thread: failure or None, partition, offset, append time.

The time is in broker milliseconds. Partition, offset and time mean something only without a failure. Must
not block.
"""

OnBatch = Callable[[Sequence[LogRecord]], None]
"""Called on the reading thread with records that arrived together, in order per partition; must not block."""

OnLost = Callable[[str, int, int, str], None]
"""Called on the reading thread when a followed partition cannot be read on: topic, partition, offset, reason.

The offset lies outside the log, or the partition is gone. The partition is not followed any more.
"""


class Log(Protocol):
    """What the routing of calls needs of a log; Kafka and the memory broker have one each."""

    def now_ms(self) -> int:
        """Broker time in milliseconds since the epoch."""

    def append(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        partition: int | None,
        headers: Headers,
        on_report: OnReport,
    ) -> None:
        """Appends a record; `partition=None` chooses by the key. Blocks only for backpressure.

        Raises:
            SubmitFailed: backpressure did not end in time: not sent, and `on_report` is not called.
        """

    def starts(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Offset of the first record still there, by partition.

        Raises:
            TransportError: no answer in time, or a partition does not exist.
        """

    def ends(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Offset the next record will get, by partition. Raises as `starts`."""

    def offsets_for_time(self, places: Sequence[Place], at_ms: int) -> Mapping[Place, int]:
        """Offset of the first record appended at or after a broker time, -1 for none. Raises as `starts`."""

    def follow(self, topic: str, partition: int, offset: int) -> None:
        """Delivers the records of a partition from this offset on. A partition is followed once."""

    def unfollow(self, topic: str, partition: int) -> None:
        """Stops it; records that are on their way may still be delivered. Idempotent."""

    def read_ranges(
        self, ranges: Mapping[Place, tuple[int, int]], timeout_s: float
    ) -> Iterator[Sequence[LogRecord]]:
        """Reads each partition from its start offset up to, not including, its end offset, in batches.

        Raises:
            DataLoss: a start lies below the start of the log.
            TransportError: it took longer than `timeout_s`, or the broker refused.
        """

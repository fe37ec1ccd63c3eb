"""Compacted topics read into memory: the newest value of each key, kept up to date."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaException

from pelton.errors import TransportError
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.failures import error_of, transport_error
from pelton.transport.kafka.reader import ASK_TIMEOUT_S, PartitionReader
from pelton.transport.kafka.settings import ClientLog, connection_settings
from pelton.transport.log import LogRecord, Place

OnChange = Callable[[str, bytes, bytes | None], None]
"""Called on the reading thread: topic, key, new value or None for a deletion. Must not block."""

_MISSING_S: Final = 5.0
_ASK_AGAIN_S: Final = 0.1
_READ_AGAIN_S: Final = 1.0
_LOGGER: Final = logging.getLogger("pelton.transport")


class CompactedTables:
    """Several compacted topics, read by one consumer.

    Args:
        config: the connection.
        topics: full names; all their partitions are read from the start.
        on_change: told of each record after it was taken in; exceptions are logged.
        read_committed: hides records of open and aborted transactions.
        keep: whether values are kept; without, `on_change` is all there is.

    Raises:
        TransportError: the broker cannot be reached, or a topic does not exist.
    """

    def __init__(
        self,
        config: ConnectionConfig,
        topics: Sequence[str],
        on_change: OnChange | None = None,
        *,
        read_committed: bool = False,
        keep: bool = True,
    ) -> None:
        self._servers = config.bootstrap_servers
        self._keep = keep
        self._on_change = on_change
        self._closed = False
        self._changed = threading.Condition()
        self._values: dict[str, dict[bytes, bytes]] = {topic: {} for topic in topics}
        self._reached: dict[Place, int] = {}
        partitions = count_partitions(config, topics)
        self._places = [(topic, number) for topic in topics for number in range(partitions[topic])]
        self._reader = PartitionReader(
            config,
            self._take,
            on_lost=self._lost,
            on_end=self._ended,
            read_committed=read_committed,
            name="pelton-tables",
        )
        try:
            self._ends = self._reader.ends(self._places)
            starts = self._reader.starts(self._places)
            self._reader.follow_all(starts)
        except BaseException:
            self._reader.close()
            raise

    def get(self, topic: str, key: bytes) -> bytes | None:
        """The newest value of a key, None when it has none."""
        return self._values[topic].get(key)

    def items(self, topic: str) -> list[tuple[bytes, bytes]]:
        """All keys and values as they are now."""
        with self._changed:
            return list(self._values[topic].items())

    def wait_end(self, timeout_s: float, *, refresh: bool = False) -> bool:
        """Waits until everything was read that was in the topics when reading began.

        Args:
            timeout_s: limit for the waiting.
            refresh: whether to ask for the ends anew: then all that is acknowledged by now is waited for.

        Returns:
            False when time ran out.

        Raises:
            TransportError: the ends cannot be asked for.
        """
        deadline = time.monotonic() + timeout_s
        if refresh:
            self._ends = self._reader.ends(self._places, timeout_s)
        ends = self._ends
        with self._changed:
            return self._changed.wait_for(
                lambda: all(self._reached.get(place, 0) >= end for place, end in ends.items()),
                timeout=max(0.0, deadline - time.monotonic()),
            )

    def close(self) -> None:
        """Stops reading. Idempotent."""
        self._closed = True
        self._reader.close()

    def _take(self, records: Sequence[LogRecord]) -> None:
        if self._keep:
            self._keep_values(records)
        # Told before the position moves: who waits for the end finds the changes handled.
        if self._on_change is not None:
            for record in records:
                if record.key is not None:
                    try:
                        self._on_change(record.topic, record.key, record.value)
                    except Exception:
                        _LOGGER.exception("a change in %s could not be handled", record.topic)
        with self._changed:
            for record in records:
                self._reached[record.topic, record.partition] = record.offset + 1
            self._changed.notify_all()

    def _keep_values(self, records: Sequence[LogRecord]) -> None:
        with self._changed:
            for record in records:
                if record.key is not None:
                    values = self._values[record.topic]
                    if record.value is None:
                        values.pop(record.key, None)
                    else:
                        values[record.key] = record.value

    def _ended(self, topic: str, partition: int, end: int) -> None:
        """The end is reached, also where the last records are markers or were compacted away."""
        with self._changed:
            self._reached[topic, partition] = max(end, self._reached.get((topic, partition), 0))
            self._changed.notify_all()

    def _lost(self, topic: str, partition: int, offset: int, reason: str) -> None:
        """Reads the partition anew from its start: the newest values of all keys are there."""
        _LOGGER.error("%s/%s is read anew, offset %s was lost: %s", topic, partition, offset, reason)
        with self._changed:
            self._reached.pop((topic, partition), None)
        self._read_anew(topic, partition)

    def _read_anew(self, topic: str, partition: int) -> None:
        if self._closed:
            return
        try:
            start = self._reader.starts([(topic, partition)])[topic, partition]
            self._reader.follow(topic, partition, start)
        except TransportError as error:
            _LOGGER.error("%s/%s cannot be read, which is tried again: %s", topic, partition, error)
            again = threading.Timer(_READ_AGAIN_S, self._read_anew, (topic, partition))
            again.daemon = True
            again.start()


class CompactedTable(Mapping[bytes, bytes]):
    """One compacted topic as a mapping from key to newest value; arguments as for `CompactedTables`."""

    def __init__(
        self,
        config: ConnectionConfig,
        topic: str,
        on_change: Callable[[bytes, bytes | None], None] | None = None,
        *,
        read_committed: bool = False,
    ) -> None:
        told: OnChange | None = None
        if on_change is not None:
            receiver = on_change

            def told_of_key(_: str, key: bytes, value: bytes | None) -> None:
                receiver(key, value)

            told = told_of_key
        self._topic = topic
        self._tables = CompactedTables(config, [topic], told, read_committed=read_committed)

    def __getitem__(self, key: bytes) -> bytes:
        value = self._tables.get(self._topic, key)
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[bytes]:
        return iter([key for key, _ in self._tables.items(self._topic)])

    def __len__(self) -> int:
        return len(self._tables.items(self._topic))

    def wait_end(self, timeout_s: float, *, refresh: bool = False) -> bool:
        """As `CompactedTables.wait_end`."""
        return self._tables.wait_end(timeout_s, refresh=refresh)

    def close(self) -> None:
        """Stops reading. Idempotent."""
        self._tables.close()


def count_partitions(
    config: ConnectionConfig,
    topics: Sequence[str],
    *,
    timeout_s: float = ASK_TIMEOUT_S,
    missing_s: float = _MISSING_S,
) -> dict[str, int]:
    """Number of partitions of each topic.

    Args:
        config: the connection.
        topics: full names.
        timeout_s: how long an unreachable broker is tried.
        missing_s: how long a topic may take to become known.

    Raises:
        TopicsMissing: the broker answers and does not know a topic.
        TransportError: the broker cannot be reached.
    """
    asker = Consumer({**connection_settings(config), "group.id": "pelton"}, logger=ClientLog())
    deadline = time.monotonic() + timeout_s
    missing_until = time.monotonic() + missing_s
    pause = threading.Event()
    try:
        while True:
            try:
                known = asker.list_topics(timeout=max(0.05, deadline - time.monotonic())).topics
            except KafkaException as error:
                if time.monotonic() >= deadline:
                    raise transport_error(
                        "asking for topics", error_of(error), config.bootstrap_servers
                    ) from error
            else:
                missing = [
                    topic
                    for topic in topics
                    if topic not in known or not known[topic].partitions or known[topic].error is not None
                ]
                if not missing:
                    return {topic: len(known[topic].partitions) for topic in topics}
                if time.monotonic() >= missing_until:
                    raise TopicsMissing(
                        f"Kafka at {config.bootstrap_servers} has no topic {', '.join(missing)}"
                    )
            pause.wait(_ASK_AGAIN_S)
    finally:
        asker.close()


class TopicsMissing(TransportError):
    """The broker answers and does not know the topics."""

    retriable = False

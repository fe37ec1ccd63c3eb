"""Following partitions: one consumer with one poll thread for any number of partitions, without a group."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka import lifetime
from pelton.transport.kafka.failures import MISSING, is_passing
from pelton.transport.kafka.outage import Outage
from pelton.transport.kafka.ranges import EARLIEST, LATEST, RangeReader, record_of
from pelton.transport.kafka.settings import ClientLog, reader_settings
from pelton.transport.log import LogRecord, OnBatch, OnLost, Place

ASK_TIMEOUT_S: Final = 10.0
"""How long questions to the broker are tried."""

OnEnd = Callable[[str, int, int], None]
"""Called on the reading thread each time the end of a partition is reached: topic, partition, end offset."""

_BATCH: Final = 500
# The client lets one thread at a time into a consumer and cannot wake one that polls: what is asked of a
# consumer is done by its own thread between two polls, so this bounds how late it is done.
_POLL_S: Final = 0.05
_IDLE_S: Final = 0.5
_METADATA_S: Final = 2.0
_COMPLAIN_EVERY_S: Final = 30.0
_LOGGER: Final = logging.getLogger("pelton.transport")


class PartitionReader:
    """Follows partitions from given offsets and hands their records on in batches.

    Args:
        config: the connection.
        on_batch: receives all records that arrived together; must not block. Exceptions it raises are logged.
        on_lost: told of partitions that cannot be read on; they are not followed any more. None logs it.
        on_end: told each time the end of a partition is reached.
        read_committed: hides records of open and aborted transactions.
        name: of the thread.
    """

    def __init__(
        self,
        config: ConnectionConfig,
        on_batch: OnBatch,
        *,
        on_lost: OnLost | None = None,
        on_end: OnEnd | None = None,
        read_committed: bool = False,
        name: str = "pelton-reader",
    ) -> None:
        self._servers = config.bootstrap_servers
        self._on_batch = on_batch
        self._on_lost = on_lost
        self._on_end = on_end
        self._changed = threading.Condition()
        self._followed: set[Place] = set()
        self._dropping: set[Place] = set()
        self._wanted: deque[Callable[[], None]] = deque()
        self._closed = False
        self._complained_at = -_COMPLAIN_EVERY_S
        self._outage = Outage(config.bootstrap_servers, name)
        settings = reader_settings(config, ends=on_end is not None, read_committed=read_committed)
        self._consumer = Consumer({**settings, "error_cb": self._on_error}, logger=ClientLog())
        self._ranges = RangeReader(config)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()
        lifetime.track(self)

    def follow(self, topic: str, partition: int, offset: int) -> None:
        """Delivers this partition's records from a numeric offset on.

        Raises:
            ValueError: the partition is followed already, or the offset is no number of a record.
        """
        self.follow_all({(topic, partition): offset})

    def follow_all(self, offsets: dict[Place, int]) -> None:
        """Follows many partitions at once. Raises as `follow`."""
        if min(offsets.values(), default=0) < 0:
            raise ValueError("a partition is followed from a numeric offset: ask for the end first")
        assigned = [TopicPartition(*place, offset) for place, offset in offsets.items()]
        with self._changed:
            if again := self._followed.intersection(offsets):
                raise ValueError(f"{sorted(again)} are followed already")
            self._followed.update(offsets)
            self._wanted.append(lambda: self._assign(assigned))
            self._changed.notify_all()

    def unfollow(self, topic: str, partition: int) -> None:
        """Stops following: what is not being handed on at this moment is no longer delivered. Idempotent."""
        with self._changed:
            if (topic, partition) in self._followed:
                self._followed.discard((topic, partition))
                self._dropping.add((topic, partition))
                self._wanted.append(lambda: self._unassign((topic, partition)))
                self._changed.notify_all()

    def followed(self) -> frozenset[Place]:
        """What is followed now."""
        with self._changed:
            return frozenset(self._followed)

    def starts(self, places: Sequence[Place], timeout_s: float = ASK_TIMEOUT_S) -> dict[Place, int]:
        """Offset of the first record still there, by partition.

        Raises:
            TransportError: no answer in time, or a partition does not exist.
        """
        return self._ranges.ask(places, EARLIEST, timeout_s)

    def ends(self, places: Sequence[Place], timeout_s: float = ASK_TIMEOUT_S) -> dict[Place, int]:
        """Offset the next record will get, by partition. Raises as `starts`."""
        return self._ranges.ask(places, LATEST, timeout_s)

    def offsets_for_time(
        self, places: Sequence[Place], at_ms: int, timeout_s: float = ASK_TIMEOUT_S
    ) -> dict[Place, int]:
        """Offset of the first record appended at or after a broker time, -1 for none. Raises as `starts`."""
        return self._ranges.ask(places, max(0, at_ms), timeout_s)

    def read_range(
        self, topic: str, partition: int, start: int, end: int, timeout_s: float = 30.0
    ) -> Iterator[LogRecord]:
        """Reads a stretch of the log on the calling thread, beside what is followed.

        Raises:
            DataLoss: the start lies below the start of the log.
            TransportError: it took longer than `timeout_s`, or the broker refused.
        """
        for batch in self._ranges.read({(topic, partition): (start, end)}, timeout_s):
            yield from batch

    @property
    def ranges(self) -> RangeReader:
        """Reads stretches of several partitions at once."""
        return self._ranges

    def close(self) -> None:
        """Stops following and ends the thread. Idempotent."""
        if self._closed:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)
        self._ranges.close()
        lifetime.untrack(self)

    def abandon(self) -> None:
        """In a forked child: the inherited consumer is never used and never destroyed."""
        self._closed = True
        self._changed = threading.Condition()
        lifetime.keep_for_ever(self._consumer)

    # --- the reading thread ---

    def _serve(self) -> None:
        consumer = self._consumer
        poll, consume = consumer.poll, consumer.consume
        while not self._closed:
            self._outage.look(consumer)
            if self._wanted or not self._followed:
                self._do_wanted()
                continue
            first = poll(_POLL_S)
            if first is None:
                continue
            messages = consume(_BATCH, 0)
            messages.insert(0, first)
            try:
                self._handle(messages)
            except Exception:
                _LOGGER.exception("records that arrived could not be handled")
        consumer.close()

    def _assign(self, assigned: list[TopicPartition]) -> None:
        """Makes the topics known before they are assigned: the client itself looks once a second."""
        for topic in {part.topic for part in assigned}:
            try:
                self._consumer.list_topics(topic, timeout=_METADATA_S)
            except KafkaException as error:
                _LOGGER.debug("Kafka reader: %s", error)
        self._consumer.incremental_assign(assigned)

    def _unassign(self, place: Place) -> None:
        self._consumer.incremental_unassign([TopicPartition(*place)])
        with self._changed:
            self._dropping.discard(place)

    def _do_wanted(self) -> None:
        """Carries out what was asked; waits for something to follow when there is nothing."""
        with self._changed:
            wanted = list(self._wanted)
            self._wanted.clear()
            if not wanted and not self._followed and not self._closed:
                self._changed.wait(_IDLE_S)
        for action in wanted:
            try:
                action()
            except KafkaException:
                _LOGGER.exception("the Kafka client refused to change what is followed")

    def _handle(self, messages: list[Message]) -> None:
        records: list[LogRecord] = []
        for message in messages:
            if message.error() is None:
                if not self._dropping or (message.topic(), message.partition()) not in self._dropping:
                    records.append(record_of(message))
                continue
            # What came before an event is handed on before it is told.
            if records:
                self._on_batch(records)
                records = []
            self._event(message)
        if records:
            self._on_batch(records)

    def _event(self, message: Message) -> None:
        error, topic, partition = message.error(), message.topic(), message.partition()
        if error is None:
            return
        if topic is None or partition is None or partition < 0:
            self._on_error(error)
        elif error.code() == KafkaError._PARTITION_EOF:
            if self._on_end is not None:
                self._on_end(topic, partition, message.offset() or 0)
        elif self._goes_on(error):
            self._on_error(error)
        else:
            self._lose(topic, partition, message.offset() or 0, error.str())

    def _lose(self, topic: str, partition: int, offset: int, reason: str) -> None:
        self.unfollow(topic, partition)
        if self._on_lost is None:
            _LOGGER.error("%s/%s cannot be read on: %s", topic, partition, reason)
        else:
            self._on_lost(topic, partition, offset, reason)

    def _find_missing(self) -> None:
        """Gives up the partitions whose topics are gone; the client only tells that there are some."""
        known = self._consumer.list_topics(timeout=_METADATA_S).topics
        for topic, partition in sorted(self.followed()):
            if topic not in known or partition not in known[topic].partitions:
                self._lose(topic, partition, -1, "the topic or the partition does not exist any more")

    @staticmethod
    def _goes_on(error: KafkaError) -> bool:
        """Whether the client goes on by itself after this error; a topic that is gone does not come back."""
        if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            return False
        return is_passing(error)

    def _on_error(self, error: KafkaError) -> None:
        """Says once in a while that something is wrong; the client goes on trying by itself."""
        if self._outage.told(error):
            return
        serious = error.code() in (
            KafkaError._AUTHENTICATION,
            KafkaError.SASL_AUTHENTICATION_FAILED,
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
        )
        if error.code() in MISSING and self._find_missing not in self._wanted:
            self._wanted.append(self._find_missing)
        now = time.monotonic()
        if serious and now - self._complained_at >= _COMPLAIN_EVERY_S:
            self._complained_at = now
            _LOGGER.warning("Kafka at %s: %s", self._servers, error.str())
        else:
            _LOGGER.debug("Kafka reader: %s", error)

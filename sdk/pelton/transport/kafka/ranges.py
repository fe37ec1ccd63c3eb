"""Questions about offsets, and reading a stretch of the log from its start to a known end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pelton.errors import DataLoss, TransportError
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka import lifetime
from pelton.transport.kafka.failures import MISSING, error_of, is_passing, transport_error
from pelton.transport.kafka.settings import PROPAGATION_MS, ClientLog, reader_settings
from pelton.transport.log import LogRecord, Place

LATEST: Final = -1
EARLIEST: Final = -2

_BATCH: Final = 500
_ASK_AGAIN_S: Final = 0.05
_MISSING_S: Final = PROPAGATION_MS / 1000  # a topic just made, or without a leader, is unknown for a moment
_STALLED_S: Final = 5.0  # a consumer that brings nothing for so long is replaced
_POOL: Final = 2
_LOGGER: Final = logging.getLogger("pelton.transport")


def record_of(message: Message) -> LogRecord:
    """A message of the client as a record."""
    return LogRecord(
        message.topic(),  # type: ignore[arg-type]
        message.partition(),  # type: ignore[arg-type]
        message.offset(),  # type: ignore[arg-type]
        message.timestamp()[1],
        message.key(),
        message.value(),
        message.headers() or (),  # type: ignore[arg-type]
    )


def ask_offsets(
    consumer: Consumer, places: Sequence[Place], at: int, timeout_s: float, servers: str
) -> dict[Place, int]:
    """Asks the broker for offsets, and again while the answer may change in a moment.

    Args:
        consumer: any consumer; it need not be assigned anything.
        places: the partitions.
        at: broker time in ms, `LATEST` for the end, `EARLIEST` for the start.
        timeout_s: how long to try.
        servers: for the message.

    Returns:
        The offset of each; for a time, -1 where no record is as young.

    Raises:
        TransportError: no answer in time, or a partition does not exist.
    """
    deadline = time.monotonic() + timeout_s
    missing_until = min(deadline, time.monotonic() + _MISSING_S)
    pause = threading.Event()
    wanted = {place: TopicPartition(place[0], place[1], at) for place in places}
    found: dict[Place, int] = {}
    while wanted:
        trouble: KafkaError | None = None
        where = next(iter(wanted))
        try:
            left_s = max(0.05, deadline - time.monotonic())
            answers = consumer.offsets_for_times(list(wanted.values()), timeout=left_s)
        except KafkaException as error:
            trouble = error_of(error)
        else:
            for answer in answers:
                place = (answer.topic, answer.partition)
                if answer.error is None:
                    found[place] = answer.offset
                    del wanted[place]
                else:
                    trouble, where = answer.error, place
        if trouble is not None:
            patience = missing_until if trouble.code() in MISSING else deadline
            if not is_passing(trouble) or time.monotonic() >= patience:
                raise transport_error(f"asking for offsets of {where[0]}/{where[1]}", trouble, servers)
            pause.wait(_ASK_AGAIN_S)
            if trouble.code() in MISSING:
                _look_again(consumer, where[0])
    return found


def _look_again(consumer: Consumer, topic: str) -> None:
    """Asks what partitions a topic has: the client would go by its last answer for as long as we wait."""
    try:
        consumer.list_topics(topic, timeout=1.0)
    except KafkaException as error:
        _LOGGER.debug("asking for %s: %s", topic, error)


class RangeReader:
    """Reads stretches of the log on the calling thread; keeps a few idle consumers for the next time.

    Args:
        config: the connection.
        read_committed: hides records of aborted transactions, and waits for the end of open ones. Ends must
            be asked for elsewhere then: this reader takes what is before the first open transaction for all.
    """

    def __init__(self, config: ConnectionConfig, *, read_committed: bool = False) -> None:
        self._config = config
        self._read_committed = read_committed
        self._servers = config.bootstrap_servers
        self._lock = threading.Lock()
        self._idle: list[Consumer] = []
        self._busy: set[Consumer] = set()
        self._closed = False
        lifetime.track(self)

    def read(
        self, ranges: Mapping[Place, tuple[int, int]], timeout_s: float = 30.0
    ) -> Iterator[list[LogRecord]]:
        """Yields the records of each partition from its start up to, not including, its end, in batches.

        Order holds within a partition. Offsets that are not there any more (compacted, or markers) are
        passed over.

        Args:
            ranges: first offset and end offset by partition.
            timeout_s: limit for the whole reading.

        Raises:
            DataLoss: a start lies outside the log.
            TransportError: time ran out, or the broker refused.
        """
        open_ranges = {place: span for place, span in ranges.items() if span[0] < span[1]}
        if not open_ranges:
            return
        deadline = time.monotonic() + timeout_s
        while open_ranges:
            consumer, sound = self._take(), False
            try:
                yield from self._read(consumer, open_ranges, deadline)
                sound = not open_ranges
            except GeneratorExit:
                sound = True
                raise
            finally:
                self._give_back(consumer, sound=sound)

    def ask(self, places: Sequence[Place], at: int, timeout_s: float) -> dict[Place, int]:
        """As `ask_offsets`, with a consumer of this reader."""
        consumer, sound = self._take(), False
        try:
            found = ask_offsets(consumer, places, at, timeout_s, self._servers)
            sound = True
        finally:
            self._give_back(consumer, sound=sound)
        return found

    def close(self) -> None:
        """Ends the idle consumers; a reading under way ends its own. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for consumer in idle:
            consumer.close()
        lifetime.untrack(self)

    def abandon(self) -> None:
        """In a forked child: inherited consumers are never used and never destroyed."""
        for consumer in (*self._idle, *self._busy):
            lifetime.keep_for_ever(consumer)
        self._lock = threading.Lock()
        self._idle, self._busy, self._closed = [], set(), True

    def _read(
        self, consumer: Consumer, open_ranges: dict[Place, tuple[int, int]], deadline: float
    ) -> Iterator[list[LogRecord]]:
        """Reads what is open; returns earlier when this consumer brings nothing, with the rest still open."""
        consumer.assign([TopicPartition(*place, start) for place, (start, _) in open_ranges.items()])
        heard_at = time.monotonic()
        while open_ranges and time.monotonic() - heard_at < _STALLED_S:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                names = ", ".join(f"{topic}/{partition}" for topic, partition in open_ranges)
                raise TransportError(f"reading {names} at {self._servers} took too long")
            first = consumer.poll(min(left_s, 1.0))
            if first is None:
                continue
            batch: list[LogRecord] = []
            for message in (first, *consumer.consume(_BATCH, 0)):
                place = (message.topic() or "", message.partition() or 0)
                span = open_ranges.get(place)
                error = message.error()
                if error is not None:
                    self._judge(error, place, message.offset(), open_ranges)
                elif span is not None:
                    offset: int = message.offset()  # type: ignore[assignment]
                    if span[0] <= offset < span[1]:
                        batch.append(record_of(message))
                    if offset >= span[1] - 1:
                        del open_ranges[place]
                    else:
                        open_ranges[place] = (offset + 1, span[1])
            if batch:
                yield batch
            heard_at = time.monotonic()

    def _judge(
        self, error: KafkaError, place: Place, offset: int | None, open_ranges: dict[Place, tuple[int, int]]
    ) -> None:
        """An event that is no record: the end of a partition, a position outside the log, or trouble."""
        code = error.code()
        span = open_ranges.get(place)
        if code == KafkaError._PARTITION_EOF:
            # The end of the log is the end of the range when what lay between is not there any more.
            if span is not None and offset is not None and offset >= span[1]:
                del open_ranges[place]
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if span is not None:
                raise DataLoss(
                    f"{place[0]}/{place[1]} cannot be read from offset {span[0]}: it lies outside the log"
                )
        elif not is_passing(error):
            raise transport_error(f"reading {place[0]}/{place[1]}", error, self._servers)

    def _take(self) -> Consumer:
        with self._lock:
            if self._closed:
                raise TransportError("the connection is closed")
            if self._idle:
                consumer = self._idle.pop()
            else:
                consumer = Consumer(
                    reader_settings(self._config, ends=True, read_committed=self._read_committed),
                    logger=ClientLog(),
                )
            self._busy.add(consumer)
            return consumer

    def _give_back(self, consumer: Consumer, *, sound: bool) -> None:
        """Keeps a consumer for the next time, unless it failed: that one may be the reason."""
        consumer.unassign()
        with self._lock:
            self._busy.discard(consumer)
            if sound and not self._closed and len(self._idle) < _POOL:
                self._idle.append(consumer)
                return
        consumer.close()

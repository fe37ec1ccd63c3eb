"""A consumer that calls a deployed function for the records of a topic: nothing is lost, nothing stops it.

Offsets are committed only for records that are done: the call has its outcome, or the record is in the
dead-letter topic. Records finish in any order; which of those behind the committed offset are done travels
with every commit, so a restart repeats only what was open. Everything is set by the environment:

    TOPIC, FUNCTION      what is consumed, and the function that is called with each value
    GROUP                consumer group; FUNCTION-dispatch unless set
    START                earliest (the default) or latest: where a new group begins
    DECODE               json (the default), text or bytes
    TOMBSTONES           skip (the default), or call: the function gets None
    BATCH, BATCH_AGE     from 2 on the function gets a list of up to so many values (1); one that is not
                         full is sent when its oldest value has waited so many seconds (0.5)
    MAX_OPEN             most records open at a time (200)
    RETRIES, RETRY_PAUSE further calls for a record whose call failed (3), the first after so many seconds
                         (1), each later one after twice as many, 60 at most
    DEAD_LETTERS         topic of the records that were given up (TOPIC.dead-letters); made if it is not there
    DRAIN                seconds that open calls get when partitions are taken away, or on SIGTERM (20)
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from pelton import CallFuture, function_ref
from pelton.core.offsets import CommitMeta, FinishedRuns, decode_metadata, encode_metadata
from pelton.errors import CallCancelled, CallFailed, FunctionNotFound, PeltonError, TransportError
from pelton.transport.config import find_context

LONGEST_PAUSE_S = 60.0
COMMIT_EVERY_S = 1.0
TELL_EVERY_S = 10.0
POLL_S = 0.05
READY_S = 300.0

log = logging.getLogger("dispatch")


@dataclass(frozen=True)
class Settings:
    """What the environment says; see the module's docstring."""

    topic: str
    function: str
    group: str
    start: str
    decode: str
    tombstones: str
    batch: int
    batch_age_s: float
    max_open: int
    retries: int
    retry_pause_s: float
    dead_letters: str
    drain_s: float

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Settings:
        """Reads and checks all of them.

        Raises:
            ValueError: one is missing or wrong; the message names it.
        """

        def text(name: str, default: str = "", among: Sequence[str] = ()) -> str:
            value = environ.get(name, "") or default
            if not value:
                raise ValueError(f"{name} is not set")
            if among and value not in among:
                raise ValueError(f"{name}={value!r}: it is one of {', '.join(among)}")
            return value

        def number(name: str, default: float, least: float) -> float:
            value = text(name, str(default))
            try:
                found = float(value)
            except ValueError:
                found = least - 1
            if not least <= found <= 1e9:
                raise ValueError(f"{name}={value!r}: it is a number from {least:g} on")
            return found

        topic, function = text("TOPIC"), text("FUNCTION")
        return cls(
            topic=topic,
            function=function,
            group=text("GROUP", f"{function}-dispatch"),
            start=text("START", "earliest", ("earliest", "latest")),
            decode=text("DECODE", "json", tuple(DECODERS)),
            tombstones=text("TOMBSTONES", "skip", ("skip", "call")),
            batch=int(number("BATCH", 1, 1)),
            batch_age_s=number("BATCH_AGE", 0.5, 0),
            max_open=int(number("MAX_OPEN", 200, 1)),
            retries=int(number("RETRIES", 3, 0)),
            retry_pause_s=number("RETRY_PAUSE", 1, 0),
            dead_letters=text("DEAD_LETTERS", f"{topic}.dead-letters"),
            drain_s=number("DRAIN", 20, 0),
        )


def _text(data: bytes) -> str:
    return data.decode()


DECODERS: dict[str, Callable[[bytes], Any]] = {"json": json.loads, "text": _text, "bytes": bytes}


@dataclass(eq=False)
class Record:
    """A record that is open.

    Attributes:
        message: as it came.
        tracker: of its partition; a record whose partition was taken away counts for nothing.
        value: what the function gets.
        failures: calls that failed.
    """

    message: Message
    tracker: Tracker
    value: Any = None
    failures: int = 0


class Tracker:
    """Which records of a partition are done.

    Args:
        offset: where reading begins.
        metadata: of the last commit, None when there was none.
    """

    def __init__(self, offset: int, metadata: str | None) -> None:
        known = decode_metadata(metadata)
        self.done = FinishedRuns(offset, () if known is None else known.finished)
        self.next = offset
        self.open = 0
        self.committed = offset
        self.lost = False

    def take(self, offset: int) -> bool:
        """Takes the next record of the log; False when it was done before."""
        while self.next < offset:
            # Compacted away, or a marker of a transaction: nothing will ever come there.
            if self.next not in self.done:
                self.done.add(self.next)
            self.next += 1
        self.next = offset + 1
        if offset in self.done:
            return False
        self.open += 1
        return True

    def finish(self, offset: int) -> None:
        """A record is done."""
        self.open -= 1
        self.done.add(offset)

    def commit(self, topic: str, partition: int) -> TopicPartition:
        """What to commit: the first record that is not done, and those behind it that are."""
        base = self.done.base
        text = encode_metadata(CommitMeta(finished=self.done.runs()), base)
        # Above the broker's limit only the offset is committed: more is repeated, nothing is lost.
        return TopicPartition(topic, partition, base, metadata=text if len(text) < 4000 else "")


class Dispatcher:
    """The loop; all of it runs on one thread, and callbacks of the consumer come on it too.

    Args:
        settings: see `Settings`.
        kafka: settings of the Kafka client that lead to the brokers.
    """

    def __init__(self, settings: Settings, kafka: Mapping[str, Any]) -> None:
        self.settings = settings
        self.stopping = False
        self.counts = {"called": 0, "retried": 0, "given up": 0, "skipped": 0}
        self._call = function_ref(settings.function).async_call
        self._decode = DECODERS[settings.decode]
        self._trackers: dict[int, Tracker] = {}
        self._batch: list[Record] = []
        self._batch_since = 0.0
        self._later: list[tuple[float, int, Record, Callable[[], None]]] = []
        self._ended: SimpleQueue[tuple[CallFuture[Any], list[Record]]] = SimpleQueue()
        self._buried: SimpleQueue[tuple[Record, str, str, KafkaError | None]] = SimpleQueue()
        self._paused = False
        self._number = 0
        self._commit_at = self._tell_at = 0.0
        self._producer = Producer({**kafka, "enable.idempotence": True, "acks": "all"})
        self._consumer = Consumer(
            {
                **kafka,
                "group.id": settings.group,
                "auto.offset.reset": settings.start,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "partition.assignment.strategy": "cooperative-sticky",
                # Partitions of a consumer that died are with another one after so many ms.
                "session.timeout.ms": 10_000,
                "heartbeat.interval.ms": 2_500,
            }
        )

    def run(self) -> None:
        """Consumes until `stopping`; then open calls get their time, and what is done is committed."""
        self._consumer.subscribe(
            [self.settings.topic],
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._lost,
        )
        try:
            while not self.stopping:
                self._turn(POLL_S)
            self._send_batch()
            self._settle(list(self._trackers.values()), self.settings.drain_s)
        finally:
            self._commit(asynchronous=False)
            self._consumer.close()
            self._producer.flush(5)
            self._tell("ended")

    # --- partitions ---

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for found in consumer.committed(partitions, timeout=30):
            if found.error is not None:
                raise KafkaException(found.error)
            start = TopicPartition(found.topic, found.partition)
            if found.offset == OFFSET_INVALID:
                low, high = consumer.get_watermark_offsets(start, timeout=30)
                start.offset = low if self.settings.start == "earliest" else high
                self._trackers[found.partition] = Tracker(start.offset, None)
            else:
                start.offset = found.offset
                self._trackers[found.partition] = Tracker(found.offset, found.metadata)
            consumer.incremental_assign([start])
        log.info("assigned %s", sorted(self._trackers))
        self._paused = False

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """They go to another member: open calls get their time, so that it has little to repeat."""
        leaving = [self._trackers[each.partition] for each in partitions if each.partition in self._trackers]
        self._send_batch()
        self._settle(leaving, self.settings.drain_s)
        self._commit(asynchronous=False)
        self._drop(partitions)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """They went already: nothing of them can be committed any more."""
        self._drop(partitions)

    def _drop(self, partitions: Sequence[TopicPartition]) -> None:
        for each in partitions:
            tracker = self._trackers.pop(each.partition, None)
            if tracker is not None:
                tracker.lost = True
        self._batch = [record for record in self._batch if not record.tracker.lost]
        log.info("released %s", sorted(each.partition for each in partitions))

    # --- one turn ---

    def _turn(self, wait_s: float) -> None:
        """Takes what is there, and does what is due."""
        room = self._breathe()
        first = self._consumer.poll(wait_s)
        messages = [] if first is None else [first, *self._consumer.consume(max(0, min(500, room - 1)), 0)]
        for message in messages:
            error = message.error()
            if error is None:
                self._take(message)
            elif error.fatal():
                raise KafkaException(error)
            else:
                log.warning("%s", error.str())
        self._do_due()

    def _do_due(self) -> None:
        """What calls and the dead-letter topic have answered, retries, batches, commits."""
        self._producer.poll(0)
        self._hear()
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            _, _, record, again = heapq.heappop(self._later)
            if not record.tracker.lost:
                again()
        if self._batch and now - self._batch_since >= self.settings.batch_age_s:
            self._send_batch()
        if now >= self._commit_at:
            self._commit_at = now + COMMIT_EVERY_S
            self._commit(asynchronous=True)
        if now >= self._tell_at:
            self._tell_at = now + TELL_EVERY_S
            self._tell(f"open {sum(tracker.open for tracker in self._trackers.values())}")

    def _breathe(self) -> int:
        """Stops taking while enough is open, and goes on when half of it is done; returns the room left."""
        count = sum(tracker.open for tracker in self._trackers.values())
        full = count >= (self.settings.max_open // 2 if self._paused else self.settings.max_open)
        if full != self._paused:
            places = self._consumer.assignment()
            self._consumer.pause(places) if full else self._consumer.resume(places)
            self._paused = full
        return self.settings.max_open - count

    def _take(self, message: Message) -> None:
        tracker = self._trackers.get(message.partition() or 0)
        offset = message.offset() or 0
        if tracker is None or not tracker.take(offset):
            return
        record = Record(message, tracker)
        data = message.value()
        if data is None and self.settings.tombstones == "skip":
            self.counts["skipped"] += 1
            tracker.finish(offset)
            return
        try:
            record.value = None if data is None else self._decode(data)
        except Exception as error:
            # Whatever bytes somebody wrote: they stop neither this consumer nor what is behind them.
            self._bury(record, type(error).__name__, f"the value is no {self.settings.decode}: {error}")
            return
        if not self._batch:
            self._batch_since = time.monotonic()
        self._batch.append(record)
        if len(self._batch) >= self.settings.batch:
            self._send_batch()

    # --- calls ---

    def _send_batch(self) -> None:
        batch, self._batch = self._batch, []
        if batch:
            self._start(batch)

    def _start(self, records: list[Record]) -> None:
        """Calls the function for one record, or for a list of them."""
        values = [record.value for record in records]
        try:
            future = self._call(values if self.settings.batch > 1 else values[0])
        except (TransportError, FunctionNotFound) as error:
            # Nothing can be called now: that is no failure of the records.
            log.warning("calls cannot be sent, which is tried again: %s", error)
            for record in records:
                self._start_later(record, self.settings.retry_pause_s)
        except (PeltonError, TypeError) as error:
            if len(records) == 1:
                self._bury(records[0], type(error).__name__, str(error))
            else:
                for record in records:
                    self._start([record])
        else:
            self.counts["called"] += 1
            future.add_done_callback(lambda done: self._ended.put((future, records)))

    def _hear(self) -> None:
        """Takes in which calls have ended, and which records are in the dead-letter topic."""
        while True:
            try:
                future, records = self._ended.get_nowait()
            except Empty:
                break
            error = future.exception(0)
            if error is None:
                for record in records:
                    self._finish(record)
            else:
                self._failed(records, error, future.call_id)
        while True:
            try:
                record, kind, text, refusal = self._buried.get_nowait()
            except Empty:
                return
            if refusal is None:
                self.counts["given up"] += 1
                self._finish(record)
            else:
                log.error("the dead-letter topic did not take a record, which is tried again: %s", refusal)
                self._bury_later(record, kind, text)

    def _finish(self, record: Record) -> None:
        if not record.tracker.lost:
            record.tracker.finish(record.message.offset() or 0)

    def _failed(self, records: list[Record], error: BaseException, call_id: str) -> None:
        """Each record is tried again by itself: one that is bad takes no others along."""
        for record in records:
            if record.tracker.lost:
                continue
            # A call that Kafka did not acknowledge may or may not run: it is made again, as after a crash.
            record.failures += isinstance(error, CallFailed)
            if record.failures > self.settings.retries or isinstance(error, CallCancelled):
                kind = getattr(error, "type", "") or type(error).__name__
                self._bury(record, kind, f"{error} (call {call_id})")
            else:
                self.counts["retried"] += 1
                self._start_later(record, self.settings.retry_pause_s * 2 ** max(0, record.failures - 1))

    def _start_later(self, record: Record, seconds: float) -> None:
        self._at(record, seconds, lambda: self._start([record]))

    def _bury_later(self, record: Record, kind: str, text: str) -> None:
        self._at(record, self.settings.retry_pause_s, lambda: self._bury(record, kind, text))

    def _at(self, record: Record, seconds: float, again: Callable[[], None]) -> None:
        self._number += 1
        due = time.monotonic() + min(LONGEST_PAUSE_S, seconds)
        heapq.heappush(self._later, (due, self._number, record, again))

    def _bury(self, record: Record, kind: str, text: str) -> None:
        """Gives a record up: it goes to the dead-letter topic as it was, with where it came from and why."""
        message = record.message
        headers = [
            *(message.headers() or []),
            ("origin-topic", (message.topic() or "").encode()),
            ("origin-partition", str(message.partition()).encode()),
            ("origin-offset", str(message.offset()).encode()),
            ("origin-timestamp", str(message.timestamp()[1]).encode()),
            ("error-type", kind.encode("utf-8", "replace")),
            ("error-message", text.encode("utf-8", "replace")[:4096]),
            ("attempts", str(record.failures).encode()),
        ]
        try:
            self._producer.produce(
                self.settings.dead_letters,
                message.value(),
                message.key(),
                headers=headers,
                on_delivery=lambda refusal, _: self._buried.put((record, kind, text, refusal)),
            )
        except (BufferError, KafkaException) as error:
            log.error("the dead-letter topic takes nothing now, which is tried again: %s", error)
            self._bury_later(record, kind, text)

    # --- ends ---

    def _settle(self, trackers: list[Tracker], seconds: float) -> None:
        """Waits until nothing of these partitions is open, or the time is over."""
        deadline = time.monotonic() + seconds
        while any(tracker.open for tracker in trackers) and time.monotonic() < deadline:
            self._producer.poll(POLL_S)
            self._do_due()

    def _commit(self, *, asynchronous: bool) -> None:
        dirty = {
            partition: tracker for partition, tracker in self._trackers.items() if self._is_dirty(tracker)
        }
        if not dirty:
            return
        offsets = [tracker.commit(self.settings.topic, partition) for partition, tracker in dirty.items()]
        try:
            if asynchronous:
                self._consumer.commit(offsets=offsets, asynchronous=True)
            else:
                self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            # During a rebalance, for example: the next commit says it all again, and more.
            log.warning("not committed now: %s", error)
            return
        for tracker in dirty.values():
            tracker.committed = tracker.done.base

    @staticmethod
    def _is_dirty(tracker: Tracker) -> bool:
        return tracker.done.base > tracker.committed or bool(tracker.done.gaps)

    def _tell(self, state: str) -> None:
        counted = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        log.info("%s: %s", state, counted)


def make_dead_letters(settings: Settings, kafka: Mapping[str, Any]) -> None:
    """Makes the dead-letter topic unless it is there; the topic that is consumed has to be.

    Raises:
        SystemExit: that one is not there.
    """
    admin = AdminClient(dict(kafka))
    known = admin.list_topics(timeout=30).topics
    if settings.topic not in known:
        raise SystemExit(f"topic {settings.topic!r} is not there: make it, or set TOPIC")
    if settings.dead_letters not in known:
        made = admin.create_topics([NewTopic(settings.dead_letters, 1, config={"retention.ms": "-1"})])
        try:
            made[settings.dead_letters].result(30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


def main() -> None:
    """Runs until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = Settings.read(os.environ)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    context = find_context()
    kafka = {**context.security, "bootstrap.servers": context.bootstrap_servers}
    make_dead_letters(settings, kafka)
    function_ref(settings.function).wait_ready(READY_S)
    dispatcher = Dispatcher(settings, kafka)

    def stop(_number: int, _frame: object) -> None:
        dispatcher.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log.info("%s -> %s, group %s", settings.topic, settings.function, settings.group)
    dispatcher.run()


if __name__ == "__main__":
    main()

"""Fires timers: appends each record when it is due, then removes its timer, for partitions it owns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final, Protocol

from pelton.core.call import Timer
from pelton.core.timers import Due, TimerBook
from pelton.errors import PeltonError, RecordError, TransportError
from pelton.protocol.codec import decode_timer
from pelton.protocol.topics import TopicKind, Topics
from pelton.transport.log import KafkaFailure, LogRecord, OnReport, Place
from pelton_platform import telemetry

AHEAD_MS: Final = 1_000
"""Records are appended so long before they are due: who takes them waits for the rest, to the millisecond."""

MOST_AT_ONCE: Final = 2_000
"""So many timers are fired together; the next ones follow at once."""

REPORTED_S: Final = 6.0
"""How long the acknowledgements of what was fired may take."""

GONE_PAUSE_MS: Final = 30_000
"""A timer whose topic is not there is tried again after so long: finding that out holds up the others."""

_NO_TOPIC: Final = frozenset(("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION"))
_NEAR: Final = 200
"""Timers so near to each other in the log are read with what lies between."""

_READ_S: Final = 10.0
_COMPLAIN_EVERY_S: Final = 5.0
_log = telemetry.get_logger(__name__)


class Ranges(Protocol):
    """Reads stretches of the log."""

    def read(self, ranges: Mapping[Place, tuple[int, int]], timeout_s: float) -> Iterator[list[LogRecord]]:
        """Yields records in batches."""


class Sender(Protocol):
    """Appends records."""

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        partition: int | None,
        headers: Sequence[tuple[str, bytes | None]] | None,
        on_report: OnReport,
    ) -> None:
        """Hands a record over."""


class Remover(Protocol):
    """Writes tombstones, if this process is still the owner."""

    def __call__(self, tombstones: Sequence[tuple[int, bytes, bytes | None]]) -> None:
        """Writes all of them or none; raises a TransportError."""


@dataclass(slots=True)
class _Owned:
    """A partition: what is known of it.

    Attributes:
        end: end of the log at the assignment: what is below it was there before.
        known: whether it was.
        removed: tombstones of former owners, by key, with their offsets.
    """

    end: int
    known: bool = False
    removed: dict[bytes, int] = field(default_factory=dict)


class TimerService:
    """The timers of the partitions that this process owns; one thread uses it.

    Args:
        topics: names of the namespace.
        topic: of the timers.
        ranges: reads timers again when they are due.
        sender: appends what they hold.
        remove: writes tombstones.
        now_ms: broker time.

    Attributes:
        counters: how often what happened.
    """

    def __init__(
        self,
        topics: Topics,
        topic: str,
        ranges: Ranges,
        sender: Sender,
        remove: Remover,
        now_ms: Callable[[], int],
    ) -> None:
        self._topics, self._topic = topics, topic
        self._ranges, self._sender, self._remove, self._now_ms = ranges, sender, remove, now_ms
        self._book = TimerBook()
        self._owned: dict[int, _Owned] = {}
        self._fired: list[LogRecord] = []
        self._without_topic: set[tuple[int, int]] = set()
        self._complained_at = 0.0
        self.counters: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Timers that wait, as far as they are known."""
        return len(self._book)

    # ---- the topic ----

    def assigned(self, ends: Mapping[int, int]) -> None:
        """See `SharedListener`."""
        for partition, end in ends.items():
            self._book.forget(partition)
            self._owned[partition] = _Owned(end)

    def gone(self, partitions: Sequence[int]) -> None:
        """See `SharedListener`."""
        for partition in partitions:
            self._owned.pop(partition, None)
            self._book.forget(partition)

    def records(self, batch: Sequence[LogRecord]) -> None:
        """See `SharedListener`."""
        for record in batch:
            own = self._owned.get(record.partition)
            if own is None or record.key is None:
                continue
            if record.value is None:
                if record.offset < own.end:
                    own.removed[record.key] = record.offset
                continue
            try:
                due_ms = decode_timer(record.value).due_ms
            except RecordError as error:
                self._refuse(record, str(error))
                continue
            self._book.add(record.partition, due_ms, record.offset)

    def reached(self, partition: int, offset: int) -> None:
        """See `SharedListener`."""
        own = self._owned.get(partition)
        if own is not None and offset >= own.end:
            own.known = True

    # ---- firing ----

    def fire(self) -> int:
        """Fires what is due soon; returns how many timers were taken from the book. Blocks meanwhile.

        What could not be fired stays: it is tried again with the next call.
        """
        # Before all of a partition is known, a timer may be one that a former owner has fired.
        unknown = [partition for partition, own in self._owned.items() if not own.known]
        if unknown:
            return 0
        try:
            self._clear()
        except PeltonError as error:
            # Fired twice is fired once too often: before these are removed nothing else is fired.
            self._complain("timers-not-removed", len(self._fired), error)
            return 0
        due = self._book.take(self._now_ms() + AHEAD_MS, MOST_AT_ONCE)
        if not due:
            return 0
        left = {(each.partition, each.offset): each for each in due}
        try:
            live = [record for record in self._read(due) if self._is_live(record)]
            # What was compacted away or removed has nothing left to do.
            left = {place: left[place] for place in ((each.partition, each.offset) for each in live)}
            for record in self._append(live):
                del left[record.partition, record.offset]
                self._fired.append(record)
            self._clear()
        except PeltonError as error:
            self._complain("timers-not-fired", len(left), error)
        for place, each in left.items():
            due_ms = self._now_ms() + GONE_PAUSE_MS if place in self._without_topic else each.due_ms
            self._book.add(each.partition, due_ms, each.offset)
        self._without_topic.clear()
        return len(due)

    def _clear(self) -> None:
        """Removes the timers that were fired, as far as their partitions are still owned."""
        tombstones = [
            (record.partition, record.key or b"", None)
            for record in self._fired
            if record.partition in self._owned
        ]
        if tombstones:
            self._remove(tombstones)
        self.counters["fired"] += len(self._fired)
        self._fired.clear()

    def _complain(self, event: str, count: int, error: PeltonError) -> None:
        self.counters["failed"] += 1
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_EVERY_S:
            self._complained_at = now
            _log.warning(event, count=count, reason=str(error))

    def _read(self, due: Iterable[Due]) -> Iterator[LogRecord]:
        """The records of timers, where they are still in the log."""
        wanted: dict[int, list[int]] = {}
        for each in due:
            wanted.setdefault(each.partition, []).append(each.offset)
        for offsets in wanted.values():
            offsets.sort()
        while wanted:
            spans: dict[Place, tuple[int, int]] = {}
            exact: set[tuple[int, int]] = set()
            for partition, offsets in list(wanted.items()):
                near = 1
                while near < len(offsets) and offsets[near] - offsets[near - 1] <= _NEAR:
                    near += 1
                spans[self._topic, partition] = (offsets[0], offsets[near - 1] + 1)
                exact.update((partition, offset) for offset in offsets[:near])
                wanted[partition] = offsets[near:]
                if not wanted[partition]:
                    del wanted[partition]
            for batch in self._ranges.read(spans, _READ_S):
                yield from (record for record in batch if (record.partition, record.offset) in exact)

    def _is_live(self, record: LogRecord) -> bool:
        own = self._owned.get(record.partition)
        if own is None or record.key is None or record.value is None:
            return False
        return own.removed.get(record.key, -1) < record.offset

    def _append(self, records: Sequence[LogRecord]) -> Iterator[LogRecord]:
        """Appends what timers hold; yields those that were acknowledged, or can never be fired."""
        answers: SimpleQueue[LogRecord | None] = SimpleQueue()

        def report(
            record: LogRecord, failure: KafkaFailure | None, _partition: int, _offset: int, _at: int
        ) -> None:
            if failure is not None and failure.name in _NO_TOPIC:
                self._without_topic.add((record.partition, record.offset))
            answers.put(record if failure is None else None)

        sent = 0
        for record in records:
            timer = self._sound(record)
            if timer is None:
                yield record
                continue
            self._sender.send(
                timer.topic,
                timer.value,
                key=timer.key,
                partition=timer.partition,
                headers=list(timer.headers),
                on_report=partial(report, record),
            )
            sent += 1
        deadline = time.monotonic() + REPORTED_S
        for _ in range(sent):
            try:
                answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise TransportError(f"timers were not answered in {REPORTED_S:g} s") from None
            if answer is not None:
                yield answer

    def _sound(self, record: LogRecord) -> Timer | None:
        try:
            timer = decode_timer(record.value)
            kind, _ = self._topics.parse(timer.topic)
        except (RecordError, ValueError) as error:
            self._refuse(record, str(error))
            return None
        if kind not in (TopicKind.INVOCATIONS, TopicKind.RETRIES):
            self._refuse(record, f"it is for {timer.topic}, which is no input topic")
            return None
        return timer

    def _refuse(self, record: LogRecord, reason: str) -> None:
        self.counters["refused"] += 1
        where = f"{record.topic}/{record.partition}/{record.offset}"
        _log.error("timer-refused", place=where, reason=reason)

"""Timers: few bytes each, fired once, not before all is known, removed when they were fired."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from pelton.core.call import Timer
from pelton.core.timers import Due, TimerBook
from pelton.errors import TransportError
from pelton.protocol.codec import encode_timer
from pelton.protocol.topics import Topics, timer_key
from pelton.transport.log import KafkaFailure, LogRecord, OnReport, Place
from pelton_platform.cron.timers import AHEAD_MS, GONE_PAUSE_MS, TimerService

TOPICS = Topics("ns")
TOPIC = "ns.control.timers"
REFUSED = KafkaFailure(-192, "_MSG_TIMED_OUT", "timed out", certain=False)


class Desk:
    """A service, its log, and what it did."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.log: list[LogRecord] = []
        self.appended: list[tuple[str, int | None, bytes | None]] = []
        self.tombstones: list[bytes] = []
        self.answer: KafkaFailure | None = None
        self.broken = False
        self.service = TimerService(TOPICS, TOPIC, self, self, self.remove, lambda: self.now_ms)

    def read(self, ranges: Mapping[Place, tuple[int, int]], timeout_s: float) -> Iterator[list[LogRecord]]:
        """As a reader of ranges."""
        for (_, partition), (start, end) in ranges.items():
            yield [each for each in self.log if each.partition == partition and start <= each.offset < end]

    def send(self, topic: str, value: bytes | None, *, on_report: OnReport, **rest: Any) -> None:
        """As a producer."""
        if self.answer is None:
            self.appended.append((topic, rest["partition"], value))
        on_report(self.answer, 0, 0, 0)

    def remove(self, tombstones: Sequence[tuple[int, bytes, bytes | None]]) -> None:
        """As the writer of tombstones."""
        if self.broken:
            raise TransportError("fenced")
        self.tombstones.extend(key for _, key, _ in tombstones)

    def timer(self, number: int, due_ms: int, *, topic: str = "", partition: int = 0) -> LogRecord:
        """A timer in the log."""
        value = encode_timer(
            Timer(due_ms, topic or TOPICS.retries("f"), 2, b"body %d" % number, None, (("id", b"x"),))
        )
        return self.put(timer_key(number.to_bytes(16, "big"), 2), value, partition)

    def put(self, key: bytes, value: bytes | None, partition: int = 0) -> LogRecord:
        """A record in the log."""
        record = LogRecord(TOPIC, partition, len(self.log), 0, key, value, ())
        self.log.append(record)
        return record

    def own(self, *partitions: int) -> None:
        """It becomes the owner, and reads what is there."""
        self.service.assigned({partition: len(self.log) for partition in partitions})
        self.service.records([each for each in self.log if each.partition in partitions])
        for partition in partitions:
            self.service.reached(partition, len(self.log))

    @property
    def bodies(self) -> list[bytes | None]:
        """What was appended."""
        return [value for _, _, value in self.appended]


def test_book_gives_what_is_due_and_keeps_the_rest() -> None:
    """Against a plain list, over random times, several partitions, and takes of any size."""
    rng = random.Random(7)
    book, plain = TimerBook(), []
    for offset in range(3_000):
        entry = Due(rng.randrange(600_000), rng.randrange(4), offset)
        plain.append(entry)
        book.add(entry.partition, entry.due_ms, entry.offset)
    for until in range(0, 660_000, 7_919):
        expected = {each for each in plain if each.due_ms < until}
        taken: set[Due] = set()
        while some := book.take(until, rng.randrange(1, 40)):
            taken.update(some)
        assert taken == expected
        plain = [each for each in plain if each not in expected]
        assert len(book) == len(plain)
    assert len(book) == 0


def test_book_of_a_million_timers_takes_little_memory() -> None:
    """At most 32 bytes each."""
    book = TimerBook()
    for offset in range(1_000_000):
        book.add(offset % 16, 1_790_000_000_000 + (offset * 7_919) % 86_400_000, offset)
    assert len(book) == 1_000_000
    assert book.size_bytes <= 32 * len(book)


def test_timer_is_fired_when_it_is_nearly_due_and_removed() -> None:
    """To its place, with its body; once."""
    desk = Desk()
    desk.timer(1, desk.now_ms + 5_000)
    desk.own(0)
    assert desk.service.fire() == 0
    desk.now_ms += 5_000 - AHEAD_MS + 1
    assert desk.service.fire() == 1
    assert desk.appended == [(TOPICS.retries("f"), 2, b"body 1")]
    assert desk.tombstones == [desk.log[0].key]
    desk.now_ms += 60_000
    assert desk.service.fire() == 0


def test_nothing_is_fired_before_all_is_known() -> None:
    """A timer whose tombstone comes further on was fired by a former owner."""
    desk = Desk()
    record = desk.timer(1, desk.now_ms)
    desk.put(record.key or b"", None)
    desk.timer(2, desk.now_ms)
    desk.service.assigned({0: 3})
    desk.service.records(desk.log[:1])
    desk.service.reached(0, 1)
    assert desk.service.fire() == 0
    desk.service.records(desk.log[1:])
    desk.service.reached(0, 3)
    desk.service.fire()
    assert desk.bodies == [b"body 2"]


def test_timer_written_again_after_its_tombstone_is_fired() -> None:
    """The same attempt may be delayed a second time."""
    desk = Desk()
    record = desk.timer(1, desk.now_ms)
    desk.put(record.key or b"", None)
    desk.timer(1, desk.now_ms)
    desk.own(0)
    desk.service.fire()
    assert desk.bodies == [b"body 1"]


def test_timer_that_was_not_acknowledged_is_fired_again() -> None:
    """And is not removed before."""
    desk = Desk()
    desk.timer(1, desk.now_ms)
    desk.own(0)
    desk.answer = REFUSED
    desk.service.fire()
    assert desk.tombstones == []
    desk.answer = None
    desk.service.fire()
    assert (desk.bodies, len(desk.tombstones)) == ([b"body 1"], 1)


def test_timer_whose_tombstone_fails_is_not_fired_again() -> None:
    """Nothing is, until it is removed, or another process has its partition."""
    desk = Desk()
    desk.timer(1, desk.now_ms)
    desk.own(0)
    desk.broken = True
    desk.service.fire()
    desk.timer(2, desk.now_ms)
    desk.service.records(desk.log[1:])
    assert desk.service.fire() == 0
    assert desk.bodies == [b"body 1"]
    desk.broken = False
    desk.service.fire()
    assert desk.bodies == [b"body 1", b"body 2"]
    assert len(desk.tombstones) == 2


def test_partition_that_went_is_left_alone() -> None:
    """Its timers are the next owner's, and so are tombstones of what was fired last."""
    desk = Desk()
    desk.timer(1, desk.now_ms, partition=0)
    desk.timer(2, desk.now_ms, partition=1)
    desk.own(0, 1)
    desk.service.gone([0])
    desk.service.fire()
    assert desk.bodies == [b"body 2"]
    assert desk.service.waiting == 0


@pytest.mark.parametrize("topic", ["ns.control.functions", "other.fn.f.retries", "ns.fn.f.results"])
def test_timer_for_no_input_topic_is_refused(topic: str) -> None:
    """Timers append to input topics of the namespace, whatever somebody wrote; it is told, and goes."""
    desk = Desk()
    desk.timer(1, desk.now_ms, topic=topic)
    desk.own(0)
    desk.service.fire()
    assert desk.appended == []
    assert desk.service.counters["refused"] == 1
    assert len(desk.tombstones) == 1


def test_rubbish_among_timers_is_told() -> None:
    """And stops nobody."""
    desk = Desk()
    desk.put(b"key", b"rubbish")
    desk.timer(1, desk.now_ms)
    desk.own(0)
    desk.service.fire()
    assert desk.bodies == [b"body 1"]
    assert desk.service.counters["refused"] == 1


def test_timer_of_a_function_that_is_gone_holds_up_others_seldom() -> None:
    """It stays, since the function may come back, and is tried again after a while."""
    desk = Desk()
    desk.timer(1, desk.now_ms)
    desk.own(0)
    desk.answer = KafkaFailure(3, "UNKNOWN_TOPIC_OR_PART", "no such topic", certain=True)
    assert desk.service.fire() == 1
    desk.answer = None
    assert desk.service.fire() == 0
    desk.now_ms += GONE_PAUSE_MS
    assert desk.service.fire() == 1
    assert desk.bodies == [b"body 1"]

"""What reading a stretch of the log promises when a consumer of the client library goes quiet or fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pelton.errors import TransportError
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka import ranges
from pelton.transport.kafka.ranges import RangeReader

PLACE = ("t", 0)


class Record:
    """A message of the client."""

    def __init__(self, offset: int, error: KafkaError | None = None) -> None:
        self._offset, self._error = offset, error

    def topic(self) -> str:
        return PLACE[0]

    def partition(self) -> int:
        return PLACE[1]

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return (2, 7)

    def key(self) -> None:
        return None

    def value(self) -> bytes:
        return b"%d" % self._offset

    def headers(self) -> None:
        return None

    def error(self) -> KafkaError | None:
        return self._error


class Consumers:
    """Makes consumers, each of which brings so many records from where it is assigned, then nothing.

    Attributes:
        made: all so far.
    """

    def __init__(self, brings: Sequence[int], refusal: KafkaError | None = None) -> None:
        self.made: list[Consumers.One] = []
        self._brings = list(brings)
        self._refusal = refusal

    def __call__(self, settings: object, logger: object) -> Consumers.One:
        self.made.append(Consumers.One(self._brings.pop(0), self._refusal))
        return self.made[-1]

    class One:
        """One consumer."""

        def __init__(self, brings: int, refusal: KafkaError | None) -> None:
            self._brings = brings
            self._refusal = refusal
            self.starts: list[int] = []
            self.at = 0
            self.closed = False

        def assign(self, places: Sequence[Any]) -> None:
            self.at = places[0].offset
            self.starts.append(self.at)

        def unassign(self) -> None:
            return None

        def poll(self, timeout: float) -> Record | None:
            if self._refusal is not None:
                return Record(0, self._refusal)
            if not self._brings:
                return None
            self._brings -= 1
            self.at += 1
            return Record(self.at - 1)

        def consume(self, count: int, timeout: float) -> list[Record]:
            return []

        def close(self) -> None:
            self.closed = True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer counts as stalled at once."""
    monkeypatch.setattr(ranges, "_STALLED_S", 0.01)


def reader(monkeypatch: pytest.MonkeyPatch, consumers: Consumers) -> RangeReader:
    monkeypatch.setattr(ranges, "Consumer", consumers)
    return RangeReader(ConnectionConfig("h:1"))


@pytest.mark.usefixtures("quick")
def test_ranges_a_consumer_that_goes_quiet_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one reads on where it stopped, nothing twice, and the quiet one is never used again."""
    consumers = Consumers([3, 0, 10])
    reading = reader(monkeypatch, consumers)
    offsets = [record.offset for batch in reading.read({PLACE: (5, 12)}, 10) for record in batch]
    assert offsets == list(range(5, 12))
    assert [one.starts for one in consumers.made] == [[5], [8], [8]]
    assert [one.closed for one in consumers.made] == [True, True, False]
    assert [len(batch) for batch in reading.read({PLACE: (0, 1)}, 10)] == [1]
    assert consumers.made[2].starts == [8, 0]
    reading.close()


def test_ranges_a_slow_reader_of_batches_keeps_its_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that the caller takes between two batches is not the consumer's."""
    monkeypatch.setattr(ranges, "_STALLED_S", 0.05)
    consumers = Consumers([2])
    for batch in reader(monkeypatch, consumers).read({PLACE: (0, 2)}, 10):
        before = time.monotonic()
        while time.monotonic() < before + 0.1:
            continue
        assert len(batch) == 1
    assert len(consumers.made) == 1


def test_ranges_a_consumer_that_failed_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trouble that ends a reading may come from the consumer: the next reading gets a new one."""
    consumers = Consumers([1, 1], KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    reading = reader(monkeypatch, consumers)
    for _ in range(2):
        with pytest.raises(TransportError):
            list(reading.read({PLACE: (0, 1)}, 10))
    assert [one.closed for one in consumers.made] == [True, True]


@pytest.mark.usefixtures("quick")
def test_ranges_time_runs_out_however_many_consumers_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for the whole reading."""
    consumers = Consumers([0] * 1_000)
    with pytest.raises(TransportError, match="took too long"):
        list(reader(monkeypatch, consumers).read({PLACE: (0, 1)}, 0.2))
    assert len(consumers.made) > 1


class Forgetful:
    """A consumer that goes by an old answer about a topic until it is made to ask again."""

    def __init__(self) -> None:
        self.asked_again: list[str] = []

    def offsets_for_times(self, places: Sequence[Any], timeout: float) -> Sequence[Any]:
        if not self.asked_again:
            raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
        return [TopicPartition(place.topic, place.partition, 7) for place in places]

    def list_topics(self, topic: str, timeout: float) -> None:
        self.asked_again.append(topic)


def test_ranges_a_partition_that_is_unknown_is_asked_for_again() -> None:
    """A broker that comes back has no leaders for a moment; the client would keep to that for 10 s."""
    consumer = Forgetful()
    began = time.monotonic()
    found = ranges.ask_offsets(consumer, [PLACE], ranges.LATEST, 10.0, "here")  # type: ignore[arg-type]
    assert found == {PLACE: 7}
    assert consumer.asked_again == [PLACE[0]]
    assert time.monotonic() - began < 5

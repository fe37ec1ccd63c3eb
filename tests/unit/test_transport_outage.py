"""What clients say of an outage: one line when it begins, one when it is over, whatever librdkafka tells."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError, KafkaException

from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka import outage
from pelton.transport.kafka.outage import Outage
from pelton.transport.kafka.producer import RecordProducer

DOWN = KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down")


class Brokers:
    """A client that is told whether somebody answers it."""

    def __init__(self, settings: dict[str, Callable[[KafkaError], None]] | None = None) -> None:
        self.tell = (settings or {}).get("error_cb")
        self.answering = False
        self.asked = 0

    def list_topics(self, topic: str | None = None, *, timeout: float) -> object:
        self.asked += topic is None
        if not self.answering:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return object()

    def poll(self, timeout: float) -> int:
        """As the client does while nobody answers: it says so with each try."""
        time.sleep(0.002)
        if self.tell is not None and not self.answering:
            self.tell(DOWN)
        return 0

    def close(self) -> bool:
        return True

    def __len__(self) -> int:
        return 0


class Lines:
    """What was said, as it grows."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __len__(self) -> int:
        return len(self._caplog.messages)

    @property
    def last(self) -> str:
        return self._caplog.messages[-1]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """What was said; the brokers are asked without pauses."""
    monkeypatch.setattr(outage, "_LOOK_EVERY_S", 0.0)
    caplog.set_level(logging.INFO, "pelton.transport")
    return Lines(caplog)


def test_an_outage_is_told_once_and_its_end_once(lines: Lines) -> None:
    """A hundred errors of one outage are one line; one more says that it is over; the next counts anew."""
    watch, brokers = Outage("h:1", "me"), Brokers()
    for number in range(1, 3):
        brokers.answering = False
        for _ in range(100):
            assert watch.told(DOWN)
            watch.look(brokers)
        assert len(lines) == 2 * number - 1
        assert "cannot be reached by me: 1/1 brokers are down" in lines.last
        brokers.answering = True
        watch.look(brokers)
        watch.look(brokers)
        assert len(lines) == 2 * number
        assert "h:1 is reached again by me" in lines.last


def test_an_error_that_was_on_its_way_does_not_begin_another_outage(lines: Lines) -> None:
    """What the client has still to say when a broker answers again belongs to the same outage."""
    watch, brokers = Outage("h:1", "me"), Brokers()
    watch.told(DOWN)
    brokers.answering = True
    watch.look(brokers)
    watch.told(DOWN)
    watch.look(brokers)
    assert len(lines) == 1
    watch.look(brokers)
    assert len(lines) == 2


def test_other_errors_are_not_taken_and_nobody_is_asked_without_an_outage(
    lines: Lines,
) -> None:
    """Errors with other meanings stay with the client's owner; a connection that works costs no questions."""
    watch, brokers = Outage("h:1", "me"), Brokers()
    assert not watch.told(KafkaError(KafkaError._TRANSPORT))
    watch.look(brokers)
    assert brokers.asked == 0
    assert len(lines) == 0


def test_a_producer_tells_an_outage_once(lines: Lines) -> None:
    """A producer whose client complains with each poll says two lines from the loss to the return."""
    made: list[Brokers] = []

    def make(settings: dict[str, Callable[[KafkaError], None]], logger: object) -> Brokers:
        made.append(Brokers(settings))
        return made[-1]

    producer = RecordProducer(ConnectionConfig("h:1"), make_client=make)
    await_true(lambda: made[0].asked >= 5)
    assert len(lines) == 1
    made[0].answering = True
    await_true(lambda: len(lines) == 2)
    producer.close(flush_s=0)
    assert len(lines) == 2


def await_true(condition: Callable[[], bool]) -> None:
    """Waits for a condition, looking every 5 ms."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.005)

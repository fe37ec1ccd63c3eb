"""What `RecordProducer` promises about reports, backpressure and fatal errors, shown with a made client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pelton.errors import SubmitFailed, TransportError
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.log import KafkaFailure

Report = tuple[KafkaFailure | None, int, int, int]


class Delivered:
    """What the client hands to a delivery callback."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return (2, 1_000 + self._offset)


class FakeClient:
    """A Kafka client that holds what it is given until the test lets it go."""

    def __init__(self, settings: dict[str, Any], logger: object = None) -> None:
        self.settings = settings
        self.held: list[Callable[[KafkaError | None, Delivered], None]] = []
        self.events: list[Callable[[], None]] = []
        self.refuse: list[Exception] = []
        self.asked: list[str] = []
        self.away = 3
        self.broken = False
        self.closed = False
        self.wake = threading.Condition()

    def list_topics(self, topic: str, timeout: float) -> None:
        self.asked.append(topic)
        if self.away:
            self.away -= 1
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def produce(self, topic: str, *args: object, on_delivery: Any, headers: object) -> None:
        if self.broken:
            raise KafkaException(KafkaError(KafkaError._FATAL, "broken", True))
        if self.refuse:
            raise self.refuse.pop(0)
        self.held.append(on_delivery)

    def poll(self, timeout: float) -> int:
        with self.wake:
            if not self.events:
                self.wake.wait(min(timeout, 0.01))
            events, self.events = self.events, []
        for event in events:
            event()
        return len(events)

    def deliver(self, count: int, error: KafkaError | None = None) -> None:
        """Lets the oldest records be reported with the next poll."""
        with self.wake:
            for offset in range(count):
                callback = self.held.pop(0)
                self.events.append(lambda c=callback, o=offset: c(error, Delivered(o)))  # type: ignore[misc]
            self.wake.notify()

    def fail_for_good(self) -> None:
        """The client meets a fatal error: polling raises it, as the real one does; records are refused."""
        self.broken = True

        def fail() -> None:
            raise KafkaException(KafkaError(KafkaError._FATAL, "out of order", True))

        with self.wake:
            self.events.append(fail)
            self.wake.notify()

    def purge(self) -> None:
        self.deliver(len(self.held), KafkaError(KafkaError._PURGE_QUEUE))

    def close(self) -> bool:
        self.closed = True
        return True

    def __len__(self) -> int:
        return len(self.held) + len(self.events)


class Bench:
    """A producer over fake clients, and the reports it gave."""

    def __init__(self, **settings: Any) -> None:
        self.clients: list[FakeClient] = []
        self.reports: list[Report] = []
        self.changed = threading.Condition()
        self.producer = RecordProducer(ConnectionConfig("h:1"), make_client=self._make, **settings)

    def _make(self, settings: dict[str, Any], logger: object) -> FakeClient:
        self.clients.append(FakeClient(settings, logger))
        return self.clients[-1]

    def report(self, *report: Any) -> None:
        with self.changed:
            self.reports.append(report)
            self.changed.notify_all()

    def send(self, value: bytes = b"v") -> None:
        self.producer.send("t", value, on_report=self.report)

    def await_reports(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.reports) >= count, timeout=5)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A producer that takes two records at a time."""
    made = Bench(max_unacked=2, message_timeout_ms=2_000)
    yield made
    made.producer.close(flush_s=0)


def test_each_send_is_reported_once_with_its_place(bench: Bench) -> None:
    """An acknowledgement carries partition, offset and append time, and frees its room."""
    bench.send()
    bench.clients[0].deliver(1)
    bench.await_reports(1)
    assert bench.reports == [(None, 3, 0, 1_000)]
    assert bench.producer.flush(5) == 0


def test_a_new_client_is_asked_for_metadata_until_it_had_two_answers(bench: Bench) -> None:
    """That is when it asks for its producer id; while Kafka is away reports are served all the same."""
    (client,) = bench.clients
    bench.send()
    client.deliver(1)
    bench.await_reports(1)
    deadline = time.monotonic() + 5
    while len(client.asked) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    bench.send()
    client.deliver(1)
    bench.await_reports(2)
    assert client.asked == ["pelton.control.logs"] * 5
    assert client.away == 0


def test_sending_blocks_while_too_much_is_unacknowledged(bench: Bench) -> None:
    """The third send waits until one of two is acknowledged, and then goes out."""
    bench.send()
    bench.send()
    third = threading.Thread(target=bench.send)
    third.start()
    third.join(0.2)
    assert third.is_alive()
    assert len(bench.clients[0].held) == 2
    bench.clients[0].deliver(1)
    third.join(5)
    assert not third.is_alive()
    assert len(bench.clients[0].held) == 2


def test_sending_blocks_on_bytes_as_well() -> None:
    """One record above the limit of bytes is let through alone, the next one waits."""
    bench = Bench(max_unacked_bytes=1_000)
    bench.send(b"x" * 2_000)
    second = threading.Thread(target=bench.send)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    bench.clients[0].deliver(1)
    second.join(5)
    assert not second.is_alive()
    bench.producer.close(flush_s=0)


def test_backpressure_that_does_not_end_is_an_error_that_says_so() -> None:
    """A send that finds no room for as long as the client tries is not sent; the error names the cause."""
    bench = Bench(max_unacked=1, message_timeout_ms=50)
    bench.send()
    with pytest.raises(SubmitFailed, match="does not keep up: 1 records"):
        bench.send()
    assert len(bench.clients[0].held) == 1
    bench.producer.close(flush_s=0)


def test_record_the_client_does_not_take_is_certainly_not_sent(bench: Bench) -> None:
    """A refusal before queueing is reported on the reporting thread as certain, and gives its room back."""
    bench.clients[0].refuse.append(KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)))
    bench.send()
    bench.await_reports(1)
    failure = bench.reports[0][0]
    assert failure is not None
    assert failure.certain
    assert failure.name == "MSG_SIZE_TOO_LARGE"
    assert bench.producer.flush(5) == 0


def test_full_queue_of_the_client_is_waited_for(bench: Bench) -> None:
    """`BufferError` of the client never reaches the caller: the record is given again."""
    bench.clients[0].refuse.append(BufferError("full"))
    bench.send()
    assert len(bench.clients[0].held) == 1
    assert bench.reports == []


def test_timeout_leaves_the_fate_unknown(bench: Bench) -> None:
    """A record whose acknowledgement never came is reported as uncertain and is not sent again."""
    bench.send()
    bench.clients[0].deliver(1, KafkaError(KafkaError._MSG_TIMED_OUT))
    bench.await_reports(1)
    failure = bench.reports[0][0]
    assert failure is not None
    assert not failure.certain
    assert bench.clients[0].held == []


def test_fatal_error_makes_the_client_anew_and_outstanding_sends_are_unknown() -> None:
    """What the broken client held is reported as uncertain, the next send goes out on a new client."""
    reasons: list[str] = []
    bench = Bench(max_unacked=2, on_fatal=reasons.append)
    bench.send()
    bench.clients[0].fail_for_good()
    bench.await_reports(1)
    failure = bench.reports[0][0]
    assert failure is not None
    assert not failure.certain
    bench.send()
    assert len(bench.clients) == 2
    assert len(bench.clients[1].held) == 1
    bench.clients[1].deliver(1)
    bench.await_reports(2)
    assert bench.reports[1][0] is None
    assert bench.clients[0].closed
    assert reasons == ["out of order"]
    bench.producer.close(flush_s=0)


def test_send_that_meets_the_broken_client_goes_out_on_the_new_one(bench: Bench) -> None:
    """A send refused by a fatal error was not queued: it waits for the new client instead of failing."""
    bench.clients[0].broken = True
    bench.send()
    assert len(bench.clients) == 2
    assert len(bench.clients[1].held) == 1


def test_failing_report_does_not_stop_the_reports(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a report is logged; the next record is reported all the same."""

    def explode(*report: object) -> None:
        raise ZeroDivisionError

    bench.producer.send("t", b"v", on_report=explode)
    bench.send()
    bench.clients[0].deliver(2)
    bench.await_reports(1)
    assert bench.producer.flush(5) == 0
    assert "could not be handled" in caplog.text


def test_close_reports_what_is_left_and_refuses_what_comes(bench: Bench) -> None:
    """Closing tells how many sends were open, reports them as uncertain, and refuses later sends."""
    bench.send()
    assert bench.producer.close(flush_s=0) == 1
    bench.await_reports(1)
    failure = bench.reports[0][0]
    assert failure is not None
    assert not failure.certain
    with pytest.raises(TransportError, match="closed"):
        bench.send()

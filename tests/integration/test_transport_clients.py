"""What the pieces under the Kafka transport promise: reading, tables, administration."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from confluent_kafka import Consumer, Producer

from pelton.errors import DataLoss, TransportError
from pelton.protocol.topics import TopicPlan
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.kafka.reader import PartitionReader
from pelton.transport.kafka.table import CompactedTable, CompactedTables, TopicsMissing
from pelton.transport.log import LogRecord
from support.embedded_broker import Broker

pytestmark = pytest.mark.integration

_numbers = itertools.count()
COMPACTED = {"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime"}


class Bench:
    """Clients on one broker, and topics of the test's own."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.config = ConnectionConfig(broker.bootstrap_servers, "clients")
        self.admin = Admin(self.config)
        self.clock = BrokerClock()
        self.producer = RecordProducer(self.config, clock=self.clock)

    def topic(self, partitions: int = 1, **configs: str) -> str:
        name = f"clients.t{next(_numbers)}"
        configs = {"message.timestamp.type": "LogAppendTime", **configs}
        self.admin.create_topics([TopicPlan(name, partitions, 1, configs)])
        return name

    def fill(self, topic: str, count: int, partition: int = 0) -> None:
        for number in range(count):
            self.append(topic, b"%d" % number, partition=partition)
        assert self.producer.flush(20) == 0

    def append(
        self, topic: str, value: bytes | None, *, key: bytes | None = None, partition: int | None = None
    ) -> None:
        self.producer.send(topic, value, key=key, partition=partition, on_report=lambda *report: None)

    def close(self) -> None:
        self.producer.close(1)
        self.admin.close()


@pytest.fixture(scope="module")
def bench(broker: Broker) -> Iterator[Bench]:
    made = Bench(broker)
    yield made
    made.close()


class Sink:
    """Collects what a reader delivers."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.records: list[LogRecord] = []
        self.lost: list[tuple[str, int, int]] = []
        self.ends: list[tuple[str, int, int]] = []

    def take(self, records: Sequence[LogRecord]) -> None:
        with self.changed:
            self.records.extend(records)
            self.changed.notify_all()

    def lose(self, topic: str, partition: int, offset: int, reason: str) -> None:
        with self.changed:
            self.lost.append((topic, partition, offset))
            self.changed.notify_all()

    def end(self, topic: str, partition: int, offset: int) -> None:
        with self.changed:
            self.ends.append((topic, partition, offset))
            self.changed.notify_all()

    def await_that(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout=20), (len(self.records), self.lost, self.ends)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def reader(bench: Bench, sink: Sink) -> Iterator[PartitionReader]:
    made = PartitionReader(bench.config, sink.take, on_lost=sink.lose, on_end=sink.end)
    yield made
    made.close()


# --- reading ---


def test_clients_follow_starts_at_the_number_given(bench: Bench, reader: PartitionReader, sink: Sink) -> None:
    """Records from the offset on come in order with place, time and headers; earlier ones do not."""
    topic = bench.topic(2)
    bench.fill(topic, 10)
    reader.follow(topic, 0, 4)
    sink.await_that(lambda: len(sink.records) == 6)
    bench.producer.send(
        topic, b"v", key=b"k", partition=0, headers=[("a", b"1"), ("b", b"")], on_report=lambda *report: None
    )
    sink.await_that(lambda: len(sink.records) == 7)
    assert [record.offset for record in sink.records] == list(range(4, 11))
    last = sink.records[-1]
    assert (last.topic, last.partition, last.key, last.value) == (topic, 0, b"k", b"v")
    assert list(last.headers) == [("a", b"1"), ("b", b"")]
    assert abs(last.appended_ms - bench.clock.now_ms()) < 5_000
    sink.await_that(lambda: (topic, 0, 11) in sink.ends)


def test_clients_partitions_are_added_and_dropped_while_reading(
    bench: Bench, reader: PartitionReader, sink: Sink
) -> None:
    """Following another partition disturbs nothing; an unfollowed one falls silent till followed again."""
    topic = bench.topic(2)
    reader.follow(topic, 0, 0)
    bench.fill(topic, 3, 0)
    sink.await_that(lambda: len(sink.records) == 3)
    reader.follow(topic, 1, 0)
    with pytest.raises(ValueError, match="followed already"):
        reader.follow(topic, 1, 0)
    bench.fill(topic, 2, 1)
    sink.await_that(lambda: len(sink.records) == 5)
    reader.unfollow(topic, 0)
    reader.unfollow(topic, 0)
    assert reader.followed() == {(topic, 1)}
    bench.fill(topic, 2, 0)
    bench.fill(topic, 1, 1)
    sink.await_that(lambda: len(sink.records) == 6)
    reader.follow(topic, 0, 3)
    sink.await_that(lambda: len(sink.records) == 8)
    assert [record.offset for record in sink.records if record.partition == 0] == [0, 1, 2, 3, 4]


def test_clients_offset_outside_the_log_is_a_loss_and_never_a_jump(
    bench: Bench, reader: PartitionReader, sink: Sink
) -> None:
    """A position above the end or below the start is told, nothing is delivered, other partitions go on."""
    topic = bench.topic(3)
    for partition in range(3):
        bench.fill(topic, 5, partition)
    bench.admin.delete_records({(topic, 1): 3})
    reader.follow(topic, 0, 99)
    reader.follow(topic, 1, 1)
    reader.follow(topic, 2, 0)
    sink.await_that(lambda: len(sink.lost) == 2 and len(sink.records) == 5)
    assert sorted(sink.lost) == [(topic, 0, 99), (topic, 1, 1)]
    assert {record.partition for record in sink.records} == {2}
    assert reader.followed() == {(topic, 2)}
    with pytest.raises(ValueError, match="numeric offset"):
        reader.follow(topic, 0, -1)


def test_clients_deleted_topic_is_a_loss(bench: Bench, reader: PartitionReader, sink: Sink) -> None:
    """A topic that is deleted under the reader is told as lost, not waited for in silence."""
    topic = bench.topic()
    bench.fill(topic, 1)
    reader.follow(topic, 0, 0)
    sink.await_that(lambda: len(sink.records) == 1)
    bench.admin.delete_topics([topic])
    sink.await_that(lambda: [place[:2] for place in sink.lost] == [(topic, 0)])


def test_clients_failing_sink_does_not_stop_the_reader(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """What a sink raises is logged, and the next records are delivered."""
    topic = bench.topic()
    seen: list[int] = []
    told = threading.Event()

    def explode_once(records: Sequence[LogRecord]) -> None:
        seen.extend(record.offset for record in records)
        if seen == [0]:
            raise ZeroDivisionError
        told.set()

    reader = PartitionReader(bench.config, explode_once)
    reader.follow(topic, 0, 0)
    bench.fill(topic, 1)
    deadline = time.monotonic() + 20
    while not seen and time.monotonic() < deadline:
        time.sleep(0.01)
    bench.fill(topic, 1)
    assert told.wait(20)
    assert "could not be handled" in caplog.text
    reader.close()


def test_clients_offsets_are_asked_for(bench: Bench, reader: PartitionReader) -> None:
    """Ends, starts and offsets for a time are right, also for empty partitions and times after all."""
    topic = bench.topic(2)
    bench.fill(topic, 5)
    bench.admin.delete_records({(topic, 0): 2})
    places = [(topic, 0), (topic, 1)]
    assert reader.ends(places) == {(topic, 0): 5, (topic, 1): 0}
    assert reader.starts(places) == {(topic, 0): 2, (topic, 1): 0}
    now_ms = bench.clock.now_ms()
    assert reader.offsets_for_time(places, now_ms - 60_000) == {(topic, 0): 2, (topic, 1): -1}
    assert reader.offsets_for_time(places, now_ms + 60_000) == {(topic, 0): -1, (topic, 1): -1}
    with pytest.raises(TransportError, match="nobody"):
        reader.ends([("nobody", 0)], timeout_s=1)


def test_clients_range_is_read_from_start_to_end(bench: Bench, reader: PartitionReader) -> None:
    """A range gives its records and no others, several at once, twice over, and beside what is followed."""
    topic = bench.topic(2)
    bench.fill(topic, 1_200, 0)
    bench.fill(topic, 3, 1)
    for _ in range(2):
        read = [record.offset for record in reader.read_range(topic, 0, 100, 1_150)]
        assert read == list(range(100, 1_150))
    both = {(topic, 0): (1_199, 1_200), (topic, 1): (0, 3)}
    places = [(record.partition, record.offset) for batch in reader.ranges.read(both) for record in batch]
    assert sorted(places) == [(0, 1_199), (1, 0), (1, 1), (1, 2)]
    assert list(reader.read_range(topic, 0, 5, 5)) == []
    ranges = [reader.read_range(topic, 0, 0, 1_200) for _ in range(4)]
    assert [next(reading).offset for reading in ranges] == [0, 0, 0, 0]
    for reading in ranges:
        reading.close()  # type: ignore[attr-defined]


def test_clients_range_below_the_log_is_data_loss_and_a_missing_one_times_out(
    bench: Bench, reader: PartitionReader
) -> None:
    """A start that was trimmed away is DataLoss; an end that never comes is a TransportError in time."""
    topic = bench.topic()
    bench.fill(topic, 10)
    bench.admin.delete_records({(topic, 0): 5})
    with pytest.raises(DataLoss, match="offset 2"):
        list(reader.read_range(topic, 0, 2, 10))
    assert len(list(reader.read_range(topic, 0, 5, 10))) == 5
    with pytest.raises(TransportError, match="took too long"):
        list(reader.read_range(topic, 0, 5, 11, timeout_s=1))


def test_clients_range_ends_where_a_marker_ends_the_log(bench: Bench, reader: PartitionReader) -> None:
    """Offsets that hold no record (transaction markers) end a range all the same."""
    topic = bench.topic()
    transactional = Producer(
        {"bootstrap.servers": bench.config.bootstrap_servers, "transactional.id": f"x-{topic}"}
    )
    transactional.init_transactions(20)
    transactional.begin_transaction()
    transactional.produce(topic, b"1")
    transactional.commit_transaction(20)
    deadline = time.monotonic() + 20  # the marker is written after the commit has returned
    while reader.ends([(topic, 0)]) != {(topic, 0): 2}:
        assert time.monotonic() < deadline
    assert [record.value for record in reader.read_range(topic, 0, 0, 2)] == [b"1"]


# --- tables ---


def test_clients_table_holds_the_newest_values(bench: Bench) -> None:
    """Values, replacements and deletions of before and now are in the mapping, changes are told."""
    topic = bench.topic(4, **COMPACTED)
    for key, value in ((b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"b", None)):
        bench.append(topic, value, key=key)
    assert bench.producer.flush(20) == 0
    told: list[tuple[bytes, bytes | None]] = []
    table = CompactedTable(bench.config, topic, lambda key, value: told.append((key, value)))
    assert table.wait_end(20)
    assert dict(table) == {b"a": b"2"}
    bench.append(topic, b"3", key=b"c")
    bench.append(topic, None, key=b"a")
    assert bench.producer.flush(20) == 0
    assert table.wait_end(20, refresh=True)
    assert dict(table) == {b"c": b"3"}
    assert (b"c" in table, b"a" in table, len(table)) == (True, False, 1)
    assert [value for key, value in told if key == b"a"] == [b"1", b"2", None]
    table.close()


def test_clients_table_survives_the_loss_of_its_place(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A table whose topic is made anew under it tells the loss and then shows what is there now."""
    topic = bench.topic(1, **COMPACTED)
    for number in range(3):
        bench.append(topic, b"1", key=b"%d" % number)
    assert bench.producer.flush(20) == 0
    tables = CompactedTables(bench.config, [topic])
    assert tables.wait_end(20)
    bench.admin.delete_topics([topic])
    deadline = time.monotonic() + 20
    while topic in bench.admin.topics():
        assert time.monotonic() < deadline
    bench.admin.create_topics([TopicPlan(topic, 1, 1, COMPACTED)])
    bench.append(topic, b"2", key=b"a")
    assert bench.producer.flush(20) == 0
    while tables.get(topic, b"a") != b"2":
        assert time.monotonic() < deadline + 40
        time.sleep(0.01)
    assert "is read anew" in caplog.text
    tables.close()


def test_clients_table_of_a_missing_topic_is_refused_in_time(bench: Bench) -> None:
    """A topic that does not exist is said by name, and is no endless wait."""
    with pytest.raises(TopicsMissing, match=r"clients\.nobody"):
        CompactedTable(bench.config, "clients.nobody")


# --- administration ---


def test_clients_topics_are_made_once_and_can_be_used_at_once(bench: Bench) -> None:
    """Creating returns what was new, a second time nothing; deleting is idempotent; refusals are told."""
    plan = TopicPlan("clients.made", 3, 1, {"retention.ms": "-1", "message.timestamp.type": "LogAppendTime"})
    assert bench.admin.create_topics([plan]) == ["clients.made"]
    bench.fill("clients.made", 2, 2)
    assert bench.admin.create_topics([plan]) == []
    assert bench.admin.topics()["clients.made"] == 3
    places = [("clients.made", number) for number in range(3)]
    assert bench.admin.watermarks(places) == {places[0]: (0, 0), places[1]: (0, 0), places[2]: (0, 2)}
    bench.admin.delete_topics(["clients.made"])
    bench.admin.delete_topics(["clients.made"])
    with pytest.raises(TransportError, match="replication"):
        bench.admin.create_topics([TopicPlan("clients.three", 1, 3, {})])
    assert list(bench.admin.brokers().values()) == [bench.config.bootstrap_servers]


def test_clients_records_are_deleted_up_to_an_offset(bench: Bench) -> None:
    """Records below the offset are gone, the others stay; nothing to delete is no request."""
    topic = bench.topic(2)
    bench.fill(topic, 10)
    assert bench.admin.delete_records({}) == {}
    assert bench.admin.delete_records({(topic, 0): 4, (topic, 1): 0}) == {(topic, 0): 4, (topic, 1): 0}
    assert bench.admin.watermarks([(topic, 0)]) == {(topic, 0): (4, 10)}


def test_clients_offsets_of_groups_travel_with_their_metadata(bench: Bench) -> None:
    """What is committed for an idle group comes back; a group with members refuses and names them."""
    topic = bench.topic(2)
    places = [(topic, 0), (topic, 1)]
    group = f"g-{topic}"
    assert bench.admin.committed(group, places) == {}
    assert bench.admin.group_members(group) == []
    bench.admin.commit_for_idle_group(group, {places[0]: (0, "p1:bound"), places[1]: (0, "")})
    assert bench.admin.committed(group, places) == {places[0]: (0, "p1:bound"), places[1]: (0, "")}
    member = Consumer({"bootstrap.servers": bench.config.bootstrap_servers, "group.id": group})
    member.subscribe([topic])
    deadline = time.monotonic() + 30
    while len(member.assignment()) < 2 and time.monotonic() < deadline:
        member.poll(0.1)
    (told,) = bench.admin.group_members(group)
    assert sorted(told.partitions) == places
    with pytest.raises(TransportError, match="committing for group"):
        bench.admin.commit_for_idle_group(group, {places[0]: (1, "")})
    member.close()
    assert bench.admin.committed(group, places)[places[0]] == (0, "p1:bound")


def test_clients_clock_is_set_by_appends(bench: Bench) -> None:
    """Acknowledged appends set the clock to the broker's, here this machine's, within milliseconds."""
    topic = bench.topic()
    bench.fill(topic, 1)
    bench.fill(topic, 1)
    assert bench.clock.synchronized
    round_trip_ms = bench.clock.round_trip_ms
    assert round_trip_ms is not None
    assert abs(bench.clock.offset_ms) <= round_trip_ms / 2 + 2

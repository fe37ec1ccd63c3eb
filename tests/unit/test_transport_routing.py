"""What routing, registry, memory broker and partitioning promise where no Kafka is needed."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from pelton.core.call import Invocation, Result, ResultKind, Token, mint_call_id
from pelton.core.fold import fold
from pelton.core.spec import FunctionKind, FunctionSpec, InstanceStatus
from pelton.errors import DataLoss, SubmitFailed, TransportError
from pelton.protocol.codec import encode_result
from pelton.protocol.headers import encode_result as encode_result_headers
from pelton.protocol.topics import Topics
from pelton.transport.log import Headers, KafkaFailure, LogRecord, OnReport, Place
from pelton.transport.memory import MemoryBroker, MemoryTransport
from pelton.transport.partitioning import Spread, murmur2, partition_of
from pelton.transport.ports import AttachState
from pelton.transport.registry import Registry
from pelton.transport.routing import CallRouter

TOKEN = Token(1, 1, 0, 0, 1)
SPEC = FunctionSpec("f", 1, "c", FunctionKind.SYNC, (), "m", "f", "0" * 64, partitions=2)
RESULTS = "n.fn.f.results"


class ScriptedLog:
    """A log that does what the test says and notes in which order it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.end = 7
        self.history: list[LogRecord] = []
        self.first_at_time = -1
        self.reports: list[OnReport] = []
        self.refusal: Exception | None = None
        self.while_reading: Callable[[], None] = lambda: None

    def now_ms(self) -> int:
        return 1_000_000_000

    def append(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        partition: int | None,
        headers: Headers,
        on_report: OnReport,
    ) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(f"append {topic}")
        self.reports.append(on_report)

    def starts(self, places: Sequence[Place]) -> Mapping[Place, int]:
        return dict.fromkeys(places, 0)

    def ends(self, places: Sequence[Place]) -> Mapping[Place, int]:
        self.asked.append("ends")
        return dict.fromkeys(places, self.end)

    def offsets_for_time(self, places: Sequence[Place], at_ms: int) -> Mapping[Place, int]:
        self.asked.append("time")
        return {place: self.first_at_time if place[0] == RESULTS else -1 for place in places}

    def follow(self, topic: str, partition: int, offset: int) -> None:
        self.asked.append(f"follow {offset}")

    def unfollow(self, topic: str, partition: int) -> None:
        self.asked.append("unfollow")

    def read_ranges(
        self, ranges: Mapping[Place, tuple[int, int]], timeout_s: float
    ) -> Iterator[Sequence[LogRecord]]:
        ((place, (start, end)),) = ranges.items()
        self.asked.append(f"read {start}-{end}")
        self.while_reading()
        yield [record for record in self.history if record[:2] == place and start <= record.offset < end]


@pytest.fixture
def log() -> ScriptedLog:
    return ScriptedLog()


@pytest.fixture
def router(log: ScriptedLog) -> CallRouter:
    """A router that knows one function."""
    registry = Registry(log.now_ms)
    registry.put_function("f", SPEC)
    return CallRouter(log, registry, Topics("n"))


def record(call_id: bytes, offset: int, result: Result) -> LogRecord:
    headers = encode_result_headers(call_id, result.token)
    return LogRecord(RESULTS, 3, offset, 5, call_id, encode_result(result), headers)


def chunk(call_id: bytes, first: int) -> Result:
    return Result(call_id, TOKEN, ResultKind.CHUNK, first=first, items=(b"%d" % first,))


def new_id() -> bytes:
    return mint_call_id(1_000_000_000, 3, b"12345678")


# --- the order of things ---


def test_routing_asks_for_the_end_before_it_follows_and_sends(router: CallRouter, log: ScriptedLog) -> None:
    """The reply partition is followed from a number asked for before the first record is appended."""
    partition = router.prepare("f")
    call_id = mint_call_id(1, partition, b"12345678")
    router.submit(Invocation(call_id, "f", b""), SPEC, lambda error: None, lambda results: None)
    assert log.asked == ["ends", "follow 7", "append n.fn.f.invocations"]


def test_routing_reads_the_end_before_it_looks_for_the_time(router: CallRouter, log: ScriptedLog) -> None:
    """When no record is as young as the call, its results are read from the end known before the question."""
    assert router.attach("f", new_id(), lambda results: None, 5) is AttachState.UNKNOWN
    assert log.asked == ["ends", "follow 7", "ends", "time", "ends", "time"]


def test_routing_drops_what_the_replay_has_shown_already(router: CallRouter, log: ScriptedLog) -> None:
    """A reader that lags behind the replayed end delivers nothing twice, whenever it catches up."""
    call_id, seen = new_id(), list[int]()

    def on_results(results: Sequence[Result]) -> None:
        seen.extend(result.first for result in results)

    log.first_at_time = 4
    log.history = [record(call_id, offset, chunk(call_id, offset - 4)) for offset in (4, 5, 6)]
    assert router.attach("f", call_id, on_results, 5) is AttachState.PENDING
    router.take([record(call_id, 5, chunk(call_id, 1))])
    router.take([record(call_id, 6, chunk(call_id, 2)), record(call_id, 7, chunk(call_id, 3))])
    router.take([record(call_id, 8, chunk(call_id, 4))])
    assert seen == [0, 1, 2, 3, 4]


def test_routing_holds_back_what_comes_during_the_replay(router: CallRouter, log: ScriptedLog) -> None:
    """Results that arrive while the past is read come behind it, those of the past itself not again."""
    call_id, seen = new_id(), list[int]()

    def arrive() -> None:
        router.take([record(call_id, offset, chunk(call_id, offset - 4)) for offset in (5, 6, 7, 8)])
        assert seen == []

    log.while_reading = arrive
    log.first_at_time = 4
    log.history = [record(call_id, offset, chunk(call_id, offset - 4)) for offset in (4, 5, 6)]

    def on_results(results: Sequence[Result]) -> None:
        seen.extend(result.first for result in results)

    assert router.attach("f", call_id, on_results, 5) is AttachState.PENDING
    assert seen == [0, 1, 2, 3, 4]


def test_routing_keeps_nothing_of_calls_that_are_not_there(router: CallRouter) -> None:
    """After an attach that found nothing the router knows nothing of the call."""
    assert router.attach("f", new_id(), lambda results: None, 5) is AttachState.UNKNOWN
    assert not router._calls


def test_routing_body_of_another_call_is_not_believed(
    router: CallRouter, caplog: pytest.LogCaptureFixture
) -> None:
    """A record whose header names a call and whose body names another reaches neither, with an alarm."""
    mine, other = mint_call_id(1, 3, b"1" * 8), mint_call_id(1, 3, b"2" * 8)
    seen: list[Result] = []
    for call_id in (mine, other):
        router.submit(Invocation(call_id, "f", b""), SPEC, lambda error: None, seen.extend)
    router.take([record(mine, 9, chunk(other, 0))])
    assert seen == []
    assert "id of another call" in caplog.text


def test_routing_stream_without_its_beginning_is_data_loss(router: CallRouter, log: ScriptedLog) -> None:
    """A call whose first chunks are no longer in the log cannot be attached to as if it were whole."""
    call_id = new_id()
    log.first_at_time = 4
    log.history = [record(call_id, 5, chunk(call_id, 9))]
    with pytest.raises(DataLoss, match="no longer in the log"):
        router.attach("f", call_id, lambda results: None, 5)
    router.take([record(call_id, 9, chunk(call_id, 10))])


def test_routing_results_of_one_call_come_together(router: CallRouter) -> None:
    """Records that arrive in one batch reach each receiver in one call, in order."""
    one, two = mint_call_id(1, 3, b"1" * 8), mint_call_id(1, 3, b"2" * 8)
    batches: list[list[int]] = []
    for call_id in (one, two):
        router.submit(
            Invocation(call_id, "f", b""),
            SPEC,
            lambda error: None,
            lambda results: batches.append([result.first for result in results]),
        )
    router.take([record(call_id, 9, chunk(call_id, first)) for first in range(3) for call_id in (one, two)])
    assert batches == [[0, 1, 2], [0, 1, 2]]


def test_routing_loss_reaches_the_calls_of_that_partition_alone(router: CallRouter, log: ScriptedLog) -> None:
    """Calls by another reply partition stay open; the lost one is followed again before the next send."""
    ended: list[bytes] = []

    def receiver(call_id: bytes) -> None:
        router.submit(
            Invocation(call_id, "f", b""),
            SPEC,
            lambda error: None,
            lambda results: ended.extend(
                result.call_id for result in results if fold([result])[1] is not None
            ),
        )

    lost, safe = mint_call_id(1, 3, b"1" * 8), mint_call_id(1, 4, b"2" * 8)
    receiver(lost)
    receiver(safe)
    router.lost(RESULTS, 3, 9, "Offset out of range")
    assert ended == [lost]
    log.asked.clear()
    receiver(mint_call_id(1, 3, b"3" * 8))
    assert log.asked == ["ends", "follow 7", "append n.fn.f.invocations"]


def test_routing_send_that_was_refused_leaves_nothing_behind(router: CallRouter, log: ScriptedLog) -> None:
    """After a refusal, at once or by report, no results are kept for the call."""
    log.refusal = SubmitFailed("full")
    seen: list[Result] = []
    call_id = new_id()
    with pytest.raises(SubmitFailed):
        router.submit(Invocation(call_id, "f", b""), SPEC, lambda error: None, seen.extend)
    router.take([record(call_id, 9, chunk(call_id, 0))])
    log.refusal = None
    told: list[Exception | None] = []
    router.submit(Invocation(call_id, "f", b""), SPEC, told.append, seen.extend)
    log.reports[0](KafkaFailure(10, "MSG_SIZE_TOO_LARGE", "too large", True), -1, -1, -1)
    router.take([record(call_id, 9, chunk(call_id, 0))])
    assert isinstance(told[0], SubmitFailed)
    assert seen == []


def test_routing_unknown_acceptance_keeps_the_call(router: CallRouter, log: ScriptedLog) -> None:
    """A record that may be in the log may be answered: its results still arrive."""
    seen: list[Result] = []
    call_id = new_id()
    router.submit(Invocation(call_id, "f", b""), SPEC, lambda error: None, seen.extend)
    log.reports[0](KafkaFailure(-192, "_MSG_TIMED_OUT", "timed out", False), -1, -1, -1)
    router.take([record(call_id, 9, chunk(call_id, 0))])
    assert len(seen) == 1


# --- the registry ---


def test_routing_instances_go_when_they_fall_silent() -> None:
    """An instance counts until ten seconds of broker time have passed since its last status."""
    now = [100_000]
    registry = Registry(lambda: now[0])
    status = InstanceStatus("c", "i", "ready", "h", 1, 1, seen_ms=100_000)
    registry.put_instance(b"c/i", status)
    now[0] += 10_000
    assert registry.instances("c") == [status]
    now[0] += 1
    assert registry.instances() == []


def test_routing_waiting_ends_with_the_change() -> None:
    """`wait` returns as soon as a change makes its condition true, long before its time is up."""
    registry = Registry(lambda: 0)
    late = threading.Timer(0.1, registry.put_function, ("f", SPEC))
    late.start()
    assert registry.wait(lambda: registry.function("f") is not None, 20)
    late.join()
    registry.put_function("f", None)
    assert not registry.wait(lambda: registry.function("f") is not None, 0.01)


# --- the memory broker ---


def test_routing_memory_times_never_go_back() -> None:
    """Append times rise within a partition although the clock is set back, so looking up a time works."""
    now = [5_000]
    broker = MemoryBroker(now_ms=lambda: now[0])
    broker.create_topic("t", 1)
    broker.append("t", b"1")
    now[0] = 1_000
    broker.append("t", b"2")
    assert [record.appended_ms for record in broker.records(("t", 0), 0)] == [5_000, 5_000]
    assert broker.offset_for_time(("t", 0), 4_000) == 0
    assert broker.offset_for_time(("t", 0), 5_001) == -1


def test_routing_memory_trims_as_kafka_does() -> None:
    """Deleted records leave their offsets behind; reading below the start or above the end is a loss."""
    broker = MemoryBroker()
    broker.create_topic("t", 1)
    for number in range(5):
        broker.append("t", b"%d" % number)
    broker.delete_records("t", 0, 3)
    assert broker.bounds(("t", 0)) == (3, 5)
    assert [record.offset for record in broker.records(("t", 0), 3)] == [3, 4]
    for offset in (2, 6):
        with pytest.raises(DataLoss):
            broker.records(("t", 0), offset)
    with pytest.raises(TransportError, match="Unknown topic"):
        broker.bounds(("u", 0))


def test_routing_memory_close_counts_what_was_not_acknowledged() -> None:
    """Closing a transport while nothing is acknowledged returns the number, and reports each as unknown."""
    broker = MemoryBroker()
    broker.deploy(SPEC)
    transport = MemoryTransport(broker)
    broker.freeze()
    told: list[Exception | None] = []
    call_id = mint_call_id(1, transport.prepare("f"), b"12345678")
    transport.submit(Invocation(call_id, "f", b""), SPEC, told.append, lambda results: None)
    assert transport.close(0.05) == 1
    assert len(told) == 1
    assert told[0] is not None
    broker.close()


# --- partitioning ---


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_routing_keys_hash_as_in_java(key: bytes, hashed: int) -> None:
    """The hash equals the one that the tests of Apache Kafka's own client expect."""
    assert murmur2(key) == hashed % 2**32
    assert partition_of(key, 7) == (hashed % 2**32 & 0x7FFFFFFF) % 7


def runs(spread: Spread, opened: int, count: int) -> list[tuple[int, int]]:
    """Partitions and lengths of the runs in which so many records are spread."""
    return [
        (partition, len(list(run)))
        for partition, run in itertools.groupby(spread.next(opened) for _ in range(count))
    ]


def test_routing_what_is_sent_alone_goes_round() -> None:
    """With nothing else open each record goes to the next partition, beginning anywhere."""
    starts = set()
    for seed in range(40):
        order = runs(Spread(8, random.Random(seed)), 1, 16)
        assert [length for _, length in order] == [1] * 16
        first = order[0][0]
        assert [partition for partition, _ in order] == [(first + step) % 8 for step in range(16)]
        starts.add(first)
    assert starts == set(range(8))


@pytest.mark.parametrize(("opened", "length"), [(31, 1), (64, 2), (512, 16), (1_000_000, 32)])
def test_routing_many_open_calls_go_in_runs(opened: int, length: int) -> None:
    """A run is a quarter of a partition's even share, at most 32, and each partition has its turn."""
    order = runs(Spread(8, random.Random(1)), opened, length * 16)
    assert [run for _, run in order] == [length] * 16
    assert len({partition for partition, _ in order[:8]}) == 8

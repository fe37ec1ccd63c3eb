"""The pieces of a coordinator that need no broker: times, instance file, placement, hearing, liveness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError

from pelton.core.call import InputHeaders, InputPartition, InputTopic, Token
from pelton.core.decisions import (
    Commit,
    CommitOutcome,
    Credit,
    InputRecord,
    Interrupt,
    ReadCancellations,
    SendResult,
    Start,
)
from pelton.core.engine import Engine
from pelton.core.offsets import initial_metadata
from pelton.core.runs import EngineSettings
from pelton.protocol.frames import FromExecutor, ToExecutor
from pelton.transport.kafka.group import commit_outcome
from pelton_platform.coordinator import times
from pelton_platform.coordinator.counters import Counters
from pelton_platform.coordinator.fences import results_partition
from pelton_platform.coordinator.hearing import failure_of, is_sound
from pelton_platform.coordinator.instance import Deafness, drain_seconds
from pelton_platform.coordinator.instance_file import InstanceFileError, read_instance_file
from pelton_platform.coordinator.placement import Placement

CALL = bytes(16)


def test_coordinator_times_are_in_the_order_that_the_promises_rest_on() -> None:
    """A queue dies before its session, that before a lease, that before its expiry, all before proofs."""
    assert list(times.IN_ORDER) == sorted(set(times.IN_ORDER))
    assert times.IN_ORDER == (4_000, 6_000, 8_000, 9_000, 10_000)
    assert times.HEARTBEAT_MS * 4 <= times.SESSION_TIMEOUT_MS
    assert times.REVOKE_BUDGET_S * 1000 < times.SESSION_TIMEOUT_MS
    assert times.MAX_POLL_MS > times.DEAF_AFTER_S * 1000 > times.PROOF_MS


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (KafkaError.ILLEGAL_GENERATION, CommitOutcome.REFUSED),
        (KafkaError.REBALANCE_IN_PROGRESS, CommitOutcome.REFUSED),
        (KafkaError.UNKNOWN_MEMBER_ID, CommitOutcome.LOST),
        (KafkaError.FENCED_INSTANCE_ID, CommitOutcome.LOST),
        (KafkaError._ASSIGNMENT_LOST, CommitOutcome.LOST),
        (KafkaError._FENCED, CommitOutcome.LOST),
        (KafkaError._TIMED_OUT, CommitOutcome.UNKNOWN),
        (KafkaError._TRANSPORT, CommitOutcome.UNKNOWN),
        (KafkaError._WAIT_COORD, CommitOutcome.UNKNOWN),
        (KafkaError.REQUEST_TIMED_OUT, CommitOutcome.UNKNOWN),
        (KafkaError.NOT_COORDINATOR, CommitOutcome.UNKNOWN),
        (KafkaError.COORDINATOR_LOAD_IN_PROGRESS, CommitOutcome.UNKNOWN),
    ],
)
def test_coordinator_commit_errors_mean_what_the_protocol_says(code: int, outcome: CommitOutcome) -> None:
    """Each answer to a commit says whether to repeat it or to drop the assignment."""
    assert commit_outcome(KafkaError(code)) is outcome


def test_coordinator_commit_without_error_is_done() -> None:
    """No error means committed."""
    assert commit_outcome(None) is CommitOutcome.OK


FILE = {
    "namespace": "pelton",
    "bootstrap_servers": "127.0.0.1:9092",
    "security": {"sasl.password": "hush"},
    "key_file": "/keys/namespace.key",
    "container": "box",
    "instance": "box-1",
    "bundles": "/bundles",
    "env": {"TOKEN": "secret"},
    "log_level": "DEBUG",
}


def write(path: Path, data: object, mode: int = 0o600) -> Path:
    path.touch(mode=0o600)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    path.chmod(mode)
    return path


def test_coordinator_instance_file_says_who_the_instance_is(tmp_path: Path) -> None:
    """All that the deployer wrote is read; secrets stay out of what is printed."""
    found = read_instance_file(write(tmp_path / "i.json", FILE))
    assert (found.container, found.instance, found.log_level) == ("box", "box-1", "debug")
    assert found.connection.namespace == "pelton"
    assert found.connection.security == {"sasl.password": "hush"}
    assert found.connection.key_file == Path("/keys/namespace.key")
    assert found.env == {"TOKEN": "secret"}
    assert found.counters_path == tmp_path / "i.json.counters.json"
    assert "hush" not in repr(found)
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"container": None}, "container"),
        ({"container": "no.dots"}, "no.dots"),
        ({"instance": ""}, "instance"),
        ({"namespace": "9"}, "namespace"),
        ({"env": {"A": 1}}, "env"),
        ({"security": {"acks": "0"}}, "acks"),
        ({"log_level": "loud"}, "loud"),
    ],
)
def test_coordinator_instance_file_refuses_what_cannot_be(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """A wrong entry is an error that names file and entry."""
    with pytest.raises(InstanceFileError, match=said) as caught:
        read_instance_file(write(tmp_path / "i.json", {**FILE, **change}))
    assert "i.json" in str(caught.value)


def test_coordinator_instance_file_must_be_complete_private_and_there(tmp_path: Path) -> None:
    """A missing entry, a readable file, no JSON, no object, no file: each is an error with the way out."""
    without = {name: value for name, value in FILE.items() if name != "bundles"}
    with pytest.raises(InstanceFileError, match="'bundles' is missing"):
        read_instance_file(write(tmp_path / "a.json", without))
    with pytest.raises(InstanceFileError, match="chmod 600"):
        read_instance_file(write(tmp_path / "b.json", FILE, 0o640))
    with pytest.raises(InstanceFileError, match="no JSON"):
        read_instance_file(write(tmp_path / "c.json", "{"))
    with pytest.raises(InstanceFileError, match="no JSON object"):
        read_instance_file(write(tmp_path / "d.json", []))
    with pytest.raises(InstanceFileError, match="cannot be read"):
        read_instance_file(tmp_path / "e.json")


def test_coordinator_drain_seconds_come_from_the_environment() -> None:
    """The grace is 30 s unless told otherwise, and nonsense is refused."""
    assert drain_seconds({}) == 30.0
    assert drain_seconds({"PELTON_DRAIN_SECONDS": "2.5"}) == 2.5
    for text in ("soon", "-1", "nan", "1e9"):
        with pytest.raises(ValueError, match="PELTON_DRAIN_SECONDS"):
            drain_seconds({"PELTON_DRAIN_SECONDS": text})


def test_coordinator_deafness_is_polls_that_stop_while_the_process_runs() -> None:
    """A poll thread that stands still is found; time in which the whole process stood still is forgiven."""
    watch = Deafness(limit_s=30.0)
    start = watch._looked_at
    at = start
    while at < start + 29.5:
        at += 0.2
        assert not watch.looks_deaf(at, start)
    heard = [watch.looks_deaf(at + step * 0.2, start) for step in range(1, 8)]
    assert heard[-1]
    frozen = Deafness(limit_s=30.0)
    start = frozen._looked_at
    assert not frozen.looks_deaf(start + 100, start)  # was stopped for 100 s
    assert not frozen.looks_deaf(start + 100.2, start)
    polling = Deafness(limit_s=30.0)
    assert not polling.looks_deaf(polling._looked_at + 0.5, polling._looked_at + 0.4)


def test_coordinator_counters_add_up_and_are_written_whole(tmp_path: Path) -> None:
    """Own counts and those of sources are one table, in a file that is replaced, never half written."""
    counters = Counters(tmp_path / "c.json")
    counters.add("alarms")
    counters.add("alarms", 2)
    counters.source(lambda: {"suspects": 4, "alarms": 1})
    counters.write()
    assert json.loads((tmp_path / "c.json").read_text()) == {"alarms": 4, "suspects": 4}
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_coordinator_results_partition_exists_for_every_id() -> None:
    """Ids that nobody minted still lead to a partition, so that their outcome can be written."""
    assert results_partition(bytes(6) + b"\x70\x05" + bytes(8)) == 5
    assert 0 <= results_partition(b"\xff" * 16) < 8


OUTCOME, CHUNKS, POISON, LOG = (
    int(kind) for kind in (FromExecutor.OUTCOME, FromExecutor.CHUNKS, FromExecutor.POISON, FromExecutor.LOG)
)


@pytest.mark.parametrize(
    ("record", "sound"),
    [
        ([OUTCOME, 1, b"value", None, 0], True),
        ([OUTCOME, 1, None, ["E", "m", "t", "UNKNOWN", False, -1], 0], True),
        ([OUTCOME, 1, None, None, 0], False),
        ([OUTCOME, 1, b"value", ["E", "m", "t", "UNKNOWN", False, -1], 0], False),
        ([OUTCOME, 1, "value", None, 0], False),
        ([OUTCOME, 1, b"value", None, "now"], False),
        ([OUTCOME, 1, None, ["E", "m", "t", "UNKNOWN"], 0], False),
        ([OUTCOME, 1, None, ["E", "m", "t", "UNKNOWN", False, "1"], 0], False),
        ([OUTCOME, 1, None, ["E", 5, "t", "UNKNOWN", False, -1], 0], False),
        ([CHUNKS, 1, [b"a", b"b"]], True),
        ([CHUNKS, 1, [b"a", None]], False),
        ([CHUNKS, 1, b"a"], False),
        ([POISON, 1, "why"], True),
        ([POISON, 1, 7], False),
        ([LOG, None, 0, "stdout", "", "", "text", [], 5, 0], True),
        ([LOG, CALL, 1, "log", "INFO", "a", "text", [["k", "v"]], 5, 0], True),
        ([LOG, b"short", 1, "log", "INFO", "a", "text", [], 5, 0], False),
        ([LOG, None, 0, "stdout", "", "", "text", [["k"]], 5, 0], False),
        ([LOG, None, 0, "stdout", "", "", b"text", [], 5, 0], False),
    ],
)
def test_coordinator_hears_only_records_whose_fields_are_of_their_types(
    record: list[Any], sound: bool
) -> None:
    """User code can write to the channel: what is no record never reaches the engine."""
    assert is_sound(record) is sound


def test_coordinator_failures_keep_all_that_an_executor_says() -> None:
    """Type, message, traceback, code, whether trying again may help, and when."""
    failure = failure_of(["builtins.ValueError", "m", "trace", "UNKNOWN", True, 250])
    assert failure is not None
    assert (failure.type, failure.message, failure.traceback) == ("builtins.ValueError", "m", "trace")
    assert (failure.code, failure.retriable, failure.after_ms) == ("UNKNOWN", True, 250)
    assert failure_of(None) is None


def test_coordinator_time_of_an_isolated_attempt_counts_from_its_begin() -> None:
    """However long its executor takes to start, an isolated attempt gets its whole timeout, and no more."""
    engine = Engine(EngineSettings(worker="w", timeout_ms=1000))
    place = InputPartition(InputTopic.INVOCATIONS, 0)
    assert engine.assigned(1_000, place, (0, initial_metadata()), 0, 2) == 0
    engine.capacity(1_000, 2)
    engine.records(
        1_000,
        place,
        [
            InputRecord(offset, InputHeaders(bytes([offset]) * 16, "f"), b"body", b"key")
            for offset in range(2)
        ],
    )
    started: list[Start] = []
    now = 1_000

    def turn() -> list[Interrupt]:
        actions = engine.take()
        while actions:
            started.extend(action for action in actions if isinstance(action, Start))
            if found := [action for action in actions if isinstance(action, Interrupt)]:
                return found
            for action in actions:
                if isinstance(action, Commit):
                    engine.committed(now, action.commit_id, CommitOutcome.OK)
                elif isinstance(action, ReadCancellations):
                    engine.cancellations_read(now, action.partition, action.epoch)
                elif isinstance(action, SendResult):
                    engine.reported(now, action.send_id, True, 0)
            actions = engine.take()
        return []

    assert turn() == []
    assert len(started) == 2
    engine.executor_died(now, [start.run_id for start in started], "gone")
    assert turn() == []
    again = started[2]
    assert again.isolated
    now = 60_000
    engine.tick(now)
    assert turn() == []
    engine.begun(now, again.run_id)
    now += 999
    engine.tick(now)
    assert turn() == []
    now += 1
    engine.tick(now)
    assert [action.run_id for action in turn()] == [again.run_id]


class FakePool:
    """Executors that only keep what they were told."""

    def __init__(self) -> None:
        self.started: list[bool] = []
        self.sent: dict[int, list[Sequence[Any]]] = {}
        self.said: list[tuple[Any, ...]] = []

    def start(self, *, isolated: bool = False) -> int:
        self.started.append(isolated)
        return len(self.started)

    def send(self, executor_id: int, records: Sequence[Sequence[Any]]) -> bool:
        self.sent.setdefault(executor_id, []).extend(records)
        return True

    def interrupt(self, executor_id: int, run_id: int, grace_s: float) -> None:
        self.said.append(("interrupt", executor_id, run_id, grace_s))

    def stop(self, executor_id: int, grace_s: float) -> None:
        self.said.append(("stop", executor_id))

    def kill(self, executor_id: int, reason: str = "") -> None:
        self.said.append(("kill", executor_id))

    def kinds(self, executor_id: int) -> list[tuple[int, int]]:
        return [(record[0], record[1]) for record in self.sent.get(executor_id, [])]


def attempt(run_id: int, *, isolated: bool = False) -> Start:
    return Start(run_id, isolated, CALL, 1, 1, Token(1, 1, 0, 0, run_id), b"body", 0)


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def placement(pool: FakePool) -> Placement:
    """With its shared executor, number 1, ready."""
    placement = Placement(pool, grace_s=0.5)
    placement.open()
    placement.became_ready(1)
    return placement


def test_coordinator_placement_gathers_what_goes_to_one_executor(
    pool: FakePool, placement: Placement
) -> None:
    """Attempts and credits of one turn go out in one write, in order."""
    placement.place(attempt(1))
    placement.place(attempt(2))
    placement.credit(Credit(1, 7))
    placement.credit(Credit(99, 7))
    assert pool.sent == {}
    placement.flush()
    assert pool.kinds(1) == [(ToExecutor.RUN, 1), (ToExecutor.RUN, 2), (ToExecutor.CREDIT, 1)]


def test_coordinator_placement_gives_deadly_attempts_executors_of_their_own(
    pool: FakePool, placement: Placement
) -> None:
    """An isolated attempt waits for its executor, which stays a while for the next one, then ends."""
    placement.place(attempt(5, isolated=True))
    placement.flush()
    assert pool.started == [False, True]
    assert pool.sent == {}
    assert placement.became_ready(2) == 5  # its time begins now
    placement.flush()
    assert pool.kinds(2) == [(ToExecutor.RUN, 5)]
    assert placement.holds(2, 5)
    assert not placement.holds(1, 5)
    placement.over(5)
    placement.place(attempt(6, isolated=True))
    placement.flush()
    assert pool.started == [False, True]
    assert placement.holds(2, 6)
    placement.over(6)
    placement.retire(1_000)
    placement.retire(5_000)
    assert pool.said == []
    placement.retire(6_001)
    assert pool.said == [("stop", 2)]
    assert placement.exited(2) == []
    assert pool.started == [False, True]


def test_coordinator_placement_keeps_few_spare_executors(pool: FakePool, placement: Placement) -> None:
    """Two stay for the next suspects; one that dies meanwhile is not handed on."""
    for run_id in (5, 6, 7):
        placement.place(attempt(run_id, isolated=True))
    for executor in (2, 3, 4):
        placement.became_ready(executor)
    for run_id in (5, 6, 7):
        placement.over(run_id)
    assert pool.said == [("stop", 4)]
    assert placement.exited(3) == []
    placement.place(attempt(8, isolated=True))
    assert placement.holds(2, 8)
    placement.place(attempt(9, isolated=True))
    assert len(pool.started) == 5


def test_coordinator_placement_replaces_the_shared_executor_and_names_its_runs(
    pool: FakePool, placement: Placement
) -> None:
    """When the shared executor is gone, its unfinished runs are named and a new one is started."""
    for run_id in (1, 2, 3):
        placement.place(attempt(run_id))
    placement.over(2)
    assert placement.exited(1) == [1, 3]
    before = placement.ready
    assert pool.started == [False, False]
    assert not placement.holds(1, 1)
    placement.became_ready(2)
    assert (before, placement.ready) == (False, True)
    placement.close()
    assert placement.exited(2) == []
    assert pool.started == [False, False]


def test_coordinator_placement_waits_on_when_an_isolated_executor_never_came_up(
    pool: FakePool, placement: Placement
) -> None:
    """An attempt whose executor ended before user code was loaded never ran: it gets the next executor."""
    placement.place(attempt(5, isolated=True))
    assert placement.exited(2) == []
    assert pool.started == [False, True, True]
    placement.became_ready(3)
    placement.flush()
    assert pool.kinds(3) == [(ToExecutor.RUN, 5)]
    assert placement.exited(3) == [5]


def test_coordinator_placement_interrupts_by_asking_by_force_or_not_at_all(
    pool: FakePool, placement: Placement
) -> None:
    """A forced end has a grace, an unforced one is asked for, one that never began ends its executor."""
    placement.place(attempt(1))
    placement.place(attempt(2))
    placement.place(attempt(3, isolated=True))
    placement.flush()
    assert placement.interrupt(Interrupt(1, "time is up", True))
    assert placement.interrupt(Interrupt(2, "went elsewhere", False))
    assert placement.interrupt(Interrupt(3, "went elsewhere", False))
    assert not placement.interrupt(Interrupt(4, "unknown", True))
    placement.flush()
    assert pool.said == [("interrupt", 1, 1, 0.5), ("kill", 2)]
    assert pool.kinds(1)[-1] == (ToExecutor.INTERRUPT, 2)
    assert placement.exited(2) == [3]

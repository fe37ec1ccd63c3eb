"""What a member of a function's consumer group promises: where it starts, what it commits, how it lets go."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from pelton.core.call import InputHeaders, InputPartition, InputTopic, Invocation
from pelton.core.decisions import CommitOutcome, InputRecord
from pelton.core.spec import RETRIES_PARTITIONS
from pelton.protocol.codec import encode_invocation
from pelton.protocol.headers import encode_input
from pelton.protocol.topics import TopicPlan, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.group import Assigned, GroupConsumer
from pelton.transport.kafka.intake import Intake
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.log import KafkaFailure
from support.embedded_broker import Broker

pytestmark = pytest.mark.integration

CALL = bytes.fromhex("0197000000007000800000000000000a")


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition, looking every 10 ms."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.01)


class Member:
    """A listener that keeps what it was told, takes everything from where it stands and lets go at once."""

    def __init__(self, broker: Broker, namespace: str, *, lets_go: bool = True) -> None:
        self.assignments: dict[InputPartition, Assigned] = {}
        self.taken: dict[InputPartition, list[InputRecord]] = {}
        self.revokes: list[list[InputPartition]] = []
        self.losses: list[list[InputPartition]] = []
        self.reasons: list[str] = []
        self.errors: list[BaseException] = []
        self.lets_go = lets_go
        config = ConnectionConfig(broker.bootstrap_servers, namespace)
        self.consumer = GroupConsumer(config, "f", 4, Intake("f"), self)

    def assigned(self, partitions: Sequence[Assigned]) -> Mapping[InputPartition, int]:
        starts = {}
        for each in partitions:
            self.assignments[each.partition] = each
            starts[each.partition] = each.log_start if each.committed is None else each.committed[0]
        return starts

    def revoked(self, partitions: Sequence[InputPartition]) -> None:
        self.revokes.append(list(partitions))
        for partition in partitions:
            self.assignments.pop(partition, None)
        if self.lets_go:
            self.consumer.release(partitions)

    def lost(self, partitions: Sequence[InputPartition]) -> None:
        self.losses.append(list(partitions))
        for partition in partitions:
            self.assignments.pop(partition, None)

    def records(self, batch: Mapping[InputPartition, list[InputRecord]]) -> None:
        for partition, records in batch.items():
            self.taken.setdefault(partition, []).extend(records)

    def stuck(self, partition: InputPartition | None, reason: str) -> None:
        self.reasons.append(reason)

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)

    @property
    def count(self) -> int:
        return sum(map(len, self.taken.values()))

    def commit(self, offsets: Mapping[InputPartition, tuple[int, str]]) -> CommitOutcome:
        """A commit asked for from this thread, and its answer."""
        answers: list[CommitOutcome] = []
        self.consumer.commit(offsets, answers.append)
        wait_until(lambda: bool(answers))
        return answers[0]


class Place:
    """Topics of a function `f` in a namespace of its own, and the means to fill and look at them."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.namespace = "n" + uuid.uuid4().hex[:8]
        self.topics = Topics(self.namespace)
        config = ConnectionConfig(broker.bootstrap_servers, self.namespace)
        self.admin = Admin(config)
        self.producer = RecordProducer(config)
        self.members: list[Member] = []
        self.failures: list[KafkaFailure] = []
        names = [(self.topics.invocations("f"), 4), (self.topics.retries("f"), RETRIES_PARTITIONS)]
        self.admin.create_topics([TopicPlan(name, count, 1) for name, count in names])

    def join(self, *, lets_go: bool = True) -> Member:
        member = Member(self.broker, self.namespace, lets_go=lets_go)
        self.members.append(member)
        member.consumer.start()
        return member

    def put(
        self, value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes]], partition: int
    ) -> None:
        self.producer.send(
            self.topics.invocations("f"),
            value,
            key=key,
            partition=partition,
            headers=headers,
            on_report=lambda failure, *_: self.failures.append(failure) if failure else None,
        )

    def fill(self, count: int, partition: int | None = None) -> None:
        value = encode_invocation(Invocation(CALL, "f", b"\x92\x90\x80"))
        for number in range(count):
            self.put(
                value,
                CALL,
                encode_input(InputHeaders(CALL, "f")),
                number % 4 if partition is None else partition,
            )
        self.flush()

    def flush(self) -> None:
        assert self.producer.flush(10) == 0
        assert self.failures == []

    def committed(self, partition: InputPartition) -> tuple[int, str] | None:
        where = (self.topics.input("f", partition.topic), partition.partition)
        return self.admin.committed(self.topics.group("f"), [where]).get(where)

    def close(self) -> None:
        for member in self.members:
            assert member.consumer.stop(20)
        self.producer.close(1.0)
        self.admin.close()
        assert [error for member in self.members for error in member.errors] == []


@pytest.fixture
def place(broker: Broker) -> Iterator[Place]:
    """A fresh function; all members leave with the test."""
    place = Place(broker)
    yield place
    place.close()


def calls(partition: int) -> InputPartition:
    return InputPartition(InputTopic.INVOCATIONS, partition)


def test_coordinator_group_starts_where_the_committed_offset_says_and_hands_on_its_metadata(
    place: Place,
) -> None:
    """Offset and metadata that one member committed are what the next owner of the partition is told."""
    place.fill(40)
    first = place.join()
    wait_until(lambda: first.count == 40)
    assert len(first.assignments) == 8
    assert first.assignments[calls(1)] == Assigned(calls(1), None, 0, 10)
    assert first.commit({calls(1): (7, "p1:somewhat"), calls(2): (10, "p1:more")}) is CommitOutcome.OK
    assert first.consumer.stop(20)
    second = place.join()
    wait_until(lambda: len(second.assignments) == 8 and second.count == 23)
    assert second.assignments[calls(1)] == Assigned(calls(1), (7, "p1:somewhat"), 0, 10)
    assert [record.offset for record in second.taken[calls(1)]] == [7, 8, 9]
    assert calls(2) not in second.taken


def test_coordinator_group_commits_of_other_threads_are_carried_out_inside_a_revoke_callback(
    place: Place,
) -> None:
    """While a revoke waits for release, commits asked for elsewhere reach broker and next owner."""
    place.fill(8)
    first = place.join(lets_go=False)
    wait_until(lambda: first.count == 8)
    second = place.join()
    wait_until(lambda: bool(first.revokes))
    going = first.revokes[0]
    began = time.monotonic()
    outcome = first.commit(dict.fromkeys(going, (1, "p1:left")))
    took = time.monotonic() - began
    assert outcome is CommitOutcome.OK
    assert took < 2.0
    assert not set(going) & set(second.assignments)  # nobody has them before they are released
    first.consumer.release(going)
    wait_until(lambda: set(going) <= set(second.assignments))
    assert all(second.assignments[partition].committed == (1, "p1:left") for partition in going)
    first.lets_go = True


def test_coordinator_group_a_revoke_that_is_never_released_ends_within_its_budget(place: Place) -> None:
    """Partitions that nobody lets go are taken as lost after the budget; the group is not held up longer."""
    first = place.join(lets_go=False)
    wait_until(lambda: len(first.assignments) == 8)
    second = place.join()
    wait_until(lambda: bool(first.revokes))
    began = time.monotonic()
    wait_until(lambda: bool(first.losses), 10)
    assert 4.0 < time.monotonic() - began < 7.0
    wait_until(lambda: len(second.assignments) == 4)
    first.lets_go = True


def test_coordinator_group_refuses_commits_of_partitions_that_went(place: Place) -> None:
    """A commit for a partition that went meanwhile never reaches the broker, which would take it."""
    first = place.join()
    wait_until(lambda: len(first.assignments) == 8)
    place.join()
    wait_until(lambda: bool(first.revokes) and len(first.assignments) == 4)
    gone, kept = first.revokes[0][0], next(iter(first.assignments))
    assert first.commit({gone: (3, "p1:late")}) is CommitOutcome.LOST
    assert first.commit({gone: (3, "p1:late"), kept: (0, "p1:kept")}) is CommitOutcome.REFUSED
    assert place.committed(gone) is None
    assert place.committed(kept) is None


def test_coordinator_group_commits_in_the_order_of_the_requests(place: Place) -> None:
    """Of many commits asked for at once each gets its answer, and the last one stays."""
    first = place.join()
    wait_until(lambda: len(first.assignments) == 8)
    answers: list[CommitOutcome] = []
    for number in range(50):
        first.consumer.commit({calls(0): (0, f"p1:{number}")}, answers.append)
    wait_until(lambda: len(answers) == 50)
    assert set(answers) == {CommitOutcome.OK}
    assert place.committed(calls(0)) == (0, "p1:49")


def test_coordinator_group_pause_holds_over_an_assignment_and_resume_goes_on_without_a_gap(
    place: Place,
) -> None:
    """A paused partition stays paused when others come, and continues where it stood."""
    first = place.join()
    second = place.join()
    wait_until(lambda: len(first.assignments) == 4 and len(second.assignments) == 4)
    mine = next(partition for partition in first.assignments if partition.topic is InputTopic.INVOCATIONS)
    place.fill(5, mine.partition)
    wait_until(lambda: len(first.taken.get(mine, ())) == 5)
    first.consumer.pause(mine)
    assert second.consumer.stop(20)
    wait_until(lambda: len(first.assignments) == 8)
    other = next(p for p in first.assignments if p.topic is InputTopic.INVOCATIONS and p != mine)
    place.fill(5, mine.partition)
    place.fill(5, other.partition)
    wait_until(lambda: len(first.taken.get(other, ())) == 5)
    assert len(first.taken[mine]) == 5
    first.consumer.resume(mine)
    wait_until(lambda: len(first.taken[mine]) == 10)
    assert [record.offset for record in first.taken[mine]] == list(range(10))


def test_coordinator_group_poison_is_marked_and_does_not_stop_the_partition(place: Place) -> None:
    """Null values and keys, foreign names, fingerprints, cut bodies are marked; good records go on."""
    good = encode_invocation(Invocation(CALL, "f", b"\x92\x90\x80"))
    headers = encode_input(InputHeaders(CALL, "f"))
    bad: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]] = [
        (None, CALL, headers),
        (good, None, headers),
        (good, CALL, []),
        (good, CALL, encode_input(InputHeaders(CALL, "elsewhere"))),
        (good, CALL, [("id", CALL), ("fn", b"\xff\xfe")]),
        (good, CALL, [("id", b"short"), ("fn", b"f")]),
        (b"\xc3\x01" + bytes(8) + b"rest", CALL, headers),
        (good[:6], CALL, headers),
        (b"", CALL, headers),
    ]
    for value, key, with_headers in (*bad, (good, CALL, headers)):
        place.put(value, key, with_headers, 0)
    place.flush()
    member = place.join()
    wait_until(lambda: member.count == len(bad) + 1)
    records = member.taken[calls(0)]
    assert [bool(record.poison) for record in records] == [True] * len(bad) + [False]
    assert [record.offset for record in records] == list(range(len(bad) + 1))
    assert records[0].poison == "the record has no value"
    assert records[1].poison == "the record has no key"
    assert "elsewhere" in records[3].poison
    assert "fingerprint" in records[6].poison
    assert "cut off" in records[7].poison


def test_coordinator_group_a_cut_log_stops_the_partition_and_says_so(place: Place) -> None:
    """When records above the position are deleted, that partition stops with a reason; others go on."""
    place.fill(8)
    member = place.join()
    wait_until(lambda: member.count == 8)
    member.consumer.pause(calls(0))
    member.commit({calls(1): (0, "")})  # requests are carried out in order: now it is paused
    place.fill(200, 0)
    place.admin.delete_records({(place.topics.invocations("f"), 0): 52})
    member.consumer.resume(calls(0))
    wait_until(lambda: bool(member.reasons))
    place.fill(1, 1)
    wait_until(lambda: len(member.taken[calls(1)]) == 3)
    assert len(member.taken[calls(0)]) == 2


def test_coordinator_group_says_nothing_to_the_client_from_other_threads(place: Place) -> None:
    """Every public method returns at once, also while a rebalance callback is waiting."""
    first = place.join(lets_go=False)
    wait_until(lambda: len(first.assignments) == 8)
    place.join()
    wait_until(lambda: bool(first.revokes))
    kept = next(iter(first.assignments))
    done = threading.Event()

    def ask() -> None:
        first.consumer.pause(kept)
        first.consumer.resume(kept)
        first.consumer.commit({kept: (0, "")}, lambda _: None)
        first.consumer.release(first.revokes[0])
        done.set()

    threading.Thread(target=ask).start()
    assert done.wait(0.5)
    first.lets_go = True


def test_coordinator_group_shares_out_invocations_evenly_and_retries_with_them(place: Place) -> None:
    """Each of four members owns one partition of the invocations, and the retries partition bound to it."""
    members = [place.join() for _ in range(4)]
    wait_until(lambda: [len(member.assignments) for member in members] == [2, 2, 2, 2], 40)
    for member in members:
        fresh, again = sorted(member.assignments)
        assert (fresh.topic, again.topic) == (InputTopic.INVOCATIONS, InputTopic.RETRIES)
        assert fresh.partition == again.partition
    retry = InputPartition(InputTopic.RETRIES, 2)
    (owner,) = [member for member in members if retry in member.assignments]
    assert owner.commit({retry: (0, "p1:retry"), calls(2): (0, "p1:fresh")}) is CommitOutcome.OK
    assert place.committed(retry) == (0, "p1:retry")
    assert owner.consumer.stop(20)
    rest = [member for member in members if member is not owner]
    wait_until(lambda: sum(len(member.assignments) for member in rest) == 8, 40)
    (owner,) = [member for member in rest if retry in member.assignments]
    assert owner.assignments[retry].committed == (0, "p1:retry")
    assert calls(2) in owner.assignments

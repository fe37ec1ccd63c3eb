"""Key order at the desk: when the next call of a key starts, and when it does not."""

from __future__ import annotations

from pelton.core.call import Failure, ResultKind
from pelton.core.decisions import (
    Commit,
    CommitOutcome,
    Interrupt,
    Pause,
    Released,
    Resume,
    SendDeadLetter,
    SendInput,
    SendResult,
    Start,
)
from pelton.core.offsets import CommitMeta
from pelton.core.runs import EngineSettings
from support.engine_desk import P0, P1, Desk, call_id, record

A, B = b"a", b"b"


def desk_with(slots: int = 8, **settings: object) -> Desk:
    """A desk for a function with key order that owns a partition."""
    desk = Desk(ordered=True, **settings)
    desk.engine.capacity(desk.now_ms, slots)
    desk.own()
    return desk


def started(desk: Desk) -> list[int]:
    """Numbers of the calls that were started since the last look."""
    return [number_of(start) for start in desk.starts()]


def number_of(start: Start) -> int:
    return int.from_bytes(start.call_id, "big")


def finish(desk: Desk, start: Start, failure: Failure | None = None) -> None:
    """An attempt ends, and all that is written for it is acknowledged."""
    desk.engine.finished(desk.now_ms, start.run_id, b"value" if failure is None else None, failure)
    acknowledge_all(desk)


def acknowledge_all(desk: Desk) -> None:
    desk.take()
    while sent := [each.send_id for each in desk.results()] + [
        each.send_id for each in desk.asked_for(SendDeadLetter)
    ]:
        for send_id in sent:
            desk.acknowledge(send_id)


def test_the_next_call_of_a_key_starts_after_the_commit_of_the_one_before() -> None:
    """Not beside it, not when it ended, not when its outcome is acknowledged: when that is committed."""
    desk = desk_with()
    desk.records(record(0, key=A), record(1, key=A), record(2, key=B), record(3))
    first, other, plain = desk.starts()
    assert [number_of(each) for each in (first, other, plain)] == [0, 2, 3]
    assert desk.engine.waiting == 1
    desk.engine.finished(desk.now_ms, first.run_id, b"value", None)
    desk.take()
    assert started(desk) == []
    (sent,) = desk.results()
    desk.acknowledge(sent.send_id)
    assert started(desk) == []
    (commit,) = desk.asked_for(Commit)  # it does not wait for its time: a call waits for it
    assert commit.offsets[P0][0] == 1
    desk.engine.committed(desk.now_ms, commit.commit_id, CommitOutcome.OK)
    desk.take()
    assert started(desk) == [1]


def test_a_refused_commit_starts_nothing() -> None:
    """Whoever is not sure to own the partition lets the next call of a key wait; it starts in the end."""
    desk = desk_with()
    desk.records(record(0, key=A), record(1, key=A))
    (first,) = desk.starts()
    finish(desk, first)
    desk.acknowledge_commits(CommitOutcome.REFUSED)
    assert started(desk) == []
    desk.after(100)
    desk.acknowledge_commits()
    assert started(desk) == [1]


def test_a_call_that_comes_between_end_and_commit_waits_as_well() -> None:
    """A lane is free when nothing of it would run again elsewhere, and then it costs nothing any more."""
    desk = desk_with()
    desk.records(record(0, key=A))
    (first,) = desk.starts()
    finish(desk, first)
    desk.records(record(1, key=A))
    assert started(desk) == []
    desk.acknowledge_commits()
    (second,) = desk.starts()
    assert number_of(second) == 1
    finish(desk, second)
    desk.after(200)
    desk.acknowledge_commits()
    (own,) = desk.engine._owned.values()
    assert own.lanes is not None
    assert not own.lanes
    assert (own.held, own.queued_bytes) == (0, 0)


def test_a_failed_call_is_tried_again_before_the_next_one() -> None:
    """In its place, and the dead letter of one that is given up comes before the next one as well."""
    desk = desk_with(max_attempts=2)
    desk.records(record(0, key=A), record(1, key=A))
    (first,) = desk.starts()
    lost = Failure("Gone", "gone", code="UNAVAILABLE", retriable=True)
    finish(desk, first, lost)
    desk.acknowledge_commits()
    desk.after(1000)
    (again,) = desk.starts()
    assert (number_of(again), again.attempt) == (0, 2)
    finish(desk, again, lost)
    desk.acknowledge_commits()
    assert started(desk) == [1]


def test_deliveries_lost_with_an_executor_come_again_in_order() -> None:
    """An executor dies with calls of two keys in it; each runs again before the next one of its key."""
    desk = desk_with()
    desk.records(record(0, key=A), record(1, key=B), record(2, key=A), record(3, key=B))
    first, other = desk.starts()
    desk.engine.executor_died(desk.now_ms, [first.run_id, other.run_id], "killed")
    order: list[int] = []
    for _ in range(6):
        acknowledge_all(desk)
        desk.acknowledge_commits()
        for start in desk.starts():
            order.append(number_of(start))
            finish(desk, start)
    assert sorted(order) == [0, 1, 2, 3]
    assert order.index(0) < order.index(2)
    assert order.index(1) < order.index(3)


def test_a_new_owner_runs_suspects_of_a_key_in_order() -> None:
    """What may have run before waits for its key like everything else."""
    desk = Desk(ordered=True)
    desk.own(meta=CommitMeta(bound=3), end=3)
    desk.records(record(0, key=A), record(1, key=A), record(2, key=A))
    order: list[int] = []
    for _ in range(8):
        desk.acknowledge_commits()
        acknowledge_all(desk)
        for start in desk.starts():
            assert len(order) == number_of(start)
            order.append(number_of(start))
            finish(desk, start)
    assert order == [0, 1, 2]


def test_cancelled_calls_leave_their_lane() -> None:
    """One that waits ends without running; when the first one ends as cancelled, the next one starts."""
    desk = desk_with()
    desk.records(record(0, key=A), record(1, key=A), record(2, key=A))
    (first,) = desk.starts()
    desk.cancel(call_id(1))
    acknowledge_all(desk)
    desk.cancel(call_id(0))
    assert [each.run_id for each in desk.asked_for(Interrupt)] == [first.run_id]
    finish(desk, first, Failure("CancelledError", "", code="CANCELLED"))
    desk.acknowledge_commits()
    assert started(desk) == [2]
    assert desk.engine.waiting == 0


def test_a_nested_call_onto_the_key_of_an_ancestor_is_refused() -> None:
    """It would wait for a call that waits for it; another key, or none, is fine."""
    desk = desk_with()
    desk.records(record(0, key=A))
    (root,) = desk.starts()
    desk.engine.parked(desk.now_ms, root.run_id)
    above = call_id(77) + call_id(0)
    desk.records(
        record(1, key=A, ancestry=above),
        record(2, key=B, ancestry=above),
        record(3, ancestry=above),
        record(4, key=A),
    )
    assert started(desk) == [2, 3]
    (letter,) = desk.asked_for(SendDeadLetter)
    assert letter.record.offset == 1
    desk.acknowledge(letter.send_id)
    outcome = next(each.result for each in desk.results() if each.result.kind is ResultKind.OUTCOME)
    assert outcome.call_id == call_id(1)
    assert outcome.failure is not None
    assert (outcome.failure.type, outcome.failure.code) == ("KeyHeld", "FAILED_PRECONDITION")
    assert "would wait for itself" in outcome.failure.message
    assert desk.engine.waiting == 1  # the root behind the first one


def test_a_record_that_came_twice_is_bound_to_its_run() -> None:
    """It neither runs again after the first one, nor holds up its key."""
    desk = desk_with()
    desk.records(record(0, 50, key=A), record(1, 50, key=A), record(2, key=A))
    (first,) = desk.starts()
    finish(desk, first)
    commits = desk.acknowledge_commits()
    assert desk.committed(commits)[0] == 2
    assert started(desk) == [2]


def test_a_running_call_with_a_key_is_handed_back_instead_of_copied() -> None:
    """A revoke copies the call without a key, waits for the one with a key, and hands it back in the end."""
    desk = desk_with()
    desk.own(P1)
    desk.records(record(0, key=A), record(1, key=A), record(2))
    keyed, plain = desk.starts()
    desk.engine.revoke(desk.now_ms, [P0])
    desk.after(300)
    moved = [each for each in desk.asked_for(SendResult) if each.result.kind is ResultKind.MOVED]
    assert [each.result.call_id for each in moved] == [plain.call_id]
    desk.acknowledge(moved[0].send_id)
    (copy,) = desk.asked_for(SendInput)
    desk.acknowledge(copy.send_id, 0)
    desk.acknowledge_commits()
    assert not desk.asked_for(Released)
    desk.after(4000)
    commits = desk.acknowledge_commits()
    offset, meta = desk.committed(commits)
    assert (offset, meta.bound) == (0, 1)
    assert desk.asked_for(Released)
    assert [each.run_id for each in desk.asked_for(Interrupt)] == [keyed.run_id]


def test_what_lies_behind_waiting_keys_is_reached_without_moving_them() -> None:
    """All started calls wait for calls behind a full window: more is taken in, nothing leaves its place."""
    desk = desk_with(slots=1, window=4)
    desk.records(record(0, key=A))
    (root,) = desk.starts()
    desk.records(*(record(at, key=A) for at in range(1, 8)))
    assert desk.asked_for(Pause)
    desk.engine.parked(desk.now_ms, root.run_id)
    desk.take()
    assert desk.asked_for(Resume)
    assert not desk.asked_for(SendInput)
    desk.records(record(8, key=B, ancestry=call_id(0)))
    assert started(desk) == [8]


def test_the_oldest_call_goes_on_when_the_metadata_is_full() -> None:
    """Keys that advance at different speeds leave gaps: what closes one is begun, or nothing would be."""
    desk = desk_with(slots=2)
    keys = [b"slow", *(b"%d" % number for number in range(2000))]
    desk.records(record(0, key=b"slow"), record(1, key=b"slow"))
    (slow,) = desk.starts()
    at = 2
    while not desk.engine._owned[P0].full:
        # Every other record waits behind the slow one.
        desk.records(record(at, key=keys[at]), record(at + 1, key=b"slow"))
        (other,) = desk.starts()
        finish(desk, other)
        at += 2
    desk.after(200)
    desk.acknowledge_commits()
    desk.records(record(at, key=b"slow"), record(at + 1, key=b"new"))
    assert started(desk) == []
    waiting = [1, *range(3, at, 2)]
    for expected in waiting:
        finish(desk, slow)
        desk.acknowledge_commits()
        (slow,) = (start for start in desk.starts() if number_of(start) != at + 1)
        assert number_of(slow) == expected


def test_calls_of_many_keys_go_on_oldest_first() -> None:
    """Lanes that may go on do so in the order of the log, so that none falls far behind."""
    desk = desk_with(slots=3)
    desk.records(*(record(at, key=b"%d" % (at % 3)) for at in range(6)))
    first = desk.starts()
    for each in reversed(first):
        desk.engine.finished(desk.now_ms, each.run_id, b"value", None)
    desk.engine.capacity(desk.now_ms, 0)
    acknowledge_all(desk)
    desk.acknowledge_commits()
    desk.engine.capacity(desk.now_ms, 1)
    desk.acknowledge_commits()
    assert started(desk) == [3]


def test_without_key_order_keys_mean_nothing() -> None:
    """A function that was deployed without it runs them beside each other."""
    desk = Desk()
    assert not EngineSettings("w").ordered
    desk.own()
    desk.records(record(0, key=A), record(1, key=A))
    assert started(desk) == [0, 1]

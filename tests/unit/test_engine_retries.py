"""Attempts that follow failed ones: where they wait, when they start, and what is written for it."""

from __future__ import annotations

from typing import Any

from pelton.core.call import Failure, InputTopic, ResultKind
from pelton.core.decisions import (
    Interrupt,
    Released,
    SendDeadLetter,
    SendInput,
    SendTimer,
    Start,
)
from pelton.core.offsets import CommitMeta
from pelton.core.retry import RetrySpec
from support.engine_desk import P0, P1, Desk, call_id, record

FAILED = Failure("ValueError", "no", code="UNKNOWN", retriable=True)


def desk_of(initial_ms: int = 500, **settings: Any) -> Desk:
    """A desk whose function is tried again after exactly so long each time."""
    desk = Desk(retry=RetrySpec(initial_ms, 1.0, initial_ms, 0.0, ("UNAVAILABLE",)), **settings)
    desk.own()
    return desk


def run_first(desk: Desk, **headers: Any) -> Start:
    """The first record starts."""
    desk.records(record(0, **headers))
    (start,) = desk.starts()
    return start


def fail(desk: Desk, start: Start, failure: Failure = FAILED) -> None:
    """An attempt fails."""
    desk.engine.finished(desk.now_ms, start.run_id, None, failure)
    desk.take()


def test_retry_short_waits_in_process_and_gives_back_its_slot() -> None:
    """The attempt used is committed first; then it starts in a shared executor, not before its time."""
    desk = desk_of(500)
    desk.engine.capacity(desk.now_ms, 1)
    start = run_first(desk)
    fail(desk, start)
    desk.records(record(1))
    (other,) = desk.starts()
    assert other.call_id == call_id(1), "the slot was not free"
    commits = desk.acknowledge_commits()
    assert desk.committed(commits)[1].used == {0: 1}
    desk.engine.finished(desk.now_ms, other.run_id, b"v", None)
    desk.after(499)
    assert desk.starts() == []
    desk.after(1)
    (again,) = desk.starts()
    assert (again.call_id, again.attempt, again.isolated) == (call_id(0), 2, False)
    assert again.token > start.token
    assert again.run_id != start.run_id


def test_retry_does_not_start_before_its_attempt_is_committed() -> None:
    """Else crashes would grant attempts without end."""
    desk = desk_of(500)
    fail(desk, run_first(desk))
    desk.after(5_000)
    assert desk.starts() == []
    desk.acknowledge_commits()
    desk.after(20)
    assert len(desk.starts()) == 1


def test_retry_waits_for_a_slot_like_everybody() -> None:
    """What is due goes before fresh records, and never beyond the slots."""
    desk = desk_of(500)
    desk.engine.capacity(desk.now_ms, 1)
    fail(desk, run_first(desk))
    desk.acknowledge_commits()
    desk.records(record(1), record(2))
    (busy,) = desk.starts()
    desk.after(1_000)
    assert desk.starts() == []
    desk.engine.finished(desk.now_ms, busy.run_id, b"v", None)
    desk.take()
    assert [each.call_id for each in desk.starts()] == [call_id(0)]


def test_retry_longer_waits_in_the_topic_of_retries() -> None:
    """`moved` is acknowledged, then the retry with its time and history; then the record is done."""
    desk = desk_of(5_000)
    fail(desk, run_first(desk, deadline_ms=2_000_000))
    (moved,) = desk.results()
    assert moved.result.kind is ResultKind.MOVED
    assert moved.result.moved_to == "retries/0"
    assert desk.asked_for(SendInput) == []
    desk.acknowledge(moved.send_id)
    (retry,) = desk.asked_for(SendInput)
    assert (retry.target.topic, retry.target.partition) == (InputTopic.RETRIES, 0)
    assert (retry.headers.attempt, retry.headers.due_ms) == (2, desk.now_ms + 5_000)
    assert (retry.headers.may_have_run, retry.headers.deadline_ms) == (None, 2_000_000)
    assert [each.message for each in retry.failures] == ["no"]
    desk.after(1_000)
    assert all(commit.offsets[P0][0] == 0 for commit in desk.acknowledge_commits())
    desk.acknowledge(retry.send_id)
    desk.after(1_000)
    assert desk.committed(desk.acknowledge_commits())[0] == 1


def test_retry_that_expires_is_sent_again() -> None:
    """A retry Kafka has not acknowledged is no retry: the record is not done without one."""
    desk = desk_of(5_000)
    fail(desk, run_first(desk))
    (moved,) = desk.results()
    desk.acknowledge(moved.send_id)
    (retry,) = desk.asked_for(SendInput)
    desk.acknowledge(retry.send_id, ok=False)
    (again,) = desk.asked_for(SendInput)
    assert again.headers == retry.headers


def test_retry_of_a_minute_is_a_timer() -> None:
    """With the place it will be appended to."""
    desk = desk_of(60_000)
    fail(desk, run_first(desk))
    (moved,) = desk.results()
    assert moved.result.moved_to == "timers"
    desk.acknowledge(moved.send_id)
    (timer,) = desk.asked_for(SendTimer)
    assert (timer.headers.attempt, timer.headers.due_ms) == (2, desk.now_ms + 60_000)
    assert timer.target.topic is InputTopic.RETRIES


def test_retry_of_a_suspect_carries_its_deliveries() -> None:
    """A record that killed what ran it is no fresh one because it failed once."""
    desk = Desk(retry=RetrySpec(5_000, 1.0, 5_000, 0.0))
    desk.own(meta=CommitMeta(bound=1), end=1)
    desk.records(record(0))
    desk.acknowledge_commits()
    for fence in desk.results():
        desk.acknowledge(fence.send_id)
    (start,) = desk.starts()
    fail(desk, start)
    for moved in desk.results():
        desk.acknowledge(moved.send_id)
    (retry,) = desk.asked_for(SendInput)
    assert (retry.headers.may_have_run, retry.headers.used) == (1, 1)


def test_record_that_is_not_due_waits() -> None:
    """To the millisecond; and it holds up nobody."""
    desk = desk_of()
    desk.records(record(0, attempt=2, due_ms=desk.now_ms + 3_000), record(1))
    assert [each.call_id for each in desk.starts()] == [call_id(1)]
    desk.after(2_999)
    assert desk.starts() == []
    desk.after(1)
    assert [each.attempt for each in desk.starts()] == [2]


def test_attempt_whose_owner_is_gone_waits_again() -> None:
    """Only the former owner knew until when: from the assignment on it is the whole delay."""
    desk = Desk(retry=RetrySpec(800, 1.0, 800, 0.9))
    desk.own(meta=CommitMeta(used={0: 1}), end=1)
    desk.records(record(0))
    desk.after(799)
    assert desk.starts() == []
    desk.after(1)
    desk.acknowledge_commits()
    for fence in desk.results():
        desk.acknowledge(fence.send_id)
    assert [each.attempt for each in desk.starts()] == [2]


def test_revoke_waits_for_what_is_due_soon() -> None:
    """A partition goes only when its next owner cannot start an attempt too early."""
    desk = desk_of(1_000)
    desk.own(P1)
    fail(desk, run_first(desk))
    desk.acknowledge_commits()
    desk.engine.revoke(desk.now_ms, [P0])
    desk.after(600)
    desk.acknowledge_commits()
    assert desk.asked_for(Released) == []
    desk.after(500)
    desk.acknowledge_commits()
    desk.after(20)
    assert len(desk.asked_for(Released)) == 1
    assert desk.starts() == []


def test_too_many_that_wait_become_timers() -> None:
    """What is over the number a partition may hold in memory goes to the timers, and is done here."""
    desk = desk_of()
    desk.engine._delayed._limit = 2
    due_ms = desk.now_ms + 20_000
    desk.records(*[record(offset, attempt=2, due_ms=due_ms) for offset in range(3)])
    (moved,) = desk.results()
    assert moved.result.call_id == call_id(2)
    desk.acknowledge(moved.send_id)
    (timer,) = desk.asked_for(SendTimer)
    assert (timer.headers.call_id, timer.headers.due_ms, timer.headers.attempt) == (call_id(2), due_ms, 2)
    desk.acknowledge(timer.send_id)
    desk.after(1_000)
    assert desk.committed(desk.acknowledge_commits())[1].finished == ((2, 1),)


def test_timer_that_is_not_taken_is_written_again() -> None:
    """The record stays where it is until Kafka has the timer."""
    desk = desk_of()
    desk.engine._delayed._limit = 0
    desk.records(record(0, attempt=2, due_ms=desk.now_ms + 20_000))
    for _ in range(2):
        (moved,) = desk.results()
        desk.acknowledge(moved.send_id, ok=False)
    (moved,) = desk.results()
    desk.acknowledge(moved.send_id)
    assert len(desk.asked_for(SendTimer)) == 1


def test_timeout_is_followed_by_another_attempt_where_the_policy_says_so() -> None:
    """With a new id: the end of the attempt that was stopped frees its own place only."""
    desk = Desk(timeout_ms=1_000, retry=RetrySpec(500, 1.0, 500, 0.0, ("DEADLINE_EXCEEDED",)))
    desk.own()
    desk.engine.capacity(desk.now_ms, 1)
    start = run_first(desk)
    desk.after(1_000)
    assert [each.run_id for each in desk.asked_for(Interrupt)] == [start.run_id]
    desk.acknowledge_commits()
    desk.after(500)
    assert desk.starts() == [], "the attempt that was stopped has its slot still"
    desk.engine.finished(desk.now_ms, start.run_id, None, Failure("CancelledError", "", code="CANCELLED"))
    desk.take()
    (again,) = desk.starts()
    assert (again.attempt, again.run_id != start.run_id) == (2, True)
    desk.engine.finished(desk.now_ms, again.run_id, b"v", None)
    desk.take()
    assert desk.results()[-1].result.items == (b"v",)


def test_last_failure_is_the_outcome_and_the_dead_letter_has_them_all() -> None:
    """Attempts that failed in process are told with the last one."""
    desk = desk_of(500, max_attempts=3)
    start = run_first(desk)
    for number in range(3):
        fail(desk, start, Failure("ValueError", f"no {number}", retriable=True))
        desk.acknowledge_commits()
        desk.after(500)
        (start,) = desk.starts() or [start]
    (letter,) = desk.asked_for(SendDeadLetter)
    assert (letter.reason.message, letter.reason.attempt) == ("no 2", 3)
    assert [(each.message, each.attempt) for each in letter.failures] == [("no 0", 1), ("no 1", 2)]


def test_stream_that_has_chunks_is_not_tried_again() -> None:
    """What was read is final: its failure is the outcome."""
    desk = desk_of(500, streams=True)
    start = run_first(desk)
    desk.engine.chunks(desk.now_ms, start.run_id, [b"c"])
    fail(desk, start)
    assert len(desk.asked_for(SendDeadLetter)) == 1


def test_storm_of_failures_is_spaced() -> None:
    """Beyond the burst each retry comes one interval later; none is lost."""
    desk = desk_of(500, retries_per_second=10, retry_burst=2)
    desk.engine.capacity(desk.now_ms, 100)
    desk.records(*[record(offset) for offset in range(6)])
    for start in desk.starts():
        fail(desk, start)
    desk.acknowledge_commits()
    seen = []
    for _ in range(12):
        desk.after(100)
        seen.append(len(desk.starts()))
    assert seen == [0, 0, 0, 0, 2, 1, 1, 1, 1, 0, 0, 0]


def test_what_killed_its_executor_goes_on_alone() -> None:
    """Also when its next attempt waits elsewhere: it might kill that executor, and others in it."""
    desk = desk_of(5_000)
    start = run_first(desk)
    desk.engine.executor_died(desk.now_ms, [start.run_id], "killed")
    desk.take()
    for moved in desk.results():
        desk.acknowledge(moved.send_id)
    (retry,) = desk.asked_for(SendInput)
    assert (retry.headers.attempt, retry.headers.may_have_run, retry.headers.used) == (2, 1, 1)


def test_second_record_of_a_running_attempt_is_bound_before_it_is_due() -> None:
    """It waits for nothing of its own, and writes nothing that would outdo the one that runs."""
    desk = desk_of()
    desk.engine._delayed._limit = 0
    desk.records(record(0, attempt=2))
    (start,) = desk.starts()
    desk.records(record(1, 0, attempt=2, due_ms=desk.now_ms + 20_000))
    assert desk.results() == []
    desk.engine.finished(desk.now_ms, start.run_id, b"v", None)
    desk.take()
    for outcome in desk.results():
        desk.acknowledge(outcome.send_id)
    desk.after(1_000)
    assert desk.committed(desk.acknowledge_commits())[0] == 2

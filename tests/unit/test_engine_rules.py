"""The rules of the engine, one by one, at a desk without a world around it."""

from __future__ import annotations

import pytest

from pelton.core.call import Failure, ResultKind
from pelton.core.decisions import (
    Alarm,
    Commit,
    CommitOutcome,
    Credit,
    Interrupt,
    ReadResults,
    Released,
    SendDeadLetter,
    SendInput,
    SendResult,
    Start,
    Trim,
)
from pelton.core.offsets import CommitMeta
from support.engine_desk import P0, P1, Desk, call_id, record


def test_a_call_is_done_only_after_its_outcome_is_acknowledged() -> None:
    """Started, finished, written: the offset is committed only after the acknowledgement (P4)."""
    desk = Desk()
    desk.own()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.engine.finished(desk.now_ms, start.run_id, b"value", None)
    desk.take()
    desk.after(1000)
    assert desk.asked_for(Commit) == []
    (outcome,) = desk.results()
    assert outcome.result.kind is ResultKind.OUTCOME
    assert outcome.result.items == (b"value",)
    desk.acknowledge(outcome.send_id)
    desk.after(1000)
    assert desk.committed(desk.acknowledge_commits())[0] == 1


def test_nothing_is_dispatched_before_the_epoch_is_committed() -> None:
    """The owner epoch is raised above the stored one and committed before anything runs."""
    desk = Desk()
    desk.engine.assigned(desk.now_ms, P0, None, 0, 0)
    desk.records(record(0))
    desk.read_cancellations()
    assert desk.starts() == []
    desk.acknowledge_commits()
    (start,) = desk.starts()
    assert start.token.epoch >= desk.now_ms


def test_the_epoch_is_above_a_stored_one_from_the_future() -> None:
    """A former owner's epoch is always lower, whatever the clocks say."""
    desk = Desk()
    desk.own(meta=CommitMeta(epoch=desk.now_ms * 2))
    desk.records(record(0))
    assert desk.starts()[0].token.epoch == desk.now_ms * 2 + 1


def test_a_refused_epoch_is_repeated() -> None:
    """A refused commit of a partition that is still ours is made again."""
    desk = Desk()
    desk.engine.assigned(desk.now_ms, P0, None, 0, 0)
    desk.records(record(0))
    desk.read_cancellations()
    desk.acknowledge_commits(CommitOutcome.REFUSED)
    assert desk.starts() == []
    desk.after(1000)
    desk.acknowledge_commits()
    assert len(desk.starts()) == 1


def test_a_lost_member_drops_everything() -> None:
    """After an unknown-member answer nothing of that assignment counts any more."""
    desk = Desk()
    desk.own()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.engine.finished(desk.now_ms, start.run_id, b"", None)
    desk.take()
    desk.acknowledge(desk.results()[0].send_id)
    desk.after(1000)
    desk.acknowledge_commits(CommitOutcome.LOST)
    desk.records(record(1))
    assert desk.starts() == []


def test_offsets_finish_in_any_order() -> None:
    """The lowest unfinished offset is committed, what is finished above it travels in the metadata."""
    desk = Desk()
    desk.own()
    desk.records(record(0), record(1), record(2))
    starts = desk.starts()
    for start in starts[1:]:
        desk.engine.finished(desk.now_ms, start.run_id, b"", None)
    desk.take()
    for sent in desk.results():
        desk.acknowledge(sent.send_id)
    desk.after(1000)
    offset, meta = desk.committed(desk.acknowledge_commits())
    assert offset == 0
    assert meta.finished == ((1, 2),)


def test_finished_records_do_not_run_again_at_the_next_owner() -> None:
    """Runs in the metadata are skipped, everything below the bound is a suspect."""
    desk = Desk()
    desk.own(meta=CommitMeta(finished=((1, 2),), bound=4), end=5)
    desk.records(*(record(x) for x in range(5)))
    assert [start.call_id for start in desk.starts()] == [call_id(4)]
    _, meta = desk.committed(desk.acknowledge_commits())
    assert meta.counts == {0: 1, 3: 1}


def test_a_suspect_is_counted_and_announced_before_it_runs() -> None:
    """The raised count is committed, `started` with the new token acknowledged, then it runs."""
    desk = Desk()
    desk.own(meta=CommitMeta(bound=1), end=1)
    desk.records(record(0))
    assert desk.starts() == []
    assert desk.results() == []
    desk.acknowledge_commits()
    (started,) = desk.results()
    assert started.result.kind is ResultKind.STARTED
    assert desk.starts() == []
    desk.acknowledge(started.send_id)
    (start,) = desk.starts()
    assert start.delivery == 1
    assert not start.isolated


def test_what_came_after_the_assignment_is_no_suspect() -> None:
    """Below the bound, but not in the log when the partition came: no count; only a stream is fenced."""
    desk = Desk()
    desk.own(meta=CommitMeta(bound=4000), end=1)
    desk.records(record(0), record(1))
    assert [start.call_id for start in desk.starts()] == [call_id(1)]
    assert desk.committed(desk.acknowledge_commits())[1].counts == {0: 1}
    stream = Desk(streams=True)
    stream.own(meta=CommitMeta(bound=4000), end=0)
    stream.records(record(0))
    assert stream.starts() == []
    (reset,) = stream.results()
    assert reset.result.kind is ResultKind.RESET


def test_a_suspect_with_a_count_runs_alone() -> None:
    """One record with a prior count at a time per instance, in an executor of its own, beside fresh calls."""
    desk = Desk()
    desk.own(meta=CommitMeta(bound=2, counts={0: 1, 1: 1}), end=3)
    desk.records(record(0), record(1), record(2))
    assert [start.call_id for start in desk.starts()] == [call_id(2)]
    desk.acknowledge_commits()
    (started,) = desk.results()
    desk.acknowledge(started.send_id)
    (start,) = desk.starts()
    assert start.isolated
    assert start.delivery == 2


def test_a_record_delivered_too_often_becomes_a_dead_letter() -> None:
    """What kills whatever runs it ends: dead letter first, acknowledged, then the outcome."""
    desk = Desk(max_attempts=3)
    desk.own(meta=CommitMeta(bound=1, counts={0: 3}), end=1)
    desk.records(record(0))
    desk.acknowledge_commits()
    desk.acknowledge(desk.results()[0].send_id)
    assert desk.starts() == []
    (letter,) = desk.asked_for(SendDeadLetter)
    assert letter.reason.code == "UNAVAILABLE"
    assert desk.results() == []
    desk.acknowledge(letter.send_id)
    (outcome,) = desk.results()
    assert outcome.result.failure is not None


def test_an_executor_that_dies_alone_costs_an_attempt() -> None:
    """Attempts used are committed before the next one starts; the attempt in the token stays, run rises."""
    desk = Desk(max_attempts=2)
    desk.own()
    desk.records(record(0))
    (first,) = desk.starts()
    desk.engine.executor_died(desk.now_ms, [first.run_id], "killed")
    _, meta = desk.committed(desk.acknowledge_commits())
    assert meta.used == {0: 1}
    assert desk.starts() == []
    desk.after(1001)
    (second,) = desk.starts()
    assert second.attempt == 2
    assert second.token.attempt == 1
    assert second.token > first.token
    desk.engine.executor_died(desk.now_ms, [second.run_id], "killed")
    desk.take()
    (letter,) = desk.asked_for(SendDeadLetter)
    assert letter.reason.type == "ExecutorLost"


def test_an_executor_that_dies_with_several_is_a_delivery_of_each() -> None:
    """They run again apart from each other, and no attempt is used."""
    desk = Desk(isolated=1)
    desk.own()
    desk.records(record(0), record(1))
    starts = desk.starts()
    desk.engine.executor_died(desk.now_ms, [start.run_id for start in starts], "killed")
    _, meta = desk.committed(desk.acknowledge_commits())
    assert meta.used == {}
    assert meta.counts == {0: 1}
    desk.acknowledge(desk.results()[0].send_id)
    (again,) = desk.starts()
    assert again.isolated
    desk.engine.finished(desk.now_ms, again.run_id, b"", None)
    desk.take()
    assert desk.committed(desk.acknowledge_commits())[1].counts == {0: 1, 1: 1}


def test_a_run_that_takes_too_much_memory_alone_ends_at_once() -> None:
    """It would do so again: no attempt is left for it, and the outcome says why."""
    desk = Desk(max_attempts=3)
    desk.own()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.engine.executor_died(desk.now_ms, [start.run_id], "80 MiB at its peak", memory=True)
    desk.take()
    (letter,) = desk.asked_for(SendDeadLetter)
    desk.acknowledge(letter.send_id)
    (outcome,) = desk.results()
    assert outcome.result.failure is not None
    assert outcome.result.failure.code == "RESOURCE_EXHAUSTED"
    assert outcome.result.failure.type == "OutOfMemory"
    assert outcome.result.failure.message == "80 MiB at its peak"


def test_of_several_runs_nobody_knows_which_took_the_memory() -> None:
    """Each runs again by itself, as after any death of an executor, and none has failed."""
    desk = Desk(isolated=1)
    desk.own()
    desk.records(record(0), record(1))
    starts = desk.starts()
    desk.engine.executor_died(desk.now_ms, [start.run_id for start in starts], "full", memory=True)
    assert desk.asked_for(SendDeadLetter) == []
    desk.committed(desk.acknowledge_commits())
    desk.acknowledge(desk.results()[0].send_id)
    (again,) = desk.starts()
    assert again.isolated


def test_user_failures_are_terminal_without_a_policy() -> None:
    """A user exception becomes a dead letter and an outcome after one attempt."""
    desk = Desk()
    desk.own()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.engine.finished(desk.now_ms, start.run_id, None, Failure("ValueError", "no"))
    desk.take()
    (letter,) = desk.asked_for(SendDeadLetter)
    desk.acknowledge(letter.send_id)
    (outcome,) = desk.results()
    assert outcome.result.failure == Failure("ValueError", "no", attempt=1)


def test_after_an_expiry_records_keep_their_order() -> None:
    """Nothing is sent until all are reported; then again from the first unacknowledged one, in order."""
    desk = Desk(streams=True)
    desk.own()
    desk.records(record(0))
    (start,) = desk.starts()
    for chunk in (b"a", b"b", b"c"):
        desk.engine.chunks(desk.now_ms, start.run_id, [chunk])
    desk.take()
    first, second, third = desk.results()
    desk.acknowledge(first.send_id)
    desk.acknowledge(second.send_id, ok=False)
    desk.engine.chunks(desk.now_ms, start.run_id, [b"d"])
    desk.take()
    assert desk.results() == []
    desk.acknowledge(third.send_id)
    again = desk.results()
    assert [(sent.result.first, sent.result.items) for sent in again] == [
        (1, (b"b",)),
        (2, (b"c",)),
        (3, (b"d",)),
    ]
    for sent in again:
        desk.acknowledge(sent.send_id)
    assert sum(credit.chunks for credit in desk.asked_for(Credit)) == 4


def test_a_stream_runs_again_only_if_nobody_read_a_chunk() -> None:
    """`reset` is acknowledged, the history before it read; a chunk there makes the failure the outcome."""
    for seen in (False, True):
        desk = Desk(streams=True)
        desk.own(meta=CommitMeta(bound=1), end=1)
        desk.records(record(0))
        desk.acknowledge_commits()
        (reset,) = desk.results()
        assert reset.result.kind is ResultKind.RESET
        desk.acknowledge(reset.send_id, 41)
        (read,) = desk.asked_for(ReadResults)
        assert read.end_offset == 41
        desk.engine.fence_read(desk.now_ms, read.run_id, seen, False)
        desk.take()
        assert len(desk.starts()) == (0 if seen else 1)
        assert [letter.reason.type for letter in desk.asked_for(SendDeadLetter)] == ["StreamBroken"] * seen


def test_nothing_runs_above_the_committed_horizon() -> None:
    """The horizon is extended by a commit, and only then records above it run."""
    desk = Desk(horizon=2)
    desk.own()
    desk.records(record(0), record(1), record(2), record(3))
    assert len(desk.starts()) == 2
    _, meta = desk.committed(desk.acknowledge_commits())
    assert meta.bound >= 4
    assert len(desk.starts()) == 2


def test_the_bound_on_leaving_says_what_may_have_run() -> None:
    """An orderly leave hands on 1 + the highest unfinished dispatched offset, without its own counts."""
    desk = Desk()
    desk.own(meta=CommitMeta(bound=1), end=3)
    desk.records(record(0), record(1), record(2))
    desk.acknowledge_commits()
    desk.engine.revoke(desk.now_ms, [P0])
    desk.take()
    desk.after(5000)
    offset, meta = desk.committed(desk.acknowledge_commits())
    assert (offset, meta.bound, meta.counts) == (0, 3, {})
    assert desk.asked_for(Released) == [Released((P0,))]


def test_an_idle_partition_is_handed_on_without_suspects() -> None:
    """Nothing dispatched and unfinished: the bound is 0."""
    desk = Desk()
    desk.own()
    desk.engine.revoke(desk.now_ms, [P0])
    assert desk.committed(desk.acknowledge_commits())[1].bound == 0


def leaving(desk: Desk) -> tuple[Start, SendResult]:
    """A call that runs while P0 is revoked and P1 stays; and the `moved` that begins its copy."""
    desk.own(P0)
    desk.own(P1)
    desk.records(record(0))
    (start,) = desk.starts()
    desk.engine.revoke(desk.now_ms, [P0])
    desk.take()
    assert desk.asked_for(SendInput) == []
    desk.after(300)
    started, moved = sorted(desk.results(), key=lambda sent: sent.result.kind)
    assert (started.result.kind, moved.result.kind) == (ResultKind.STARTED, ResultKind.MOVED)
    desk.acknowledge(started.send_id)
    return start, moved


def test_a_revoke_copies_what_still_runs() -> None:
    """`moved`, then the copy, then one commit for both partitions; the running attempt is not restarted."""
    desk = Desk()
    start, moved = leaving(desk)
    assert moved.result.moved_to == "invocations/1"
    desk.acknowledge(moved.send_id)
    (copy,) = desk.asked_for(SendInput)
    assert (copy.target, copy.headers.may_have_run) == (P1, 0)
    desk.acknowledge(copy.send_id, 5)
    commits = desk.acknowledge_commits()
    both = next(commit for commit in commits if set(commit.offsets) == {P0, P1})
    assert desk.committed([both], P0)[0] == 1
    assert desk.committed([both], P1)[1].bound >= 6
    assert desk.asked_for(Released)
    assert desk.asked_for(Interrupt) == []
    desk.engine.finished(desk.now_ms, start.run_id, b"v", None)
    desk.take()
    (outcome,) = [sent for sent in desk.results() if sent.result.kind is ResultKind.OUTCOME]
    desk.acknowledge(outcome.send_id)
    desk.records(*(record(x, 90 + x) for x in range(5)), record(5, 0), partition=P1)
    assert call_id(0) not in [start.call_id for start in desk.starts()]
    assert 5 not in desk.engine._owned[P1].items


@pytest.mark.parametrize("read_first", [False, True], ids=["told, then read", "read, then told"])
def test_a_call_that_ends_while_it_is_copied_does_not_run_again(read_first: bool) -> None:
    """Its outcome is in the log before the copy is acknowledged: the copy is finished with it."""
    desk = Desk()
    start, moved = leaving(desk)
    desk.acknowledge(moved.send_id)
    (copy,) = desk.asked_for(SendInput)
    desk.engine.finished(desk.now_ms, start.run_id, b"v", None)
    desk.take()
    (outcome,) = [sent for sent in desk.results() if sent.result.kind is ResultKind.OUTCOME]
    desk.acknowledge(outcome.send_id)
    if not read_first:
        desk.acknowledge(copy.send_id, 5)
    desk.engine.capacity(desk.now_ms, 0)
    desk.records(*(record(x, 90 + x) for x in range(5)), record(5, 0), partition=P1)
    if read_first:
        desk.acknowledge(copy.send_id, 5)
    desk.engine.capacity(desk.now_ms, 8)
    desk.after(1_000)
    commits = desk.acknowledge_commits()
    assert call_id(0) not in [start.call_id for start in desk.starts()]
    assert desk.committed(commits, P0)[0] == 1
    offset, meta = desk.committed(commits, P1)
    assert (offset, meta.finished) == (0, ((5, 1),))
    assert desk.asked_for(Released)


def test_without_a_partition_that_stays_a_running_call_may_end_within_the_budget() -> None:
    """Nothing to copy to: the callback waits for the call, but never longer than its budget."""
    desk = Desk()
    desk.own()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.engine.revoke(desk.now_ms, [P0])
    desk.after(1000)
    assert desk.asked_for(Released) == []
    desk.after(3100)
    desk.acknowledge_commits()
    assert desk.asked_for(Released)
    assert [stop.run_id for stop in desk.asked_for(Interrupt)] == [start.run_id]


def test_a_second_record_of_a_running_attempt_is_bound_to_it() -> None:
    """One id and attempt runs once here; both records are done with it."""
    desk = Desk()
    desk.own()
    desk.records(record(0, 5), record(1, 5))
    (start,) = desk.starts()
    desk.engine.finished(desk.now_ms, start.run_id, b"", None)
    desk.take()
    desk.acknowledge(desk.results()[0].send_id)
    desk.after(1000)
    assert desk.committed(desk.acknowledge_commits())[0] == 2


def test_a_record_due_later_waits() -> None:
    """Never before its due time."""
    desk = Desk()
    desk.own()
    desk.records(record(0, due_ms=desk.now_ms + 500))
    desk.after(499)
    assert desk.starts() == []
    desk.after(1)
    assert len(desk.starts()) == 1


def test_started_is_written_for_long_attempts_only() -> None:
    """After 250 ms, with the token of the attempt."""
    desk = Desk()
    desk.own()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.after(249)
    assert desk.results() == []
    desk.after(1)
    (started,) = desk.results()
    assert (started.result.kind, started.result.token) == (ResultKind.STARTED, start.token)
    desk.after(1000)
    assert desk.results() == []


def test_a_timeout_ends_the_attempt() -> None:
    """The executor is told, the call ends DEADLINE_EXCEEDED, and its slot is free only when it is gone."""
    desk = Desk(timeout_ms=1000)
    desk.engine.capacity(desk.now_ms, 1)
    desk.own()
    desk.records(record(0), record(1))
    (start,) = desk.starts()
    desk.after(1000)
    (stop,) = desk.asked_for(Interrupt)
    assert stop.forced
    (letter,) = desk.asked_for(SendDeadLetter)
    assert letter.reason.code == "DEADLINE_EXCEEDED"
    assert desk.starts() == []
    desk.engine.executor_died(desk.now_ms, [start.run_id], "replaced")
    desk.take()
    assert [start.call_id for start in desk.starts()] == [call_id(1)]


def test_unreadable_records_become_dead_letters() -> None:
    """With a readable id the caller is told; without one the dead letter is all there can be."""
    desk = Desk()
    desk.own()
    desk.records(
        record(0)._replace(poison="unknown fingerprint"),
        record(1)._replace(headers=None, poison="no id"),
        record(2),
    )
    letters = desk.asked_for(SendDeadLetter)
    assert [letter.record.offset for letter in letters] == [0, 1]
    assert len(desk.starts()) == 1
    for letter in letters:
        desk.acknowledge(letter.send_id)
    (outcome,) = desk.results()
    assert outcome.result.failure is not None
    assert outcome.result.failure.code == "INVALID_ARGUMENT"
    desk.acknowledge(outcome.send_id)
    desk.after(1000)
    assert desk.committed(desk.acknowledge_commits())[0] == 2


def test_a_dead_letter_that_does_not_arrive_is_sent_again() -> None:
    """No acknowledgement, no commit."""
    desk = Desk()
    desk.own()
    desk.records(record(0)._replace(headers=None, poison="no id"))
    (letter,) = desk.asked_for(SendDeadLetter)
    desk.acknowledge(letter.send_id, ok=False)
    (again,) = desk.asked_for(SendDeadLetter)
    desk.after(1000)
    assert desk.asked_for(Commit) == []
    desk.acknowledge(again.send_id)
    desk.after(1000)
    assert desk.committed(desk.acknowledge_commits())[0] == 1


def test_a_committed_offset_outside_of_the_log_is_an_alarm_and_a_stop() -> None:
    """No silent reset: the partition is not read, and somebody is told."""
    desk = Desk()
    for committed, start, end in ((5, 10, 20), (25, 0, 20)):
        assert desk.engine.assigned(desk.now_ms, P0, (committed, ""), start, end) == -1
        desk.take()
        assert len(desk.asked_for(Alarm)) == 1


def test_missing_or_unreadable_metadata_makes_everything_a_suspect() -> None:
    """Without metadata the bound is the end of the log at assignment."""
    desk = Desk()
    desk.engine.assigned(desk.now_ms, P0, (0, "foreign"), 0, 2)
    desk.acknowledge_commits()
    desk.read_cancellations()
    desk.records(record(0), record(1), record(2))
    assert [start.call_id for start in desk.starts()] == [call_id(2)]


def test_committed_records_are_trimmed() -> None:
    """What lies below the acknowledged committed offset is deleted from the log once a minute."""
    desk = Desk()
    desk.own()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.engine.finished(desk.now_ms, start.run_id, b"", None)
    desk.take()
    desk.acknowledge(desk.results()[0].send_id)
    desk.after(200)
    desk.acknowledge_commits()
    desk.after(60_000)
    assert desk.asked_for(Trim) == [Trim({P0: 1})]


def test_a_draining_engine_starts_nothing_more() -> None:
    """What runs may end; then it is idle."""
    desk = Desk()
    desk.own()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.engine.drain(desk.now_ms)
    desk.records(record(1))
    assert desk.starts() == []
    assert not desk.engine.idle
    desk.engine.finished(desk.now_ms, start.run_id, b"", None)
    desk.take()
    desk.acknowledge(desk.results()[0].send_id)
    desk.after(200)
    desk.acknowledge_commits()
    assert desk.engine.idle


def test_completions_of_a_lost_partition_are_dropped() -> None:
    """A late result of an assignment that is gone changes nothing."""
    desk = Desk()
    desk.own()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.engine.lost(desk.now_ms, [P0])
    desk.take()
    desk.engine.finished(desk.now_ms, start.run_id, b"late", None)
    desk.take()
    assert desk.results() == []
    assert desk.engine.counters["dropped_completions"] == 1


def test_a_partition_that_comes_back_has_fresh_entries() -> None:
    """Old entries of a former assignment are not taken for the new one's records."""
    desk = Desk()
    desk.own()
    desk.engine.capacity(desk.now_ms, 0)
    desk.records(record(0))
    desk.engine.lost(desk.now_ms, [P0])
    desk.own()
    desk.engine.capacity(desk.now_ms, 8)
    desk.records(record(0))
    assert len(desk.starts()) == 1

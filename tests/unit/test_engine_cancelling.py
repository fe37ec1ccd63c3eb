"""Cancelled calls at the desk: each moment in which a cancellation can come, one by one."""

from __future__ import annotations

import pytest

from pelton.core.call import Failure, Result, ResultKind
from pelton.core.cancelling import CANCEL_GRACE_MS, Cancellations, cancelled_failure
from pelton.core.decisions import (
    Commit,
    CommitOutcome,
    Interrupt,
    Pause,
    ReadCancellations,
    ReadResults,
    Resume,
    SendDeadLetter,
    Start,
    Unpark,
)
from pelton.core.offsets import CommitMeta
from support.engine_desk import P0, P1, Desk, call_id, record

GRACE = CANCEL_GRACE_MS


def desk_with(slots: int = 8, **settings: object) -> Desk:
    """A desk with so many slots that owns a partition."""
    desk = Desk(**settings)
    desk.engine.capacity(desk.now_ms, slots)
    desk.own()
    return desk


def outcomes(desk: Desk) -> list[Result]:
    """Outcomes the engine has written since the last look; all its results are acknowledged."""
    found: list[Result] = []
    while sent := desk.results():
        for each in sent:
            if each.result.kind is ResultKind.OUTCOME:
                found.append(each.result)
            desk.acknowledge(each.send_id)
    return found


def assert_cancelled(desk: Desk, *numbers: int, attempts: int = 0) -> None:
    """These calls, and no others, have just ended as cancelled, without a dead letter, and are done."""
    ended = outcomes(desk)
    assert [each.call_id for each in ended] == [call_id(number) for number in numbers]
    for each in ended:
        failure = failure_of(each)
        assert (failure.type, failure.code, failure.retriable) == ("CallCancelled", "CANCELLED", False)
        assert each.attempts == attempts
    assert not desk.asked_for(SendDeadLetter)


def failure_of(result: Result) -> Failure:
    """Why a call ended."""
    assert result.failure is not None
    return result.failure


def interrupts(desk: Desk) -> list[tuple[int, bool]]:
    """Runs that were told to stop since the last look, and whether by force."""
    told = desk.asked_for(Interrupt)
    assert all(each.cancelled for each in told)
    return [(each.run_id, each.forced) for each in told]


def end(desk: Desk, start: Start, failure: Failure | None = None) -> None:
    """The attempt ends in its executor."""
    desk.engine.finished(desk.now_ms, start.run_id, b"value" if failure is None else None, failure)
    desk.take()


# ---- before it starts ----


def test_nothing_starts_before_the_cancellations_were_read() -> None:
    """An assignment waits for its epoch and for the requests that were in the log; then it works."""
    desk = Desk()
    desk.engine.assigned(desk.now_ms, P0, None, 0, 0)
    desk.acknowledge_commits()
    desk.records(record(0))
    assert not desk.starts()
    asked = desk.asked_for(ReadCancellations)
    assert [each.partition for each in asked] == [P0]
    desk.engine.cancellations_read(desk.now_ms, P0, asked[0].epoch - 1)
    desk.take()
    assert not desk.starts(), "that answer was to an earlier assignment"
    desk.engine.cancellations_read(desk.now_ms, P0, asked[0].epoch)
    desk.take()
    assert [start.call_id for start in desk.starts()] == [call_id(0)]


def test_a_cancellation_older_than_the_assignment_counts() -> None:
    """The request was there before the instance: the call ends without a start, the others run."""
    desk = Desk()
    desk.cancel(call_id(1))
    desk.own()
    desk.records(record(0), record(1), record(2))
    assert [start.call_id for start in desk.starts()] == [call_id(0), call_id(2)]
    assert_cancelled(desk, 1)


def test_a_waiting_call_ends_at_once_without_a_slot() -> None:
    """All slots are taken by calls that last: a cancelled call behind them ends now."""
    desk = desk_with(slots=1)
    desk.records(record(0), record(1), record(2))
    assert len(desk.starts()) == 1
    desk.cancel(call_id(2))
    assert_cancelled(desk, 2)
    assert not desk.starts()
    assert not interrupts(desk)


def test_descendants_go_along() -> None:
    """The request names the root; calls whose ancestry has it end too, and say which call it was."""
    desk = desk_with(slots=1)
    desk.records(record(0), record(1, ancestry=call_id(77) + call_id(78)), record(2, ancestry=call_id(5)))
    desk.cancel(call_id(77))
    ended = outcomes(desk)
    assert [each.call_id for each in ended] == [call_id(1)]
    assert "00000000-0000-0000-0000-00000000004d" in failure_of(ended[0]).message


def test_a_cancelled_call_that_waits_for_its_time_ends_now() -> None:
    """A record with a due time in an hour is not kept for that."""
    desk = desk_with()
    desk.records(record(0, due_ms=desk.now_ms + 3_600_000), record(1, due_ms=desk.now_ms + 3_600_000))
    desk.cancel(call_id(0))
    assert_cancelled(desk, 0)
    assert desk.engine.waiting == 1
    desk.after(3_600_001)
    assert [start.call_id for start in desk.starts()] == [call_id(1)]


def test_a_cancelled_call_in_front_of_the_horizon_waits_for_it() -> None:
    """What is above the committed horizon is not touched; once that is committed, it ends."""
    desk = desk_with(horizon=4)
    desk.cancel(call_id(4))
    desk.records(*(record(offset) for offset in range(5)))
    assert not outcomes(desk)
    desk.acknowledge_commits()
    assert_cancelled(desk, 4)


def test_a_pile_of_cancelled_calls_pauses_the_intake() -> None:
    """Cancelled calls that cannot end yet count as waiting: they do not fill the memory."""
    desk = Desk(window=4)
    desk.cancel(*(call_id(number) for number in range(9)))
    desk.engine.assigned(desk.now_ms, P0, None, 0, 0)
    desk.records(*(record(offset) for offset in range(9)))
    assert len(desk.asked_for(Pause)) == 1
    desk.acknowledge_commits()
    desk.read_cancellations()
    assert_cancelled(desk, *range(9))
    assert len(desk.asked_for(Resume)) == 1


def test_a_suspect_that_is_cancelled_ends_without_a_delivery() -> None:
    """A record that may have run before is not run again; the count of its deliveries stays."""
    desk = Desk()
    desk.cancel(call_id(0))
    desk.own(meta=CommitMeta(bound=1, counts={0: 2}), end=1)
    desk.records(record(0))
    assert_cancelled(desk, 0)
    assert not desk.starts()


def test_a_second_record_of_a_running_cancelled_call_is_bound_to_it() -> None:
    """A copy of a call that runs is not ended beside it: the run decides for both."""
    desk = desk_with()
    desk.own(P1)
    desk.records(record(0), partition=P1)
    (start,) = desk.starts()
    desk.cancel(call_id(0))
    desk.records(record(3, 0, may_have_run=0))
    assert not outcomes(desk)
    end(desk, start)
    ended = outcomes(desk)
    assert [each.items for each in ended] == [(b"value",)]
    assert desk.engine.idle


# ---- while it runs ----


def test_a_running_call_is_told_and_ends_as_cancelled() -> None:
    """It is told once, by force; what it raises then is part of the message."""
    desk = desk_with()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.cancel(call_id(0))
    desk.cancel(call_id(0))
    assert interrupts(desk) == [(start.run_id, True)]
    assert not outcomes(desk), "it has not ended yet"
    end(desk, start, Failure("asyncio.exceptions.CancelledError", "", "trace", "CANCELLED"))
    assert_cancelled(desk, 0, attempts=1)


def test_success_in_the_same_instant_wins() -> None:
    """The attempt returned before it heard: the caller gets the value."""
    desk = desk_with()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.cancel(call_id(0))
    end(desk, start)
    assert [each.items for each in outcomes(desk)] == [(b"value",)]


def test_a_cancellation_after_the_outcome_changes_nothing() -> None:
    """The outcome is on its way, or acknowledged: no second one, nobody is interrupted."""
    desk = desk_with()
    desk.records(record(0))
    (start,) = desk.starts()
    end(desk, start)
    desk.cancel(call_id(0))
    assert [each.items for each in outcomes(desk)] == [(b"value",)]
    desk.cancel(call_id(0))
    assert not desk.results()
    assert not interrupts(desk)


def test_an_unknown_id_does_nothing() -> None:
    """It belongs to no call here."""
    desk = desk_with()
    desk.records(record(0))
    desk.cancel(call_id(99))
    assert not interrupts(desk)
    assert not outcomes(desk)


@pytest.mark.parametrize("alone", [True, False])
def test_a_cancelled_call_whose_executor_was_killed_is_not_run_again(alone: bool) -> None:
    """The others in that executor are delivered again; the cancelled one ends."""
    desk = desk_with()
    desk.records(record(0), *([] if alone else [record(1)]))
    starts = desk.starts()
    desk.cancel(call_id(0))
    desk.engine.executor_died(desk.now_ms, [start.run_id for start in starts], "killed")
    desk.take()
    assert_cancelled(desk, 0, attempts=1)
    desk.acknowledge_commits()
    outcomes(desk)
    assert [start.call_id for start in desk.starts()] == ([] if alone else [call_id(1)])


def test_a_cancelled_call_is_not_retried() -> None:
    """A failure that would be tried again ends it, and is named."""
    desk = desk_with(max_attempts=3)
    desk.records(record(0))
    (start,) = desk.starts()
    desk.cancel(call_id(0))
    end(desk, start, Failure("OSError", "gone", "trace", "UNAVAILABLE", True))
    (ended,) = outcomes(desk)
    assert failure_of(ended).code == "CANCELLED"
    assert "OSError: gone" in failure_of(ended).message
    assert failure_of(ended).traceback == "trace"


def test_a_call_that_waits_for_its_retry_ends_at_once() -> None:
    """Between two attempts nothing runs: there is nobody to be told."""
    desk = desk_with()
    desk.records(record(0))
    (start,) = desk.starts()
    desk.engine.executor_died(desk.now_ms, [start.run_id], "killed")
    desk.acknowledge_commits()
    desk.cancel(call_id(0))
    assert_cancelled(desk, 0, attempts=1)
    desk.after(5_000)
    assert not desk.starts()


def test_a_call_whose_time_is_up_while_it_is_cancelled_is_cancelled() -> None:
    """One outcome, without a dead letter."""
    desk = desk_with(timeout_ms=1_000)
    desk.records(record(0))
    desk.cancel(call_id(0))
    desk.after(1_000)
    (ended,) = outcomes(desk)
    assert failure_of(ended).code == "CANCELLED"
    assert not desk.asked_for(SendDeadLetter)


def test_a_call_that_is_being_prepared_ends_when_it_would_start() -> None:
    """Its delivery is being counted and its `started` written when the request comes."""
    desk = Desk()
    desk.own(meta=CommitMeta(bound=1), end=1)
    desk.records(record(0))
    (counting,) = desk.asked_for(Commit)
    desk.cancel(call_id(0))
    assert not outcomes(desk)
    desk.engine.committed(desk.now_ms, counting.commit_id, CommitOutcome.OK)
    desk.take()
    assert_cancelled(desk, 0)
    assert not desk.starts()


def test_a_cancelled_stream_keeps_what_was_read() -> None:
    """The outcome follows the chunks in the same token: no reader loses one."""
    desk = desk_with(streams=True)
    desk.records(record(0))
    (start,) = desk.starts()
    desk.engine.chunks(desk.now_ms, start.run_id, [b"a", b"b"])
    desk.take()
    desk.cancel(call_id(0))
    end(desk, start, Failure("CancelledError", "", "", "CANCELLED"))
    (ended,) = outcomes(desk)
    assert ended.first == 2
    assert ended.token == start.token


def test_a_stream_that_broke_and_was_cancelled_is_cancelled() -> None:
    """After a death chunks are found in the log; that it was cancelled is the better word."""
    desk = Desk(streams=True)
    desk.own(meta=CommitMeta(bound=1), end=1)
    desk.records(record(0))
    desk.acknowledge_commits()
    for sent in desk.results():
        desk.acknowledge(sent.send_id)
    (read,) = desk.asked_for(ReadResults)
    desk.cancel(call_id(0))
    desk.engine.fence_read(desk.now_ms, read.run_id, True, False)
    desk.take()
    assert_cancelled(desk, 0)


# ---- while it is handed over ----


def test_a_cancelled_call_is_not_run_again_by_the_next_owner() -> None:
    """The partition is lost before the attempt has ended; the next owner reads the request first."""
    first = desk_with()
    first.records(record(0))
    first.cancel(call_id(0))
    first.engine.lost(first.now_ms, [P0])
    first.take()
    assert not outcomes(first)
    second = Desk()
    second.cancellations.add({call_id(0): "r"})
    second.own(end=1)
    second.records(record(0))
    assert_cancelled(second, 0)
    assert not second.starts()


# ---- while it waits for calls it made ----


def park(desk: Desk, start: Start) -> None:
    """The attempt waits for a call it made."""
    desk.engine.parked(desk.now_ms, start.run_id)
    desk.take()


def test_a_parked_call_is_asked_and_gets_its_time_from_its_slot_on() -> None:
    """It comes back before others that want to go on; the grace begins when it may."""
    desk = desk_with(slots=1)
    desk.records(record(0), record(1), record(2))
    parked: list[Start] = []
    for _ in range(2):
        (start,) = desk.starts()
        park(desk, start)
        parked.append(start)
    (busy,) = desk.starts()
    desk.engine.unparked(desk.now_ms, parked[0].run_id)
    desk.cancel(call_id(1))
    assert interrupts(desk) == [(parked[1].run_id, False)]
    desk.engine.unparked(desk.now_ms, parked[1].run_id)
    desk.after(2 * GRACE)
    assert not interrupts(desk), "it wants to go on and has no slot: that is not its fault"
    end(desk, busy)
    assert [each.run_id for each in desk.asked_for(Unpark)] == [parked[1].run_id]
    assert interrupts(desk) == [(parked[1].run_id, True)]


def test_a_parked_call_that_does_not_come_back_ends_by_force() -> None:
    """It waits, deaf, for a call that does not end."""
    desk = desk_with(slots=1)
    desk.records(record(0))
    (start,) = desk.starts()
    park(desk, start)
    desk.cancel(call_id(0))
    assert interrupts(desk) == [(start.run_id, False)]
    desk.after(GRACE - 1)
    assert not interrupts(desk)
    desk.after(1)
    assert interrupts(desk) == [(start.run_id, True)]


def test_records_held_for_their_depth_end_when_they_are_cancelled() -> None:
    """They wait for parked runs to go on; cancelled, they wait for nobody."""
    desk = desk_with(slots=1, parked_per_depth=1)
    desk.records(record(0), record(1), record(2))
    (start,) = desk.starts()
    park(desk, start)
    assert not desk.starts()
    desk.cancel(call_id(2))
    assert_cancelled(desk, 2)
    assert desk.engine.waiting == 1


# ---- what is remembered ----


def test_requests_for_calls_too_old_to_live_are_forgotten() -> None:
    """They are told by the time in the id of the call."""
    known = Cancellations(kept_ms=1_000)
    old, young = (at.to_bytes(6, "big") + bytes(10) for at in (5_000, 5_001))
    known.add({old: "a", young: "b"})
    known.forget(6_001)
    assert (known.why(old, b""), known.why(young, b"")) == ("", "b")
    assert len(known) == 1


def test_a_request_without_a_reason_is_one() -> None:
    """Other writers may give none."""
    known = Cancellations()
    known.add({call_id(1): ""})
    assert known.why(call_id(1), b"")


def test_the_failure_of_a_cancelled_call_names_what_its_attempt_ended_with() -> None:
    """Only if that says more than that it was cancelled."""
    desk = desk_with()
    desk.records(record(0))
    run = next(iter(desk.engine._runs.values()))
    run.cancelled = "why"
    assert cancelled_failure(run, None).message == "the call was cancelled: why"
    assert cancelled_failure(run, Failure("x.CancelledError", "")).message == "the call was cancelled: why"
    assert "(its attempt ended with E)" in cancelled_failure(run, Failure("E", "")).message

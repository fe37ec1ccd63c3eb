"""Parked runs at the desk: places given back and taken again, full depths, and copies to the tail."""

from __future__ import annotations

import pytest

from pelton.core.call import Failure, InputHeaders, ResultKind
from pelton.core.decisions import (
    Credit,
    InputRecord,
    Interrupt,
    Pause,
    SendInput,
    SendResult,
    Start,
    Unpark,
)
from pelton.core.offsets import CommitMeta
from support.engine_desk import P0, Desk, call_id, record


def child(offset: int, *ancestors: int) -> InputRecord:
    """A record of a call with these ancestors, the root first."""
    return record(offset, ancestry=b"".join(map(call_id, ancestors)))


def desk_with(slots: int, **settings: int) -> Desk:
    """A desk with so many slots that owns a partition."""
    desk = Desk(**settings)
    desk.engine.capacity(desk.now_ms, slots)
    desk.own()
    return desk


def park(desk: Desk, start: Start) -> None:
    """The attempt waits for a call it made."""
    desk.engine.parked(desk.now_ms, start.run_id)
    desk.take()


def unpark(desk: Desk, run_id: int) -> None:
    """The attempt wants to go on."""
    desk.engine.unparked(desk.now_ms, run_id)
    desk.take()


def end(desk: Desk, start: Start) -> None:
    """The attempt ends with a value, and its outcome is acknowledged."""
    desk.engine.finished(desk.now_ms, start.run_id, b"value", None)
    desk.take()
    for sent in desk.results():
        desk.acknowledge(sent.send_id)


def unparked(desk: Desk) -> list[int]:
    """Runs that may go on."""
    return [action.run_id for action in desk.asked_for(Unpark)]


def test_a_parked_run_gives_its_slot_to_another() -> None:
    """One slot: the child starts while its parent waits, and not before."""
    desk = desk_with(1)
    desk.records(record(0), child(1, 0))
    (parent,) = desk.starts()
    assert desk.engine.running == 1
    park(desk, parent)
    (nested,) = desk.starts()
    assert nested.call_id == call_id(1)
    assert desk.engine.running == 2
    assert not desk.engine.idle


def test_a_run_goes_on_only_with_a_slot() -> None:
    """While its child has the only slot the parent waits for it; then it comes before fresh records."""
    desk = desk_with(1)
    desk.records(record(0), child(1, 0), record(2))
    (parent,) = desk.starts()
    park(desk, parent)
    (nested,) = desk.starts()
    unpark(desk, parent.run_id)
    assert unparked(desk) == []
    end(desk, nested)
    assert unparked(desk) == [parent.run_id]
    assert desk.starts() == []
    end(desk, parent)
    assert [start.call_id for start in desk.starts()] == [call_id(2)]


def test_runs_come_back_in_the_order_in_which_they_asked() -> None:
    """Two that wait for the same slot."""
    desk = desk_with(1)
    desk.records(record(0), record(1), record(2))
    starts = []
    for _ in range(3):
        starts += desk.starts()
        if len(starts) < 3:
            park(desk, starts[-1])
    unpark(desk, starts[1].run_id)
    unpark(desk, starts[0].run_id)
    end(desk, starts[2])
    assert unparked(desk) == [starts[1].run_id]
    end(desk, starts[1])
    assert unparked(desk) == [starts[0].run_id]


def test_parking_twice_frees_one_slot() -> None:
    """Repeated words of an executor change nothing."""
    desk = desk_with(1)
    desk.records(*(record(offset) for offset in range(3)))
    (parent,) = desk.starts()
    park(desk, parent)
    park(desk, parent)
    assert len(desk.starts()) == 1


def test_unparking_what_is_not_parked_is_answered_and_keeps_its_slot() -> None:
    """A run that holds its slot, one that is over, one that never was: each gets its answer at once."""
    desk = desk_with(1)
    desk.records(record(0), record(1))
    (running,) = desk.starts()
    for run_id in (running.run_id, 99):
        unpark(desk, run_id)
    assert unparked(desk) == [running.run_id, 99]
    assert desk.starts() == []


def test_parked_runs_come_back_while_draining() -> None:
    """What runs may end; nothing fresh starts."""
    desk = desk_with(1)
    desk.records(record(0), record(1))
    (parent,) = desk.starts()
    park(desk, parent)
    (other,) = desk.starts()
    desk.engine.drain(desk.now_ms)
    end(desk, other)
    unpark(desk, parent.run_id)
    assert unparked(desk) == [parent.run_id]
    end(desk, parent)
    assert desk.engine.running == 0


def test_a_parked_run_apart_gives_back_its_place_there() -> None:
    """Two suspects with a count run one at a time; one that waits lets the next one begin."""
    desk = Desk()
    desk.engine.capacity(desk.now_ms, 8)
    desk.own(meta=CommitMeta(bound=2, counts={0: 1, 1: 1}), end=2)
    desk.records(record(0), record(1))

    def fence() -> list[Start]:
        for _ in range(3):
            desk.acknowledge_commits()
            for sent in desk.results():
                desk.acknowledge(sent.send_id)
        return desk.starts()

    (first,) = fence()
    assert first.isolated
    assert fence() == []
    park(desk, first)
    (second,) = fence()
    assert second.isolated
    unpark(desk, first.run_id)
    assert unparked(desk) == [first.run_id]


@pytest.mark.parametrize("how", ["died", "timeout", "lost"])
def test_places_are_counted_right_however_a_parked_run_ends(how: str) -> None:
    """It has no place to give back a second time: with one slot, one record runs at a time afterwards."""
    desk = desk_with(1, timeout_ms=1000, max_attempts=1)
    desk.records(record(0), record(1), record(2), record(3))
    (parent,) = desk.starts()
    park(desk, parent)
    (other,) = desk.starts()
    if how == "died":
        desk.engine.executor_died(desk.now_ms, [parent.run_id], "killed")
    elif how == "timeout":
        desk.after(500)
        end(desk, other)
        (other,) = desk.starts()
        desk.after(501)
        assert [action.run_id for action in desk.asked_for(Interrupt)] == [parent.run_id]
    else:
        desk.engine.lost(desk.now_ms, [P0])
        desk.own()
        desk.records(record(0), record(1))
    desk.take()
    assert desk.engine.running == 1
    unpark(desk, parent.run_id)
    assert unparked(desk) == [parent.run_id]
    assert len(desk.starts()) == (1 if how == "lost" else 0)
    assert desk.engine.running == 1


def test_so_many_of_one_depth_are_parked_and_no_more_start() -> None:
    """Roots wait behind two parked roots, children behind them are reached, and the roots go on in order."""
    desk = desk_with(1, parked_per_depth=2)
    desk.records(record(0), record(1), record(2), record(3), child(4, 0), child(5, 1))
    (first,) = desk.starts()
    park(desk, first)
    (second,) = desk.starts()
    park(desk, second)
    for number in (4, 5):
        (nested,) = desk.starts()
        assert nested.call_id == call_id(number)
        end(desk, nested)
    assert desk.starts() == []
    assert desk.engine.waiting == 2
    unpark(desk, first.run_id)
    assert unparked(desk) == [first.run_id]
    end(desk, first)
    (third,) = desk.starts()
    assert third.call_id == call_id(2)
    end(desk, third)
    assert [start.call_id for start in desk.starts()] == [call_id(3)]


def test_records_held_back_count_in_the_window() -> None:
    """Intake pauses although the queue is empty: what is held is in memory as well."""
    desk = desk_with(1, parked_per_depth=1, window=4)
    desk.records(record(0))
    (parent,) = desk.starts()
    park(desk, parent)
    desk.records(*(record(offset) for offset in range(1, 5)))
    assert desk.asked_for(Pause) == []
    desk.records(record(5))
    desk.records(record(6))
    assert len(desk.asked_for(Pause)) == 1


def full_of_roots(**settings: int) -> tuple[Desk, Start]:
    """One parked root, and a window full of others that cannot start."""
    desk = desk_with(1, parked_per_depth=1, window=4, **settings)
    desk.records(*(record(offset) for offset in range(7)))
    (parent,) = desk.starts()
    park(desk, parent)
    return desk, parent


def moved(desk: Desk) -> list[SendResult]:
    """`moved` records to be sent."""
    sent = desk.results()
    assert {each.result.kind for each in sent} <= {ResultKind.MOVED, ResultKind.STARTED}
    return [each for each in sent if each.result.kind is ResultKind.MOVED]


def test_roots_go_to_the_tail_when_every_call_is_parked_and_the_window_is_full() -> None:
    """`moved` first, then the copy, then the original is done: in this order, each acknowledged."""
    desk, parent = full_of_roots()
    said = moved(desk)
    assert [each.result.call_id for each in said] == [call_id(number) for number in range(1, 7)]
    assert desk.asked_for(SendInput) == []
    for each in said:
        desk.acknowledge(each.send_id)
    copies = desk.asked_for(SendInput)
    assert [copy.target for copy in copies] == [P0] * 6
    assert [copy.headers for copy in copies] == [InputHeaders(call_id(n), "f") for n in range(1, 7)]
    desk.after(1000)
    desk.acknowledge(copies[0].send_id, 7)
    desk.after(1000)
    _, meta = desk.committed(desk.acknowledge_commits())
    assert meta.finished == ((1, 1),)
    for at, copy in enumerate(copies[1:], 8):
        desk.acknowledge(copy.send_id, at)
    # Behind the roots lies the child; it starts, and with it the round ends.
    desk.records(child(13, 0))
    (nested,) = desk.starts()
    assert nested.call_id == call_id(13)
    end(desk, nested)
    unpark(desk, parent.run_id)
    assert unparked(desk) == [parent.run_id]


def test_a_copy_that_was_not_acknowledged_leaves_the_original_waiting() -> None:
    """Nothing is lost, and nothing is done too early."""
    desk, _ = full_of_roots()
    for each in moved(desk):
        desk.acknowledge(each.send_id)
    copies = desk.asked_for(SendInput)
    for copy in copies:
        desk.acknowledge(copy.send_id, ok=False)
    desk.after(1000)
    for commit in desk.acknowledge_commits():
        assert desk.committed([commit])[1].finished == ()
    assert desk.engine.waiting + len(desk.asked_for(SendInput)) == 6


def test_tail_copies_of_suspects_keep_their_counts() -> None:
    """Who may have run before says so at its new place, with the deliveries and attempts known here."""
    desk = Desk(parked_per_depth=1, window=4)
    desk.engine.capacity(desk.now_ms, 1)
    desk.own(meta=CommitMeta(used={3: 1}))
    desk.records(record(0), record(1), record(2, may_have_run=0), record(3, may_have_run=1, used=2))
    (parent,) = desk.starts()
    park(desk, parent)
    desk.records(*(record(offset) for offset in range(4, 7)))
    for each in moved(desk):
        desk.acknowledge(each.send_id)
    headers = {copy.headers.call_id: copy.headers for copy in desk.asked_for(SendInput)}
    assert headers[call_id(1)].may_have_run is None
    assert headers[call_id(2)].may_have_run == 0


def test_a_round_that_finds_nothing_waits_before_the_next_one() -> None:
    """What the parked call waits for may be elsewhere: the backlog is not copied round and round."""
    desk, _ = full_of_roots()
    offset = 7
    for round_ in range(2):
        for each in moved(desk):
            desk.acknowledge(each.send_id)
        copies = desk.asked_for(SendInput)
        assert len(copies) == 6
        for copy in copies:
            desk.acknowledge(copy.send_id, offset)
            desk.records(record(offset, int.from_bytes(copy.headers.call_id, "big")))
            offset += 1
        assert desk.asked_for(SendInput) == []
        desk.after(500)
        assert desk.asked_for(SendInput) == []
        desk.after(501 + 1000 * round_)


def test_nothing_goes_to_the_tail_while_something_runs() -> None:
    """What runs may end and make room."""
    desk = desk_with(2, parked_per_depth=1, window=4)
    desk.records(*(record(offset) for offset in range(8)))
    parent, other = desk.starts()
    park(desk, parent)
    assert moved(desk) == []
    assert desk.asked_for(SendInput) == []
    park(desk, other)
    assert len(moved(desk)) == 6


def test_partitions_that_leave_are_not_copied() -> None:
    """A copy that began before a revoke does not finish the original after it."""
    desk, _ = full_of_roots()
    said = moved(desk)
    desk.engine.lost(desk.now_ms, [P0])
    desk.take()
    for each in said:
        desk.acknowledge(each.send_id)
    assert desk.asked_for(SendInput) == []
    assert desk.engine.running == 0
    assert desk.engine.waiting == 0


def test_failures_of_parked_runs_are_as_of_any_other() -> None:
    """A run that failed after it came back ends with its failure, once."""
    desk = desk_with(1)
    desk.records(record(0))
    (start,) = desk.starts()
    park(desk, start)
    unpark(desk, start.run_id)
    desk.asked_for(Credit)
    desk.engine.finished(desk.now_ms, start.run_id, None, Failure("ValueError", "no"))
    desk.take()
    assert desk.engine.running == 0
    desk.acknowledge_commits()


def test_a_second_record_of_a_parked_call_is_bound_and_never_copied() -> None:
    """`moved` would carry a higher token than the run has, and its outcome would count for nobody."""
    desk = desk_with(1, parked_per_depth=1, window=4)
    desk.records(record(0), *(record(offset) for offset in range(1, 4)), record(4, 0), record(5), record(6))
    (parent,) = desk.starts()
    park(desk, parent)
    desk.after(1)
    told = [each.result.call_id for each in moved(desk)]
    assert call_id(0) not in told
    unpark(desk, parent.run_id)
    end(desk, parent)
    desk.after(1000)
    offset, meta = desk.committed(desk.acknowledge_commits())
    assert (offset, meta.finished) == (1, ((4, 1),))

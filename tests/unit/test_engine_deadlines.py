"""Calls with a deadline: none begins after it, none runs on after it, and each ends with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from pelton.core.call import Failure
from pelton.core.decisions import Interrupt, SendDeadLetter, Start
from pelton.core.retry import RetrySpec
from support.engine_desk import Desk, call_id, record


def desk_of(slots: int = 1, **settings: Any) -> Desk:
    """A desk with a partition and so many slots."""
    desk = Desk(**settings)
    desk.own()
    desk.engine.capacity(desk.now_ms, slots)
    return desk


def given_up(desk: Desk) -> list[tuple[bytes | None, str, str]]:
    """Calls that were given up, with code and message."""
    found = []
    for letter in desk.asked_for(SendDeadLetter):
        headers, reason = letter.record.headers, letter.reason
        found.append((None if headers is None else headers.call_id, reason.code, reason.message))
    return found


def test_call_that_waits_past_its_deadline_does_not_begin() -> None:
    """It ends as soon as its time is over, while the slot it waits for is still taken."""
    desk = desk_of()
    desk.records(record(0), record(1, deadline_ms=desk.now_ms + 5_000), record(2))
    assert [each.call_id for each in desk.starts()] == [call_id(0)]
    desk.after(5_000)
    assert given_up(desk) == []
    desk.after(1)
    assert given_up(desk) == [(call_id(1), "DEADLINE_EXCEEDED", "its deadline passed before it could begin")]
    assert desk.starts() == []


def test_call_that_comes_too_late_does_not_begin() -> None:
    """Also where a slot is free."""
    desk = desk_of()
    desk.records(record(0, deadline_ms=desk.now_ms - 1))
    assert desk.starts() == []
    assert [code for _, code, _ in given_up(desk)] == ["DEADLINE_EXCEEDED"]


def test_call_that_runs_past_its_deadline_is_stopped() -> None:
    """And is not tried again, whatever its policy is."""
    desk = desk_of(retry=RetrySpec(100, 1.0, 100, 0.0, ("DEADLINE_EXCEEDED",)))
    desk.records(record(0, deadline_ms=desk.now_ms + 2_000))
    (start,) = desk.starts()
    desk.after(1_999)
    assert desk.asked_for(Interrupt) == []
    desk.after(1)
    assert [each.run_id for each in desk.asked_for(Interrupt)] == [start.run_id]
    assert given_up(desk) == [(call_id(0), "DEADLINE_EXCEEDED", "its deadline passed while it ran")]


def test_call_that_ends_before_its_deadline_is_left_alone() -> None:
    """Nothing comes of the deadline afterwards."""
    desk = desk_of()
    desk.records(record(0, deadline_ms=desk.now_ms + 2_000))
    (start,) = desk.starts()
    desk.engine.finished(desk.now_ms, start.run_id, b"v", None)
    desk.take()
    (outcome,) = desk.results()
    desk.acknowledge(outcome.send_id)
    desk.after(10_000)
    assert desk.asked_for(Interrupt) == []
    assert given_up(desk) == []


def test_failed_call_is_not_tried_again_after_its_deadline() -> None:
    """It ends with what it failed with."""
    desk = desk_of(retry=RetrySpec(5_000, 1.0, 5_000, 0.0))
    desk.records(record(0, deadline_ms=desk.now_ms + 4_000))
    (start,) = desk.starts()
    desk.engine.finished(desk.now_ms, start.run_id, None, Failure("ValueError", "no", retriable=True))
    desk.take()
    assert [message for _, _, message in given_up(desk)] == ["no"]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "keys"])
def test_call_that_expires_frees_those_behind_it(ordered: bool) -> None:
    """With key order the next one of its lane, too."""
    desk = desk_of(2, ordered=ordered)
    key = b"k"
    desk.records(record(0, key=key), record(1, key=key, deadline_ms=desk.now_ms + 1_000), record(2, key=key))
    starts: list[Start] = desk.starts()
    desk.after(1_001)
    desk.acknowledge_commits()
    for start in starts:
        desk.engine.finished(desk.now_ms, start.run_id, b"v", None)
    desk.take()
    began = [each.call_id for each in starts]
    for _ in range(10):
        for result in desk.results():
            desk.acknowledge(result.send_id)
        for letter in desk.asked_for(SendDeadLetter):
            desk.acknowledge(letter.send_id)
        desk.after(200)
        desk.acknowledge_commits()
        for start in desk.starts():
            began.append(start.call_id)
            desk.engine.finished(desk.now_ms, start.run_id, b"v", None)
            desk.take()
    assert call_id(2) in began
    if ordered:
        assert call_id(1) not in began

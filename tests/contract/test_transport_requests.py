"""What every transport promises of cancelling, and of receivers that are slower than the log."""

from __future__ import annotations

import pytest

from pelton.core.call import reply_partition
from pelton.core.fold import fold
from pelton.errors import AcceptanceUnknown, DataLoss
from pelton.protocol.codec import decode_cancellation
from pelton.transport import routing
from support.transport_callers import WAIT_S, Caller, Inbox, chunk, outcome
from support.transport_platforms import Platform

# --- cancelling ---


def test_contract_cancellation_is_a_record_with_id_reason_and_time(
    platform: Platform, caller: Caller
) -> None:
    """It is told once when Kafka has it; whoever owns the call finds it under the id of the call."""
    call_id, _ = caller.accepted()
    other = caller.mint()
    asked = Inbox()
    before = caller.transport.now_ms()
    caller.transport.cancel(call_id, "somebody asked", asked.on_accepted)
    asked.await_that(lambda: asked.accepted == [None])
    caller.transport.cancel(other, "r" * 500, asked.on_accepted)
    asked.await_that(lambda: asked.accepted == [None, None])
    found = {record.key: decode_cancellation(record.value) for record in platform.cancellations()}
    assert list(found) == [call_id, other] or list(found) == [other, call_id]
    assert found[call_id].call_id == call_id
    assert found[call_id].reason == "somebody asked"
    assert abs(found[call_id].requested_ms - before) < 60_000
    assert found[other].reason == "r" * 200


def test_contract_cancelling_leaves_the_call_to_its_results(platform: Platform, caller: Caller) -> None:
    """The request ends nothing by itself: the call ends by its outcome, as every reader sees it."""
    call_id, inbox = caller.accepted()
    asked = Inbox()
    caller.transport.cancel(call_id, "r", asked.on_accepted)
    asked.await_that(lambda: asked.accepted == [None])
    assert not inbox.results
    platform.append_result(caller.spec.name, outcome(call_id))
    assert inbox.await_outcome()[1].items == (b"done",)


def test_contract_cancellation_that_is_not_acknowledged_is_unknown(
    platform: Platform, caller: Caller
) -> None:
    """The broker is cut off: the answer says that the request may be in force."""
    call_id, _ = caller.accepted()
    platform.freeze()
    asked = Inbox()
    try:
        caller.transport.cancel(call_id, "r", asked.on_accepted)
        asked.await_that(lambda: bool(asked.accepted))
    finally:
        platform.thaw()
    assert isinstance(asked.accepted[0], AcceptanceUnknown)
    assert "Cancelling again does no harm" in str(asked.accepted[0])
    assert len(asked.accepted) == 1


# --- receivers that are slower than the log ---


def test_contract_paused_receiver_goes_on_where_it_stood(
    platform: Platform, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In stretches of bounded size, each chunk once and in order, then live; nobody else waits for it."""
    monkeypatch.setattr(routing, "STRETCH_CHUNKS", 40)
    name = caller.spec.name
    call_id, slow = caller.accepted()
    quick = Inbox()
    caller.transport.attach(name, call_id, quick.on_results, WAIT_S)
    platform.append_result(name, chunk(call_id, 0, b"0"))
    slow.await_that(lambda: len(slow.results) == 1)
    caller.transport.pause(call_id, slow.on_results)
    caller.transport.pause(call_id, slow.on_results)
    other, _ = caller.accepted()
    for number in range(1, 600):
        platform.append_result(name, chunk(call_id, number, str(number).encode()))
        if number % 3 == 0:
            platform.append_result(name, chunk(other, number // 3 - 1, b"other"))
    quick.await_that(lambda: len(fold(quick.results)[0]) == 600)
    before = len(slow.results)
    assert before < 10, "what was on its way may come, and no more"
    stretches = 0
    while not caller.transport.resume(call_id, slow.on_results, WAIT_S):
        stretches += 1
    assert stretches >= 1
    slow.await_that(lambda: len(fold(slow.results)[0]) == 600)
    platform.append_result(name, chunk(call_id, 600, b"600"))
    platform.append_result(name, outcome(call_id, first=601))
    chunks, _ = slow.await_outcome()
    assert chunks == [str(number).encode() for number in range(601)]
    assert [result.first for result in slow.results if result.items][:601] == list(range(601))
    assert caller.transport.resume(call_id, slow.on_results, WAIT_S)


def test_contract_paused_receiver_that_is_forgotten_gets_nothing(platform: Platform, caller: Caller) -> None:
    """Forgetting by receiver and by call both end the pause for good."""
    name = caller.spec.name
    for forget in (True, False):
        call_id, inbox = caller.accepted()
        caller.transport.pause(call_id, inbox.on_results)
        caller.transport.forget(call_id, inbox.on_results) if forget else caller.transport.forget(call_id)
        platform.append_result(name, outcome(call_id))
        assert caller.transport.resume(call_id, inbox.on_results, WAIT_S)
        after, later = caller.accepted()
        platform.append_result(name, outcome(after))
        later.await_outcome()
        assert not inbox.results


def test_contract_paused_receiver_whose_past_is_gone_is_told(platform: Platform, caller: Caller) -> None:
    """The log was cut away meanwhile: an error, and never a silent gap."""
    call_id, inbox = caller.accepted()
    caller.transport.pause(call_id, inbox.on_results)
    partition = reply_partition(call_id)
    for number in range(5):
        platform.append_result(caller.spec.name, chunk(call_id, number, b"x"))
    first, _ = caller.accepted()
    platform.append_result(caller.spec.name, outcome(first))
    platform.trim(platform.topics.results(caller.spec.name), partition)
    with pytest.raises(DataLoss):
        caller.transport.resume(call_id, inbox.on_results, WAIT_S)
    caller.transport.forget(call_id)

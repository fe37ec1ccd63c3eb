"""Attaching to calls: shared in the process that made them, replayed from the log everywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pelton.client import session
from pelton.core.call import call_id_text, mint_call_id
from pelton.core.spec import FunctionKind
from pelton.errors import CallExpired, CallNotFound, FunctionNotFound
from pelton.references import function_ref
from pelton.transport.ports import AttachState
from support.callers import ScriptedTransport, chunk, outcome, spec_of

CALL = mint_call_id(time.time_ns() // 1_000_000, 5, b"12345678")


@pytest.fixture
def transport() -> Iterator[ScriptedTransport]:
    """The transport of this process's connection."""
    transport = ScriptedTransport()
    transport.scripted.change(spec_of("f"), spec_of("g"), spec_of("count", FunctionKind.GENERATOR, "n"))
    session.install(transport)
    yield transport
    session.close()


def test_a_finished_call_of_another_process_is_replayed(transport: ScriptedTransport) -> None:
    """The future has ended when `attach` returns, and the call is known to be accepted."""
    transport.history[CALL] = [outcome(CALL, value="done")]
    future = function_ref("f").attach(call_id_text(CALL))
    assert future.result(0) == "done"
    future.accepted.result(0)


def test_a_pending_call_of_another_process_is_followed(transport: ScriptedTransport) -> None:
    """What was streamed before is there, and what comes later too."""
    transport.history[CALL] = [chunk(CALL, 0, 1, 2)]
    future = function_ref("count").attach(call_id_text(CALL))
    assert not future.done()
    transport.deliver(CALL, chunk(CALL, 2, 3), outcome(CALL, first=3))
    assert future.result(0) == [1, 2, 3]
    assert list(future.stream()) == [1, 2, 3]


def test_unknown_and_expired_are_different_answers(transport: ScriptedTransport) -> None:
    """Each has its error, and nothing stays registered."""
    for state, error in ((AttachState.UNKNOWN, CallNotFound), (AttachState.EXPIRED, CallExpired)):
        transport.attach_states[CALL] = state
        with pytest.raises(error, match=call_id_text(CALL)):
            _ = function_ref("f").attach(call_id_text(CALL))
    assert session.current().calls == {}


def test_text_that_is_no_call_id_is_refused(transport: ScriptedTransport) -> None:
    """A random UUID was never a call."""
    with pytest.raises(ValueError, match="version 7"):
        _ = function_ref("f").attach("6f1ed002-ab59-4d5a-8b4c-3a6a7d5e2f10")
    with pytest.raises(FunctionNotFound):
        _ = function_ref("nobody").attach(call_id_text(CALL))


def test_an_open_call_of_this_process_is_shared(transport: ScriptedTransport) -> None:
    """Both futures end by the same outcome; detaching one leaves the other alone."""
    first = function_ref("f").async_call(1)
    second = function_ref("f").attach(first.call_id)
    first.detach()
    transport.answer(transport.last.call_id, 7)
    assert (first.result(0), second.result(0)) == (7, 7)


def test_an_open_stream_of_this_process_is_read_a_second_time(transport: ScriptedTransport) -> None:
    """The stream drops what it yielded, so the future replays the call for itself; both see everything."""
    stream = function_ref("count")(1)
    call_id = transport.last.call_id
    transport.deliver(call_id, chunk(call_id, 0, "a", "b"))
    assert next(stream) == "a"
    future = function_ref("count").attach(stream.call_id)
    stream.close()
    transport.deliver(call_id, chunk(call_id, 2, "c"), outcome(call_id, first=3))
    assert future.result(0) == ["a", "b", "c"]


def test_a_call_of_another_function_is_not_found(transport: ScriptedTransport) -> None:
    """The id is known here, but it belongs to another function."""
    future = function_ref("f").async_call(1)
    with pytest.raises(CallNotFound, match="a call of 'f', not of 'g'"):
        _ = function_ref("g").attach(future.call_id)

"""Cancelling from the caller's side: what asks for it, what does not, and what the caller is told."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator

import pytest

from pelton.client import calls, session
from pelton.client.futures import CallFuture
from pelton.core.call import Failure, call_id_text
from pelton.core.spec import FunctionKind
from pelton.errors import CallCancelled, FunctionError, SubmitFailed, TransportError
from pelton.references import function_ref
from pelton.transport.ports import OnAccepted
from support.callers import ScriptedTransport, chunk, outcome, spec_of

CANCELLED = Failure("CallCancelled", "the call was cancelled: somebody asked", "", "CANCELLED")


@pytest.fixture
def transport() -> Iterator[ScriptedTransport]:
    """The transport of this process's connection; `plain` and the generator `count` are deployed."""
    transport = ScriptedTransport()
    transport.scripted.change(spec_of("plain"), spec_of("count", FunctionKind.GENERATOR, "n"))
    session.install(transport)
    yield transport
    session.close()


def cancelled(transport: ScriptedTransport) -> list[str]:
    """Reasons of what was cancelled so far; what is on its way is waited for."""
    for call_id in transport.sent:
        transport.accept(call_id)
    assert session.flush(5) == 0
    return list(transport.cancelled.values())


def test_a_future_asks_and_ends_by_the_outcome(transport: ScriptedTransport) -> None:
    """`cancel()` sends the request and says so; only the outcome ends the future."""
    future = function_ref("plain").async_call(1)
    call_id = transport.last.call_id
    assert future.cancel()
    assert transport.cancelled == {call_id: "its caller cancelled the future"}
    assert not future.done()
    assert not future.cancelled()
    transport.deliver(call_id, outcome(call_id, failure=CANCELLED))
    assert future.cancelled()
    with pytest.raises(CallCancelled, match="somebody asked") as caught:
        future.result(0)
    assert (caught.value.code, caught.value.retriable) == ("CANCELLED", False)
    assert isinstance(future.exception(0), CallCancelled)


def test_a_call_that_ended_first_keeps_its_value(transport: ScriptedTransport) -> None:
    """The outcome was faster: the value is there, and nothing claims that the call was cancelled."""
    future = function_ref("plain").async_call(1)
    assert future.cancel()
    transport.answer(transport.last.call_id, "value")
    assert (future.result(0), future.cancelled()) == ("value", False)


def test_an_ended_call_is_not_cancelled(transport: ScriptedTransport) -> None:
    """There is nothing to ask for: False, and no record."""
    future = function_ref("plain").async_call(1)
    transport.answer(transport.last.call_id, "value")
    assert future.cancel() is False
    assert not transport.cancelled


def test_of_two_waiters_one_may_give_up(transport: ScriptedTransport) -> None:
    """Cancelling a task that awaits the future detaches that task; the other one gets the value."""
    future: CallFuture[object] = function_ref("plain").async_call(1)

    async def main() -> object:
        async def wait() -> object:
            return await future

        first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
        mirrored = future.as_asyncio()
        await asyncio.sleep(0)
        first.cancel()
        mirrored.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        transport.answer(transport.last.call_id, "value")
        return await second

    assert asyncio.run(main()) == "value"
    assert not transport.cancelled


def test_waiting_with_a_timeout_cancels_nothing(transport: ScriptedTransport) -> None:
    """`result(timeout)` may be asked again."""
    future = function_ref("plain").async_call(1)
    with pytest.raises(TimeoutError):
        future.result(0.01)
    assert not cancelled(transport)


def test_an_interrupt_in_result_cancels_nothing(
    transport: ScriptedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C there leaves the future in the hands of the caller."""
    future = function_ref("plain").async_call(1)

    def interrupted(condition: object, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(future._condition), "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        future.result()
    assert not cancelled(transport)


@pytest.mark.parametrize("how", ["close", "with", "error", "dropped", "collected"])
def test_leaving_the_stream_of_a_call_cancels_it(transport: ScriptedTransport, how: str) -> None:
    """However its consumer leaves it: a loop that breaks, a block that ends, an object nobody has."""
    stream = function_ref("count")(3)
    call_id = transport.last.call_id
    transport.deliver(call_id, chunk(call_id, 0, "a"))
    assert next(stream) == "a"
    if how == "close":
        stream.close()
        stream.close()
    elif how == "with":
        with stream:
            assert not transport.cancelled
    elif how == "error":
        with pytest.raises(ZeroDivisionError), stream:
            raise ZeroDivisionError
    elif how == "collected":
        cycle: list[object] = [stream]
        cycle.append(cycle)
        del cycle
    del stream
    gc.collect()
    assert cancelled(transport)[0] == "its stream was left"
    assert transport.forgotten.count(call_id) >= 1


def test_a_loop_that_breaks_cancels_its_call(transport: ScriptedTransport) -> None:
    """The stream is the loop's own: nobody else has it once the loop is left."""
    transport.on_submit = lambda invocation: transport.deliver(
        invocation.call_id, chunk(invocation.call_id, 0, "a", "b")
    )
    for value in function_ref("count")(3):
        assert value == "a"
        break
    assert cancelled(transport) == ["its stream was left"]


def test_a_stream_read_to_its_end_is_not_cancelled(transport: ScriptedTransport) -> None:
    """Whether it ended well or failed."""
    for failure in (None, Failure("ValueError", "no")):
        stream = function_ref("count")(3)
        call_id = transport.last.call_id
        transport.deliver(call_id, chunk(call_id, 0, "a"), outcome(call_id, failure=failure, first=1))
        assert next(stream) == "a"
        with pytest.raises(FunctionError if failure else StopIteration):
            next(stream)
        del stream
    assert not cancelled(transport)


def test_leaving_the_stream_of_a_future_leaves_the_call_alone(transport: ScriptedTransport) -> None:
    """The future still wants the list."""
    future = function_ref("count").async_call(3)
    call_id = transport.last.call_id
    with future.stream() as stream:
        transport.deliver(call_id, chunk(call_id, 0, "a"))
        assert next(stream) == "a"
    assert not cancelled(transport)
    transport.deliver(call_id, outcome(call_id, first=1))
    assert future.result(0) == ["a"]


def test_a_call_that_was_refused_is_not_cancelled(transport: ScriptedTransport) -> None:
    """What was never sent needs no request."""

    def refuse(invocation: object) -> None:
        raise SubmitFailed("queue closed")

    transport.on_submit = refuse
    with pytest.raises(SubmitFailed):
        function_ref("count")(3)
    gc.collect()
    assert not cancelled(transport)


def test_a_cancellation_that_kafka_refuses_is_told(
    transport: ScriptedTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    """The caller of `close` cannot be told by an error, so stderr is."""
    transport.on_cancel = lambda on_accepted: on_accepted(SubmitFailed("Kafka refused"))
    stream = function_ref("count")(3)
    stream.close()
    cancelled(transport)
    text = call_id_text(transport.last.call_id)
    assert f"pelton: call {text} of 'count' goes on: Kafka refused" in capsys.readouterr().err


def test_a_request_that_cannot_be_sent_is_raised_by_cancel(transport: ScriptedTransport) -> None:
    """Whoever asks for it himself hears it, and nothing is waited for at the end."""

    def refuse(on_accepted: object) -> None:
        raise TransportError("no")

    transport.on_cancel = refuse
    future = function_ref("plain").async_call(1)
    with pytest.raises(TransportError):
        future.cancel()
    transport.accept(transport.last.call_id)
    assert session.flush(0.01) == 0


def test_closing_waits_for_what_was_left_a_moment_ago(transport: ScriptedTransport) -> None:
    """A program that breaks out of a stream and ends has cancelled the call."""
    held = threading.Event()

    def slowly(on_accepted: OnAccepted) -> None:
        held.wait(5)
        on_accepted(None)

    transport.on_cancel = slowly
    stream = function_ref("count")(3)
    transport.accept(transport.last.call_id)
    stream.close()
    threading.Timer(0.2, held.set).start()
    session.close()
    assert list(transport.cancelled.values()) == ["its stream was left"]
    assert held.is_set()


def test_a_forked_child_that_drops_an_inherited_stream_leaves_the_call_alone(
    transport: ScriptedTransport,
) -> None:
    """The stream is the parent's, which goes on reading it."""
    stream = function_ref("count")(3)
    call_id = transport.last.call_id
    child = os.fork()
    if child == 0:
        stream.close()
        del stream
        gc.collect()
        left = session.flush(1) or len(transport.cancelled)
        os._exit(left)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    transport.deliver(call_id, chunk(call_id, 0, "a"), outcome(call_id, first=1))
    assert list(stream) == ["a"]
    assert not cancelled(transport)


def test_a_stream_can_be_collected_while_any_lock_is_held(transport: ScriptedTransport) -> None:
    """A collection may run in a thread that holds a lock of ours: dropping a stream waits for none."""
    stream = function_ref("count")(3)
    with calls._changing:
        del stream
        gc.collect()
    assert cancelled(transport) == ["its stream was left"]

"""Streams from the caller's side: every chunk once and in order, and reading ends when it is left."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from pelton.client import calls, session
from pelton.client.streams import Stream
from pelton.core.call import CallId, Failure, Result, ResultKind, call_id_text
from pelton.core.spec import FunctionKind
from pelton.errors import CallUnavailable, DataLoss, PayloadCorrupt
from pelton.references import function_ref
from support.callers import FIRST, ScriptedTransport, chunk, outcome, spec_of


@pytest.fixture
def transport() -> Iterator[ScriptedTransport]:
    """The transport of this process's connection; the generators `count` and `acount` are deployed."""
    transport = ScriptedTransport()
    transport.scripted.change(
        spec_of("count", FunctionKind.GENERATOR, "n"),
        spec_of("acount", FunctionKind.ASYNC_GENERATOR, "n"),
        spec_of("plain"),
    )
    session.install(transport)
    yield transport
    session.close()


def started(transport: ScriptedTransport, name: str = "count") -> tuple[Stream[object], CallId]:
    """A stream that was just started."""
    stream = function_ref(name)(1)
    assert isinstance(stream, Stream)
    return stream, transport.last.call_id


@pytest.mark.parametrize("name", ["count", "acount"])
def test_a_generator_call_is_a_stream(transport: ScriptedTransport, name: str) -> None:
    """Generators of both kinds stream; the values come in order, then the stream ends."""
    stream, call_id = started(transport, name)
    transport.deliver(call_id, chunk(call_id, 0, "a"), chunk(call_id, 1, "b", None))
    assert (next(stream), next(stream), next(stream)) == ("a", "b", None)
    transport.deliver(call_id, outcome(call_id, first=3))
    assert list(stream) == []
    assert stream.call_id == call_id_text(call_id)


def test_redelivered_and_woken_up_records_change_nothing(transport: ScriptedTransport) -> None:
    """P3: duplicates, gaps and lower tokens are folded away."""
    stream, call_id = started(transport)
    late = Result(call_id, FIRST._replace(epoch=99), ResultKind.CHUNK, first=1, items=(b"\xa1x",))
    transport.deliver(call_id, chunk(call_id, 0, 1, 2), late, chunk(call_id, 0, 1, 2), chunk(call_id, 5, 9))
    transport.deliver(call_id, chunk(call_id, 1, 2, 3), outcome(call_id, first=3), chunk(call_id, 3, 4))
    assert list(stream) == [1, 2, 3]


def test_a_failed_stream_raises_after_its_last_value(transport: ScriptedTransport) -> None:
    """What was yielded is delivered first; the error comes once, then the stream has ended."""
    stream, call_id = started(transport)
    failure = Failure("Lost", "executor lost", code="UNAVAILABLE")
    transport.deliver(call_id, chunk(call_id, 0, 1), outcome(call_id, failure=failure, first=1))
    assert next(stream) == 1
    with pytest.raises(CallUnavailable):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_waiting_thread_is_woken(transport: ScriptedTransport) -> None:
    """Chunks arrive on reading threads while a consumer waits in `next`."""
    stream, call_id = started(transport)

    def reading() -> None:
        for number in range(200):
            transport.deliver(call_id, chunk(call_id, number, number))
        transport.deliver(call_id, outcome(call_id, first=200))

    thread = threading.Thread(target=reading)
    thread.start()
    assert list(stream) == list(range(200))
    thread.join()


def test_a_waiting_coroutine_is_woken(transport: ScriptedTransport) -> None:
    """The same with `async for`; a cancelled wait loses nothing."""

    async def main() -> list[object]:
        stream, call_id = started(transport, "acount")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)

        def reading() -> None:
            for number in range(200):
                transport.deliver(call_id, chunk(call_id, number, number))
            transport.deliver(call_id, outcome(call_id, first=200))

        thread = threading.Thread(target=reading)
        thread.start()
        async with stream:
            values = [value async for value in stream]
        thread.join()
        return values

    assert asyncio.run(main()) == list(range(200))


def test_a_stream_has_one_consumer(transport: ScriptedTransport) -> None:
    """A second reader at the same time is refused, as for a Python generator."""
    stream, call_id = started(transport)
    values: list[object] = []
    thread = threading.Thread(target=lambda: values.extend(stream))
    thread.start()
    wait_until(lambda: stream._reading.locked())
    with pytest.raises(RuntimeError, match="one consumer"):
        next(stream)
    transport.deliver(call_id, chunk(call_id, 0, 1), outcome(call_id, first=1))
    thread.join()
    assert values == [1]


def test_leaving_early_stops_reading(transport: ScriptedTransport) -> None:
    """A `with` block that ends, or a stream that is dropped, reads no more."""
    stream, call_id = started(transport)
    with stream:
        transport.deliver(call_id, chunk(call_id, 0, 1, 2))
        assert next(stream) == 1
    assert transport.forgotten == [call_id]
    assert list(stream) == []
    assert session.current().calls == {}

    stream, call_id = started(transport)
    transport.deliver(call_id, chunk(call_id, 0, 1))
    for _ in stream:
        break
    del stream
    gc.collect()
    # Dropping may happen in a collection of garbage, so another thread does the rest.
    wait_until(lambda: transport.forgotten[-1] == call_id)


def test_closing_wakes_a_waiting_consumer(transport: ScriptedTransport) -> None:
    """Another thread may close the stream under a consumer that waits."""
    stream, _ = started(transport)
    values: list[object] = []
    thread = threading.Thread(target=lambda: values.extend(stream))
    thread.start()
    wait_until(lambda: stream._reading.locked())
    stream.close()
    thread.join(5)
    assert not thread.is_alive()
    assert values == []


def test_streams_of_a_future_each_see_everything(transport: ScriptedTransport) -> None:
    """`future.stream()` starts at the first value each time, and the list stays available."""
    future = function_ref("count").async_call(1)
    call_id = transport.last.call_id
    transport.deliver(call_id, chunk(call_id, 0, "a", "b"))
    first, second = future.stream(), future.stream()
    assert next(first) == "a"
    first.close()
    assert call_id not in transport.forgotten
    transport.deliver(call_id, chunk(call_id, 2, "c"), outcome(call_id, first=3))
    assert list(second) == ["a", "b", "c"]
    assert future.result(0) == ["a", "b", "c"]


def test_a_plain_function_has_no_stream(transport: ScriptedTransport) -> None:
    """Asking for one says what to do."""
    with pytest.raises(TypeError, match="use result"):
        function_ref("plain").async_call(1).stream()


def test_a_stream_far_behind_stops_reading_and_catches_up(
    transport: ScriptedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded: reading stops, and goes on from where it stood, in stretches, until it is live."""
    monkeypatch.setattr(calls, "MAX_BEHIND_CHUNKS", 10)
    transport.stretch = 7
    stream, call_id = started(transport)
    for number in range(100):
        transport.deliver(call_id, chunk(call_id, number, number))
    assert len(stream._call.chunks) == 11
    for number in range(100):
        assert next(stream) == number
        assert len(stream._call.chunks) <= 11
    assert not stream._call.paused
    transport.deliver(call_id, chunk(call_id, 100, 100), outcome(call_id, first=101))
    assert list(stream) == [100]


def test_a_stream_that_is_left_while_it_is_behind_reads_no_more(
    transport: ScriptedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread leaves it in the moment in which it goes on: nothing is read for nobody."""
    monkeypatch.setattr(calls, "MAX_BEHIND_CHUNKS", 1)
    stream, call_id = started(transport)
    transport.deliver(call_id, chunk(call_id, 0, 0, 1))
    transport.deliver(call_id, chunk(call_id, 2, 2))
    resume = transport.resume

    def left_meanwhile(*arguments: Any) -> bool:
        stream.close()
        return resume(*arguments)

    monkeypatch.setattr(transport, "resume", left_meanwhile)
    assert list(stream) == [0, 1]
    assert transport.reading.get(call_id, []) == []


def test_a_stream_far_behind_in_bytes_stops_reading(
    transport: ScriptedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few large chunks count as much as many small ones, and what was taken no longer counts."""
    monkeypatch.setattr(calls, "MAX_BEHIND_BYTES", 1000)
    stream, call_id = started(transport)
    for number in range(50):
        transport.deliver(call_id, chunk(call_id, number, "x" * 100))
        next(stream)
    assert not is_paused(stream)
    for number in range(50, 70):
        transport.deliver(call_id, chunk(call_id, number, "x" * 100))
    assert is_paused(stream)
    assert transport.reading[call_id] == []
    assert len(stream._call.chunks) < 12


def test_a_stream_whose_past_is_gone_says_so(
    transport: ScriptedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the log no longer has the rest, the consumer gets an error and never a silent end."""
    monkeypatch.setattr(calls, "MAX_BEHIND_CHUNKS", 1)
    stream, call_id = started(transport)
    transport.deliver(call_id, chunk(call_id, 0, 0, 1))
    transport.resume_error = DataLoss("offset 7 lies outside the log")
    assert (next(stream), next(stream)) == (0, 1)
    with pytest.raises(DataLoss):
        next(stream)


def test_a_chunk_that_cannot_be_read_ends_the_stream(transport: ScriptedTransport) -> None:
    """Corrupt bytes raise; nothing is skipped silently."""
    stream, call_id = started(transport)
    transport.deliver(call_id, Result(call_id, FIRST, ResultKind.CHUNK, items=(b"\xc1",)))
    with pytest.raises(PayloadCorrupt):
        next(stream)


def test_interrupting_a_stream_cancels_its_call(
    transport: ScriptedTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in a stream of `f(x)` cancels the call, and says so."""
    stream, call_id = started(transport)

    def interrupted(timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(stream._signal._event, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    transport.accept(call_id)
    assert session.flush(5) == 0
    assert f"cancelling call {call_id_text(call_id)}" in capsys.readouterr().err
    assert transport.forgotten == [call_id]
    assert list(transport.cancelled) == [call_id]


def is_paused(stream: Stream[object]) -> bool:
    """Whether it has stopped reading until its consumer has caught up."""
    return stream._call.paused


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits until a condition of another thread holds."""
    pause = threading.Event()
    for _ in range(5000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("the condition never held")


AGAIN = FIRST._replace(run=FIRST.run + 1)


def test_stream_that_begins_again_yields_all_of_the_second_run(transport: ScriptedTransport) -> None:
    """Values nobody took are not given any more; `restarts` tells that it began again."""
    stream, call_id = started(transport)
    transport.deliver(call_id, chunk(call_id, 0, "a", "b", "c"))
    assert next(stream) == "a"
    transport.deliver(
        call_id,
        replace(chunk(call_id, 0, "x", "y"), token=AGAIN),
        replace(outcome(call_id, first=2), token=AGAIN),
    )
    assert (list(stream), stream.restarts) == (["x", "y"], 1)


def test_future_of_a_stream_that_began_again_has_the_second_run(transport: ScriptedTransport) -> None:
    """The list of a future, and a stream of it from wherever it was."""
    future = function_ref("count").async_call(3)
    call_id = transport.last.call_id
    transport.deliver(call_id, chunk(call_id, 0, "a", "b", "c"))
    stream = future.stream()
    assert next(stream) == "a"
    transport.deliver(
        call_id,
        replace(chunk(call_id, 0, "x", "y"), token=AGAIN),
        replace(outcome(call_id, first=2), token=AGAIN),
    )
    assert future.result(0) == ["x", "y"]
    assert list(stream) == ["x", "y"]

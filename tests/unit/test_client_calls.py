"""Calls from the caller's side: sent once, bound before, answered with the value or the error."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from pelton.client import futures, session
from pelton.client.connection import Connection
from pelton.client.futures import BlockingCallWarning, CallFuture
from pelton.core.call import Failure, Result, call_id_text, parse_call_id, reply_partition
from pelton.core.spec import FunctionKind
from pelton.errors import (
    AcceptanceUnknown,
    CallFailed,
    CallRejected,
    CallTimeout,
    CallUnavailable,
    DefinitionError,
    FunctionError,
    FunctionNotFound,
    PayloadCorrupt,
    SubmitFailed,
    TransportError,
    UnsupportedType,
)
from pelton.references import FunctionRef, function_ref
from support.callers import ScriptedTransport, chunk, deployer, outcome, spec_of


@pytest.fixture
def transport() -> Iterator[ScriptedTransport]:
    """The transport of this process's connection; `classify` and `count` are deployed."""
    transport = ScriptedTransport()
    transport.scripted.change(
        spec_of("classify", parameters="x"), spec_of("count", FunctionKind.GENERATOR, "n"), deployer()
    )
    session.install(transport)
    yield transport
    session.close()


@pytest.fixture
def classify(transport: ScriptedTransport) -> FunctionRef:
    """A function that returns one value."""
    return function_ref("classify")


def test_an_async_call_is_sent_once_with_its_arguments(
    transport: ScriptedTransport, classify: FunctionRef
) -> None:
    """The record carries function, arguments and an id whose reply partition is the one that is read."""
    future = classify.async_call({"text": "hello"})
    invocation = transport.last
    assert len(transport.sent) == 1
    assert (invocation.function, invocation.version) == ("classify", None)
    assert transport.arguments(invocation.call_id) == (({"text": "hello"},), {})
    assert reply_partition(invocation.call_id) == 3
    assert uuid.UUID(future.call_id).bytes == invocation.call_id


def test_the_future_ends_by_the_outcome(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """Pending until the outcome, then the value, as often as it is asked for."""
    future = classify.async_call(1)
    with pytest.raises(TimeoutError, match="it goes on"):
        future.result(timeout=0)
    assert not future.done()
    transport.answer(transport.last.call_id, {"label": "billing"})
    assert future.result(timeout=0) == {"label": "billing"}
    assert future.result() is future.result()
    assert future.exception() is None
    assert transport.last.call_id in transport.forgotten


@pytest.mark.parametrize("value", [None, 0, "", [], False, b"", 0.0, {}])
def test_falsy_results_come_back_as_they_are(
    transport: ScriptedTransport, classify: FunctionRef, value: object
) -> None:
    """A value that is false is a value."""
    future = classify.async_call(1)
    transport.answer(transport.last.call_id, value)
    assert future.result(0) == value
    assert type(future.result(0)) is type(value)


def test_accepted_follows_the_acknowledgement(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """P1: accepted only after Kafka acknowledged the record."""
    future = classify.async_call(1)
    assert not future.accepted.done()
    with pytest.raises(TimeoutError, match="not acknowledged"):
        future.accepted.result(timeout=0)
    transport.accept(transport.last.call_id)
    assert future.accepted.done()
    future.accepted.result(timeout=0)
    assert not future.done()


@pytest.mark.parametrize("error", [SubmitFailed("no leader"), AcceptanceUnknown("timed out")])
def test_a_call_that_was_not_accepted_fails(
    transport: ScriptedTransport, classify: FunctionRef, error: Exception
) -> None:
    """Both the future and its acceptance raise what the transport says; nothing is sent again."""
    future = classify.async_call(1)
    transport.accept(transport.last.call_id, error)
    with pytest.raises(type(error)):
        future.result(timeout=0)
    with pytest.raises(type(error)):
        future.accepted.result(timeout=0)
    assert len(transport.sent) == 1


def test_an_outcome_before_the_acknowledgement_counts_as_accepted(
    transport: ScriptedTransport, classify: FunctionRef
) -> None:
    """Results may overtake the acknowledgement; a late doubt about it cannot undo the outcome."""
    future = classify.async_call(1)
    transport.answer(transport.last.call_id, 5)
    transport.accept(transport.last.call_id, AcceptanceUnknown("timed out"))
    future.accepted.result(timeout=0)
    assert future.result(timeout=0) == 5


def test_an_answer_during_submit_is_not_lost(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """A reply may come before `submit` returns."""
    transport.on_submit = lambda invocation: transport.answer(invocation.call_id, invocation.function)
    assert classify.async_call(1).result(timeout=0) == "classify"
    assert classify(1) == "classify"


def test_arguments_are_bound_before_anything_is_sent(
    transport: ScriptedTransport, classify: FunctionRef
) -> None:
    """Wrong arguments raise the TypeError Python raises, and nothing travels."""
    with pytest.raises(TypeError, match=r"^classify\(\) missing 1 required positional argument: 'x'$"):
        classify()
    with pytest.raises(TypeError, match=r"^classify\(\) got an unexpected keyword argument 'y'$"):
        _ = classify.async_call(1, y=2)
    with pytest.raises(TypeError, match=r"^classify\(\) takes 1 positional argument but 2 were given$"):
        classify.submit(1, 2)
    with pytest.raises(UnsupportedType):
        classify(threading.Lock())
    assert transport.sent == {}


def test_an_unknown_function_is_refused_before_anything_is_sent(transport: ScriptedTransport) -> None:
    """FunctionNotFound lists close names."""
    with pytest.raises(FunctionNotFound, match=r"clasify.*close name: classify"):
        function_ref("clasify")(1)
    with pytest.raises(FunctionNotFound):
        _ = function_ref("clasify").async_call(1)
    assert transport.sent == {}


def test_a_function_deployed_a_moment_ago_is_found(transport: ScriptedTransport) -> None:
    """The registry is read up to now before a function counts as unknown."""
    transport.soon.append(spec_of("fresh"))
    function_ref("fresh").submit(1)
    assert transport.last.function == "fresh"


def test_a_version_that_is_not_deployed_is_refused(transport: ScriptedTransport) -> None:
    """A pinned call travels with its version; a version from the future is unknown."""
    function_ref("classify", version=1).submit(1)
    assert transport.last.version == 1
    with pytest.raises(FunctionNotFound, match="no version 2; the latest is 1"):
        function_ref("classify", version=2)(1)


@pytest.mark.parametrize(
    ("code", "traceback", "kind"),
    [
        ("UNKNOWN", "Traceback: line 3", FunctionError),
        ("ABORTED", "Traceback: line 3", FunctionError),
        ("INVALID_ARGUMENT", "Traceback: line 3", CallRejected),
        ("DEADLINE_EXCEEDED", "", CallTimeout),
        ("UNAVAILABLE", "", CallUnavailable),
        ("DATA_LOSS", "", CallRejected),
        ("FAILED_PRECONDITION", "", CallRejected),
        ("RESOURCE_EXHAUSTED", "", CallRejected),
        ("DEADLINE_EXCEEDED", "Traceback: a TimeoutError of user code", FunctionError),
        ("UNAVAILABLE", "Traceback: a ConnectionError of user code", FunctionError),
        ("RESOURCE_EXHAUSTED", "Traceback: a MemoryError of user code", FunctionError),
    ],
)
def test_failures_arrive_as_errors(
    transport: ScriptedTransport, classify: FunctionRef, code: str, traceback: str, kind: type[Exception]
) -> None:
    """Each code has its class unless user code raised, and the error carries what is known of the failure."""
    future = classify.async_call(1)
    call_id = transport.last.call_id
    failure = Failure("builtins.ValueError", "no such label", traceback, code, attempt=2)
    transport.deliver(call_id, outcome(call_id, failure=failure))
    error = future.exception(timeout=0)
    assert isinstance(error, CallFailed)
    assert type(error) is kind
    assert (error.type, error.message, error.attempt) == ("builtins.ValueError", "no such label", 2)
    assert (error.code, error.call_id) == (code, future.call_id)
    assert any(traceback in note for note in error.__notes__)
    with pytest.raises(kind):
        future.result()


def test_a_user_exception_reads_like_the_original(
    transport: ScriptedTransport, classify: FunctionRef
) -> None:
    """`str()` of a FunctionError is type and message; it is a RuntimeError."""
    future = classify.async_call(1)
    call_id = transport.last.call_id
    transport.deliver(call_id, outcome(call_id, failure=Failure("builtins.ValueError", "bad")))
    with pytest.raises(RuntimeError) as caught:
        future.result(0)
    assert str(caught.value) == "ValueError: bad"


def test_the_outcome_says_which_attempt_failed(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """When the failure itself does not know, the attempts of the outcome count."""
    future = classify.async_call(1)
    call_id = transport.last.call_id
    transport.deliver(call_id, outcome(call_id, failure=Failure("E", "x", "remote line")))
    error = future.exception(0)
    assert isinstance(error, FunctionError)
    assert error.attempt == 1
    assert "attempt 1" in error.__notes__[0]


def test_a_value_that_cannot_be_read_is_an_error_and_not_a_hang(
    transport: ScriptedTransport, classify: FunctionRef
) -> None:
    """Corrupt bytes end the future with PayloadCorrupt, each time it is asked."""
    future = classify.async_call(1)
    call_id = transport.last.call_id
    record = outcome(call_id, value=1)
    transport.deliver(call_id, Result(call_id, record.token, record.kind, items=(b"\xc1garbage",)))
    for _ in range(2):
        with pytest.raises(PayloadCorrupt):
            future.result(0)
    assert isinstance(future.exception(0), PayloadCorrupt)


def test_a_future_can_be_awaited(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """Awaiting wakes up on the loop when a reading thread delivers the outcome; also its acceptance."""

    async def main() -> list[object]:
        calls = [classify.async_call(n) for n in range(20)]
        ids = [parse_call_id(call.call_id) for call in calls]

        def reading() -> None:
            for number, call_id in enumerate(ids):
                transport.accept(call_id)
                transport.answer(call_id, number * 10)

        thread = threading.Thread(target=reading)
        thread.start()
        await calls[0].accepted
        values = await asyncio.gather(*calls)
        thread.join()
        return list(values)

    assert asyncio.run(main()) == [n * 10 for n in range(20)]


def test_cancelling_a_waiter_detaches_it_alone(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """The call goes on, and the future can be waited for again."""

    async def main() -> object:
        future = classify.async_call(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.01)
        mirrored = future.as_asyncio()
        assert mirrored.cancel()
        assert not future.done()
        assert transport.forgotten == []
        transport.answer(transport.last.call_id, "late")
        return await future.as_asyncio()

    assert asyncio.run(main()) == "late"


def test_as_asyncio_carries_errors(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """A failed call fails the asyncio future too."""

    async def main() -> None:
        future = classify.async_call(1)
        mirrored = future.as_asyncio()
        call_id = transport.last.call_id
        transport.deliver(call_id, outcome(call_id, failure=Failure("E", "x", code="UNAVAILABLE")))
        with pytest.raises(CallUnavailable):
            await mirrored

    asyncio.run(main())


def test_futures_work_with_the_standard_library(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """`wait` and `as_completed` of concurrent.futures see the end."""
    first, second = classify.async_call(1), classify.async_call(2)
    ids = [parse_call_id(first.call_id), parse_call_id(second.call_id)]
    transport.answer(ids[1], "b")
    done, pending = concurrent.futures.wait([first, second], timeout=0)
    assert (done, pending) == ({second}, {first})
    transport.answer(ids[0], "a")
    assert {future.result() for future in concurrent.futures.as_completed([first, second], 1)} == {"a", "b"}


def test_a_future_has_all_that_the_standard_library_gives_its_own(
    transport: ScriptedTransport, classify: FunctionRef
) -> None:
    """It sets those attributes itself, with a lighter condition: a Python that has more must be noticed."""
    ours, theirs = vars(classify.async_call(1)), vars(concurrent.futures.Future())
    assert theirs.keys() <= ours.keys()
    assert {name: ours[name] for name in theirs if name != "_condition"} == {
        name: theirs[name] for name in theirs if name != "_condition"
    }


def test_every_thread_that_waits_for_a_future_wakes(
    transport: ScriptedTransport, classify: FunctionRef
) -> None:
    """The first waiter makes the condition, later ones share it, and one without a waiter needs none."""
    future = classify.async_call(1)
    got: list[str] = []
    waiters = [threading.Thread(target=lambda: got.append(future.result(10))) for _ in range(8)]
    for waiter in waiters:
        waiter.start()
    with pytest.raises(TimeoutError):
        future.result(0.05)
    transport.answer(transport.last.call_id, "a")
    for waiter in waiters:
        waiter.join(10)
    assert got == ["a"] * 8


def test_done_callbacks_never_run_on_the_reading_thread(
    transport: ScriptedTransport, classify: FunctionRef
) -> None:
    """User code on the thread that reads replies would hold up every other call."""
    future = classify.async_call(1)
    threads: list[threading.Thread] = []
    called = threading.Event()

    def callback(done: concurrent.futures.Future[object]) -> None:
        threads.append(threading.current_thread())
        called.set()
        raise ValueError("a callback may fail without harm")

    future.add_done_callback(callback)
    transport.answer(transport.last.call_id, 1)
    assert called.wait(5)
    assert threads[0] is not threading.current_thread()
    future.add_done_callback(lambda done: threads.append(threading.current_thread()))
    assert threads[1] is threading.current_thread()


def test_a_plain_call_on_a_loop_warns_once(
    transport: ScriptedTransport, classify: FunctionRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It works, but it blocks the loop; notebooks always run a loop and are left alone."""
    transport.on_submit = lambda invocation: transport.answer(invocation.call_id, 1)
    futures.forget_warning()

    async def main() -> None:
        with pytest.warns(BlockingCallWarning, match="async_call"):
            assert classify(1) == 1
        assert classify(1) == 1

    asyncio.run(main())
    futures.forget_warning()
    kernel = SimpleNamespace(IPKernelApp=SimpleNamespace(initialized=lambda: True))
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", kernel)

    async def notebook() -> object:
        return classify(1)

    assert asyncio.run(notebook()) == 1


def test_interrupting_a_plain_call_cancels_it(
    transport: ScriptedTransport,
    classify: FunctionRef,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C in `f(x)` cancels the call and says so: nobody has its future."""

    def interrupted(self: CallFuture[object], timeout: float | None = None) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(CallFuture, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        classify(1)
    text = call_id_text(transport.last.call_id)
    transport.accept(transport.last.call_id)
    assert session.flush(5) == 0
    assert f"cancelling call {text}" in capsys.readouterr().err
    assert transport.forgotten == [transport.last.call_id]
    assert transport.cancelled == {transport.last.call_id: "its caller was interrupted"}


def test_the_result_of_a_generator_is_the_list(transport: ScriptedTransport) -> None:
    """`async_call` of a generator collects what it yields, exactly once each."""
    future = function_ref("count").async_call(3)
    call_id = transport.last.call_id
    transport.deliver(call_id, chunk(call_id, 0, "a", "b"), chunk(call_id, 1, "b", "c"))
    transport.deliver(call_id, outcome(call_id, first=3))
    assert future.result(0) == ["a", "b", "c"]
    assert list(future.stream()) == ["a", "b", "c"]


def test_a_failing_submit_leaves_nothing_behind(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """What the transport refuses at once is raised at the call, and no open call stays in the tables."""

    def refuse(invocation: object) -> None:
        raise SubmitFailed("queue closed")

    transport.on_submit = refuse
    connection = session.current()
    with pytest.raises(SubmitFailed):
        _ = classify.async_call(1)
    with pytest.raises(SubmitFailed):
        classify.submit(1)
    assert connection.calls == {}
    assert connection.flush(0) == 0


def test_submit_returns_the_id_and_reads_nothing(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """Fire and forget needs no reply partition."""
    call_id = classify.submit(4)
    assert uuid.UUID(call_id).bytes == transport.last.call_id
    assert transport.prepared == []
    assert transport.reading == {}


def test_refused_submits_are_told_at_flush(
    transport: ScriptedTransport, classify: FunctionRef, capsys: pytest.CaptureFixture[str]
) -> None:
    """A call that Kafka refused is never lost silently."""
    classify.submit(1)
    classify.submit(2)
    for call_id in list(transport.sent):
        transport.accept(call_id, SubmitFailed("broker is gone"))
    assert session.flush(0) == 0
    assert "2 call(s) of 'classify' were not accepted by Kafka: broker is gone" in capsys.readouterr().err
    session.flush(0)
    assert capsys.readouterr().err == ""


def test_flush_waits_for_the_answers(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """It returns the number of sends without an answer."""
    classify.submit(1)
    assert session.flush(0.01) == 1
    threading.Timer(0.05, lambda: transport.accept(transport.last.call_id)).start()
    assert session.flush(10) == 0


def test_closing_ends_open_futures_and_counts_aloud(
    transport: ScriptedTransport, classify: FunctionRef, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody waits for ever for a connection that is gone, and unacknowledged sends are named."""
    future = classify.async_call(1)
    transport.unacknowledged = 1
    assert session.close(2.5) == 1
    assert transport.closed_with == pytest.approx(2.5, abs=0.1)
    with pytest.raises(TransportError, match="the call goes on, and attach"):
        future.result(0)
    said = capsys.readouterr().err
    assert "1 call(s) were not acknowledged by Kafka within 2.5 s; they may or may not run" in said
    assert said.rstrip().endswith(future.call_id)


def test_sends_given_up_by_closing_are_told_once_with_their_ids(
    transport: ScriptedTransport, classify: FunctionRef, capsys: pytest.CaptureFixture[str]
) -> None:
    """Closing gives up what waits; certain refusals are told apart from what nobody knows."""
    ids = [classify.submit(n) for n in range(7)]
    future = classify.async_call(8)
    refused = classify.submit(9)

    def close(timeout_s: float) -> int:
        for call_id in list(transport.sent):
            certain = call_id_text(call_id) == refused
            transport.accept(call_id, SubmitFailed("too large") if certain else AcceptanceUnknown("purged"))
        return 8

    transport.close = close  # type: ignore[method-assign]
    session.close()
    unknown, known = capsys.readouterr().err.splitlines()
    assert unknown.startswith("pelton: 8 call(s) were not acknowledged")
    assert unknown.endswith(f"{', '.join(ids[:5])}, ...")
    assert known == "pelton: 1 call(s) of 'classify' were not accepted by Kafka: too large"
    assert isinstance(future.exception(0), AcceptanceUnknown)


def test_a_refusal_nobody_looked_at_is_told_at_close(
    transport: ScriptedTransport, classify: FunctionRef, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dropped future does not hide that its call never reached Kafka; one that was read says it once."""
    ignored, seen = classify.async_call(1), classify.async_call(2)
    for call_id in list(transport.sent):
        transport.accept(call_id, SubmitFailed("broker is gone"))
    assert isinstance(seen.exception(0), SubmitFailed)
    session.close()
    assert "1 call(s) of 'classify' were not accepted" in capsys.readouterr().err
    assert isinstance(ignored.exception(0), SubmitFailed)


def test_a_closed_connection_refuses(transport: ScriptedTransport) -> None:
    """A connection object kept beyond its end says what to do."""
    with Connection(transport) as connection:
        assert connection.spec("classify").name == "classify"
    with pytest.raises(TransportError, match=r"pelton\.connect\(\)"):
        connection.spec("classify")


def test_deadline_travels_with_the_call(transport: ScriptedTransport, classify: FunctionRef) -> None:
    """As broker time, from a time of day or from now on."""
    before = transport.now_ms()
    classify.options(timeout=30).submit(1)
    found = transport.last.deadline_ms
    assert found is not None
    assert before + 30_000 <= found <= transport.now_ms() + 30_000
    instant = datetime(2100, 1, 1, tzinfo=UTC)
    classify.options(deadline=instant).submit(1)
    assert transport.last.deadline_ms == int(instant.timestamp() * 1000)
    classify.submit(1)
    assert transport.last.deadline_ms is None


def test_deadline_that_has_passed_is_refused_before_anything_is_sent(
    transport: ScriptedTransport, classify: FunctionRef
) -> None:
    """The earliest moment is the caller's."""
    with pytest.raises(CallTimeout, match="nothing was sent"):
        classify.options(deadline=datetime(2020, 1, 1, tzinfo=UTC)).submit(1)
    assert not transport.sent


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 5, "deadline": datetime(2100, 1, 1, tzinfo=UTC)},
        {"deadline": datetime(2100, 1, 1)},
        {"deadline": 5},
        {"timeout": -1},
        {"timeout": "soon"},
    ],
)
def test_deadline_that_is_none_is_refused(classify: FunctionRef, wrong: dict[str, Any]) -> None:
    """When the options are given."""
    with pytest.raises(DefinitionError):
        classify.options(**wrong)

"""Many calls at once: bounded windows, both orders, threads and asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from pelton.client import session
from pelton.client.mapping import gather
from pelton.core.call import CallId, Failure
from pelton.errors import FunctionError
from pelton.references import FunctionRef, function_ref
from support.callers import ScriptedTransport, outcome, spec_of


@pytest.fixture
def transport() -> Iterator[ScriptedTransport]:
    """The transport of this process's connection; `square` and `add` are deployed."""
    transport = ScriptedTransport()
    transport.scripted.change(spec_of("square"), spec_of("add", parameters="x y"))
    session.install(transport)
    yield transport
    session.close()


@pytest.fixture
def square() -> FunctionRef:
    """A function of one argument."""
    return function_ref("square")


def answering(transport: ScriptedTransport, answer: Callable[[CallId, int], None]) -> None:
    """Answers each call while it is sent."""

    def on_submit(invocation: object) -> None:
        call_id = transport.last.call_id
        (number, *_), _ = transport.arguments(call_id)
        assert isinstance(number, int)
        answer(call_id, number)

    transport.on_submit = on_submit


def squares(transport: ScriptedTransport) -> None:
    """Answers with the square; a negative number fails."""

    def answer(call_id: CallId, number: int) -> None:
        failure = Failure("builtins.ValueError", "negative") if number < 0 else None
        transport.deliver(call_id, outcome(call_id, value=number**2, failure=failure))

    answering(transport, answer)


def test_map_keeps_the_order_and_the_window(transport: ScriptedTransport, square: FunctionRef) -> None:
    """Values come in the order of the inputs although calls end backwards, within the window."""
    open_calls: list[tuple[CallId, int]] = []
    most = 0

    def answer(call_id: CallId, number: int) -> None:
        nonlocal most
        open_calls.append((call_id, number))
        most = max(most, len(open_calls))
        if len(open_calls) == 5:
            while open_calls:
                ended, value = open_calls.pop()
                transport.answer(ended, value**2)

    answering(transport, answer)
    assert list(square.map(range(20), window=5)) == [n**2 for n in range(20)]
    assert most == 5


def test_map_takes_inputs_as_it_goes(transport: ScriptedTransport, square: FunctionRef) -> None:
    """An endless input is no problem."""
    squares(transport)

    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    values = square.map(endless(), window=3)
    assert [next(values) for _ in range(4)] == [0, 1, 4, 9]
    assert len(transport.sent) == 6


def test_unordered_map_yields_as_calls_end(transport: ScriptedTransport, square: FunctionRef) -> None:
    """A slow first call holds nobody up."""
    first: list[CallId] = []

    def answer(call_id: CallId, number: int) -> None:
        if number == 0:
            first.append(call_id)
        else:
            transport.answer(call_id, number**2)
        if number == 3:
            transport.answer(first[0], 0)

    answering(transport, answer)
    values = list(square.map(range(4), ordered=False))
    assert values[:2] == [1, 4]
    assert sorted(values) == [0, 1, 4, 9]


def test_map_over_several_iterables_and_starmap(transport: ScriptedTransport) -> None:
    """Positional arguments come from several iterables, or from tuples; the shortest ends it."""
    transport.on_submit = lambda invocation: transport.answer(
        invocation.call_id, transport.arguments(invocation.call_id)[0]
    )
    add = function_ref("add")
    assert list(add.map([1, 2, 3], "ab")) == [(1, "a"), (2, "b")]
    assert list(add.starmap([(1, 2), (3, 4)])) == [(1, 2), (3, 4)]
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'y'"):
        list(add.map([1]))


@pytest.mark.parametrize("ordered", [True, False])
def test_errors_are_raised_or_returned(
    transport: ScriptedTransport, square: FunctionRef, ordered: bool
) -> None:
    """`return_exceptions` puts the error where the value would be."""
    squares(transport)
    with pytest.raises(FunctionError, match="negative"):
        list(square.map([1, -1], ordered=ordered))
    values = list(square.map([2, -1, 3], ordered=ordered, return_exceptions=True))
    assert (values[0], values[2]) == (4, 9)
    assert isinstance(values[1], FunctionError)


@pytest.mark.parametrize("ordered", [True, False])
def test_amap_on_a_loop(transport: ScriptedTransport, square: FunctionRef, ordered: bool) -> None:
    """The same for `async for`, from ordinary and from asynchronous iterables."""
    squares(transport)

    async def numbers() -> AsyncIterator[int]:
        for number in range(10):
            yield number
            await asyncio.sleep(0)

    async def main() -> None:
        expected = [n**2 for n in range(10)]
        assert [v async for v in square.amap(range(10), window=3, ordered=ordered)] == expected
        assert [v async for v in square.amap(numbers(), window=3, ordered=ordered)] == expected
        values = [v async for v in square.amap([-1], ordered=ordered, return_exceptions=True)]
        assert isinstance(values[0], FunctionError)
        with pytest.raises(TypeError, match="one asynchronous iterable alone"):
            square.amap(numbers(), [1])

    asyncio.run(main())


@pytest.mark.parametrize("window", [0, -1, True, 1.5])
def test_a_window_that_can_hold_no_call_is_refused(
    transport: ScriptedTransport, square: FunctionRef, window: int
) -> None:
    """At the call, not at the first `next`."""
    with pytest.raises(ValueError, match="at least 1"):
        square.map([1], window=window)
    with pytest.raises(ValueError, match="at least 1"):
        square.amap([1], window=window)


def test_gather_waits_for_all(transport: ScriptedTransport, square: FunctionRef) -> None:
    """Values in the order of the futures; a timeout loses nothing; the first failure in order is raised."""
    futures = [square.async_call(n) for n in range(3)]
    ids = list(transport.sent)
    for number, call_id in reversed(list(enumerate(ids))):
        if number:
            transport.answer(call_id, number)
    with pytest.raises(TimeoutError):
        gather(*futures, timeout=0.01)
    transport.answer(ids[0], 0)
    assert gather(*futures, timeout=1) == [0, 1, 2]
    squares(transport)
    with pytest.raises(FunctionError):
        gather(square.async_call(1), square.async_call(-1))
    assert gather() == []
    with pytest.raises(TypeError, match="async_call"):
        gather(3)  # type: ignore[arg-type]

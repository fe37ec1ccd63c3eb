"""Calling user code: values as they are, every kind of failure a failure, foreign bodies refused."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from pelton.core.call import Invocation, mint_call_id
from pelton.core.spec import FunctionKind
from pelton.errors import RecordError
from pelton.protocol import codec, payload
from pelton.runtime.calling import (
    NOTHING,
    Arguments,
    Outcome,
    Target,
    call,
    call_async,
    read_arguments,
    stream,
    stream_async,
)

CALL_ID = mint_call_id(1_700_000_000_000, 5, bytes(range(8)))
OTHER_ID = mint_call_id(1_700_000_000_000, 5, bytes(range(1, 9)))


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Ticket:
    text: str
    colour: Colour


@dataclasses.dataclass
class Collecting:
    """A sink that always has room."""

    seen: list[bytes]

    def __call__(self, chunk: bytes) -> bool:
        self.seen.append(chunk)
        return True


def target(function: Callable[..., Any], kind: FunctionKind = FunctionKind.SYNC) -> Target:
    return Target.of("f", kind, function)


def arguments(*args: Any, **kwargs: Any) -> Arguments:
    return Arguments(args, kwargs, 0)


def body(value: Any, *, call_id: bytes = CALL_ID, function: str = "f") -> bytes:
    return codec.encode_invocation(
        Invocation(call_id=call_id, function=function, arguments=payload.encode(value), submitted_ms=99)
    )


def value_of(outcome: Outcome) -> Any:
    encoded, failure = outcome
    assert failure is None, failure
    assert encoded is not None
    return payload.decode(encoded)


@pytest.mark.parametrize("value", [None, 0, "", [], False, {}, (), 0.0, b"", (1, [2, {"three": 4}])])
def test_values_come_back_as_they_are(value: Any) -> None:
    """Falsy ones too: nothing tests a result for truth."""

    async def same(x: Any) -> Any:
        return x

    for result in (
        value_of(call(target(lambda x: x), arguments(value))),
        value_of(asyncio.run(call_async(target(same, FunctionKind.ASYNC), arguments(value)))),
    ):
        assert result == value
        assert type(result) is type(value)


def test_arguments_reach_the_function_as_the_caller_gave_them() -> None:
    """Positional and keyword arguments, dataclasses and enums by the function's own annotations."""

    def take(a: int, *, ticket: Ticket) -> str:
        return f"{a} {ticket.text} {ticket.colour.name} {type(ticket).__name__}"

    this = target(take)
    read = read_arguments(this, CALL_ID, body(((1,), {"ticket": Ticket("t", Colour.RED)})))
    assert read.submitted_ms == 99
    assert value_of(call(this, read)) == "1 t RED Ticket"


def test_annotations_that_cannot_be_evaluated_do_not_keep_a_function_from_running() -> None:
    """Names that exist for type checkers only are left out."""

    def take(a: Nowhere, b: int) -> int:  # type: ignore[name-defined]  # noqa: F821
        return int(a + b)

    this = target(take)
    assert value_of(call(this, read_arguments(this, CALL_ID, body(((1, 2), {}))))) == 3


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\xc3\x01" + bytes(8),
        body(((), {}))[:-3],
        body(((), {}), call_id=OTHER_ID),
        body(((), {}), function="g"),
        body([1, 2]),
        body(((), {}, ())),
        body(([], {})),
        body(((), {1: 2})),
        body(7),
        codec.encode_invocation(Invocation(call_id=CALL_ID, function="f", arguments=b"\xc1\xc1")),
        codec.encode_invocation(Invocation(call_id=CALL_ID, function="f", arguments=b"")),
        codec.encode_invocation(Invocation(call_id=CALL_ID, function="f", arguments=b"\x91" * 100_000)),
    ],
    ids=lambda value: f"{len(value)} bytes",
)
def test_a_body_that_is_not_this_call_is_refused(bad: bytes) -> None:
    """Undecodable, truncated, foreign, or no arguments: one kind of error, which becomes poison."""
    with pytest.raises(RecordError):
        read_arguments(target(lambda: None), CALL_ID, bad)


def test_wrong_arguments_are_told_apart_from_a_type_error_of_user_code() -> None:
    """Only a call that does not bind is the caller's mistake."""

    def inner(a: int) -> None:
        raise TypeError("my own")

    def calls_wrongly(a: int) -> None:
        inner()  # type: ignore[call-arg]

    _, missing = call(target(inner), arguments())
    assert missing is not None
    assert (missing.code, missing.type) == ("INVALID_ARGUMENT", "TypeError")
    assert "missing 1 required positional argument: 'a'" in missing.message
    _, unknown = call(target(inner), arguments(1, b=2))
    assert unknown is not None
    assert unknown.code == "INVALID_ARGUMENT"
    for function in (inner, calls_wrongly):
        _, own = call(target(function), arguments(1))
        assert own is not None
        assert (own.code, own.type) == ("UNKNOWN", "TypeError")


@pytest.mark.parametrize(
    "kind_of_error",
    [
        ValueError,
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        StopIteration,
        StopAsyncIteration,
        RecursionError,
        MemoryError,
        BaseException,
        asyncio.CancelledError,
    ],
)
@pytest.mark.parametrize("kind", list(FunctionKind))
def test_whatever_user_code_raises_becomes_a_failure(
    kind_of_error: type[BaseException], kind: FunctionKind
) -> None:
    """In all four ways of calling; nothing passes through to the executor."""
    error = kind_of_error("x")

    def sync(x: int) -> int:
        raise error

    async def coroutine(x: int) -> int:
        raise error

    def generator(x: int) -> Iterator[int]:
        yield x
        raise error

    async def async_generator(x: int) -> AsyncIterator[int]:
        yield x
        raise error

    chunks: list[bytes] = []

    def sink(chunk: bytes) -> bool:
        chunks.append(chunk)
        return True

    def async_sink(chunk: bytes) -> None:
        chunks.append(chunk)

    if kind is FunctionKind.SYNC:
        encoded, failure = call(target(sync), arguments(1))
    elif kind is FunctionKind.ASYNC:
        encoded, failure = asyncio.run(call_async(target(coroutine, kind), arguments(1)))
    elif kind is FunctionKind.GENERATOR:
        encoded, failure = stream(target(generator, kind), arguments(1), sink)
    else:
        encoded, failure = asyncio.run(stream_async(target(async_generator, kind), arguments(1), async_sink))
    assert encoded is None
    assert failure is not None
    assert failure.code == ("RESOURCE_EXHAUSTED" if kind_of_error is MemoryError else "UNKNOWN")
    assert not failure.retriable
    # Python itself turns these two into RuntimeError where they would end an iteration.
    becomes = {type(error).__name__, f"asyncio.exceptions.{type(error).__name__}", "RuntimeError"}
    assert failure.type in becomes
    assert "pelton" not in failure.traceback.replace(__file__, "")
    assert len(chunks) == (1 if kind.streams else 0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (threading.Lock(), "UnsupportedType"),
        (b"x" * 600_000, "PayloadTooLarge"),
        ([sys._getframe()], "UnsupportedType"),
    ],
    ids=["lock", "large", "frame"],
)
def test_a_result_that_cannot_travel_is_a_small_failure(value: Any, expected: str) -> None:
    """It names the reason and is no endless retry."""
    _, failure = call(target(lambda: value), arguments())
    assert failure is not None
    assert failure.type.rpartition(".")[2] == expected
    assert failure.code == "INVALID_ARGUMENT"
    assert not failure.retriable


def test_a_stream_hands_over_each_chunk_in_order_and_ends_with_none() -> None:
    """Empty and one-item streams come back as they are."""

    def count(n: int) -> Iterator[int]:
        yield from range(n)

    async def acount(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    for n in (0, 1, 200):
        seen: list[bytes] = []
        sink = Collecting(seen)
        assert stream(target(count, FunctionKind.GENERATOR), arguments(n), sink) == (NOTHING, None)
        assert [payload.decode(chunk) for chunk in seen] == list(range(n))
        aseen: list[bytes] = []
        outcome = asyncio.run(
            stream_async(target(acount, FunctionKind.ASYNC_GENERATOR), arguments(n), aseen.append)
        )
        assert outcome == (NOTHING, None)
        assert aseen == seen


def test_a_stream_that_nobody_wants_any_more_is_closed() -> None:
    """The generator's finally runs, and the failure says that it was interrupted."""
    closed: list[str] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append("sync")

    async def aendless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append("async")

    async def no() -> bool:
        return False

    _, failure = stream(target(endless, FunctionKind.GENERATOR), arguments(), lambda chunk: False)
    _, afailure = asyncio.run(
        stream_async(target(aendless, FunctionKind.ASYNC_GENERATOR), arguments(), lambda chunk: no())
    )
    assert closed == ["sync", "async"]
    assert failure == afailure
    assert failure is not None
    assert failure.code == "CANCELLED"


def test_a_chunk_that_cannot_travel_ends_the_stream_and_closes_it(caplog: pytest.LogCaptureFixture) -> None:
    """Also when closing raises: that is logged, the first reason stays."""

    def generator() -> Iterator[Any]:
        try:
            yield 1
            yield threading.Lock()
        finally:
            raise ValueError("on close")

    with caplog.at_level(logging.ERROR):
        _, failure = stream(target(generator, FunctionKind.GENERATOR), arguments(), lambda chunk: True)
    assert failure is not None
    assert failure.type.endswith("UnsupportedType")
    assert "closing a stream raised" in caplog.text


def test_an_async_generator_that_never_waits_lets_others_run() -> None:
    """A task beside it gets its turn long before the stream ends."""
    turns: list[int] = []

    async def busy() -> AsyncIterator[int]:
        for i in range(1000):
            yield i

    async def main() -> None:
        chunks = 0

        def sink(chunk: bytes) -> None:
            nonlocal chunks
            chunks += 1

        async def beside() -> None:
            while True:
                turns.append(chunks)
                await asyncio.sleep(0)

        other = asyncio.create_task(beside())
        await stream_async(target(busy, FunctionKind.ASYNC_GENERATOR), arguments(), sink)
        other.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await other

    asyncio.run(main())
    assert len(turns) > 5

"""What a call inherits from the attempt that makes it, and that waiting for it goes through the attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from pelton.client.connection import Connection
from pelton.client.futures import CallFuture
from pelton.client.nesting import Lineage
from pelton.core.call import MAX_DEPTH
from pelton.errors import CallTooDeep
from pelton.protocol import payload
from support.callers import ScriptedTransport, spec_of

T = TypeVar("T")

ROOT, PARENT = bytes(range(16)), bytes(range(16, 32))


class Attempt:
    """Stands for a running attempt; notes how it is waited in."""

    def __init__(self) -> None:
        self.inherited: Lineage | None = Lineage((ROOT, PARENT), 1_900_000_000_000, "00-a-b-01")
        self.waits: list[str] = []

    def lineage(self) -> Lineage | None:
        return self.inherited

    def block(self, wait: Callable[[], T], instead: Callable[[], Awaitable[T]] | None = None) -> T:
        self.waits.append("block")
        return wait()

    def aside(self, wait: Callable[[], T]) -> T:
        self.waits.append("aside")
        return wait()

    async def suspend(self, waiter: Awaitable[T]) -> T:
        self.waits.append("suspend")
        return await waiter


@pytest.fixture
def attempt() -> Attempt:
    """The attempt that makes the calls."""
    return Attempt()


@pytest.fixture
def connection(attempt: Attempt) -> Iterator[Connection]:
    """A connection in a process that runs attempts."""
    transport = ScriptedTransport()
    transport.scripted.change(spec_of("f"))
    with Connection(transport, attempt) as connection:
        yield connection


def send(connection: Connection) -> CallFuture[Any]:
    """A call of f."""
    spec = connection.spec("f")
    call = connection.new_call(spec, keeps=True)
    future: CallFuture[Any] = CallFuture(call, connection, payload.decode, streams=False)
    connection.send(call, spec, None, payload.encode_arguments((), {}))
    return future


def test_nested_calls_inherit_parent_ancestry_deadline_and_trace(connection: Connection) -> None:
    """They are in the invocation, of calls that are waited for and of those that are not."""
    assert not send(connection).done()
    connection.submit(connection.spec("f"), None, payload.encode_arguments((), {}))
    transport = connection.transport
    assert isinstance(transport, ScriptedTransport)
    for invocation in transport.sent.values():
        assert (invocation.parent, invocation.ancestry) == (PARENT, (ROOT, PARENT))
        assert invocation.deadline_ms == 1_900_000_000_000
        assert invocation.trace_parent == "00-a-b-01"


def test_nested_calls_outside_of_an_attempt_inherit_nothing(connection: Connection, attempt: Attempt) -> None:
    """Code of the process that belongs to no attempt makes calls of its own."""
    attempt.inherited = None
    assert not send(connection).done()
    transport = connection.transport
    assert isinstance(transport, ScriptedTransport)
    (invocation,) = transport.sent.values()
    assert (invocation.parent, invocation.ancestry, invocation.deadline_ms) == (None, (), None)


def test_nested_calls_too_deep_send_nothing(connection: Connection, attempt: Attempt) -> None:
    """64 ancestors are one call's most; the next one is refused before it is sent."""
    attempt.inherited = Lineage((ROOT,) * MAX_DEPTH)
    assert not send(connection).done()
    attempt.inherited = Lineage((ROOT,) * (MAX_DEPTH + 1))
    with pytest.raises(CallTooDeep, match="Nothing was sent"):
        send(connection).result()
    transport = connection.transport
    assert isinstance(transport, ScriptedTransport)
    assert len(transport.sent) == 1


def test_waiting_for_a_call_goes_through_the_attempt(connection: Connection, attempt: Attempt) -> None:
    """Also when it ends by a timeout; what has ended is taken without it."""
    future = send(connection)
    with pytest.raises(TimeoutError):
        future.result(0.01)
    with pytest.raises(TimeoutError):
        future.accepted.result(0.01)
    assert attempt.waits == ["block", "aside"]

    async def awaits() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.01)

    asyncio.run(awaits())
    assert attempt.waits == ["block", "aside", "suspend"]

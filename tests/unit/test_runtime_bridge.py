"""The bridge: blocking code on a loop waits as if it had written `await`, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from greenlet import greenlet

from pelton.runtime import bridge

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

_place: contextvars.ContextVar[str] = contextvars.ContextVar("place", default="nowhere")


@pytest.fixture
def run() -> Iterator[Run[Any]]:
    """Runs a coroutine on a loop whose tasks may cross."""
    loop = asyncio.new_event_loop()
    bridge.install(loop)
    yield loop.run_until_complete
    loop.close()


def slept(seconds: float, value: T) -> T:
    """Blocking code, as an SDK call is."""
    return bridge.cross(asyncio.sleep(seconds, value))


def test_bridge_returns_what_was_awaited(run: Run[list[int]]) -> None:
    """Several waits in one step, and steps between them."""

    async def user() -> list[int]:
        first = [slept(0.001, 1), slept(0, 2)]
        await asyncio.sleep(0)
        return [*first, slept(0.001, 3)]

    assert run(user()) == [1, 2, 3]


def test_bridge_lets_other_tasks_run_meanwhile(run: Run[list[str]]) -> None:
    """Two tasks that wait for each other's events across the bridge both end."""

    async def user() -> list[str]:
        here, there = asyncio.Event(), asyncio.Event()

        async def one() -> str:
            here.set()
            bridge.cross(there.wait())
            return "one"

        async def other() -> str:
            bridge.cross(here.wait())
            there.set()
            return "other"

        return list(await asyncio.gather(one(), other()))

    assert run(user()) == ["one", "other"]


def test_bridge_reaches_tasks_that_user_code_makes(run: Run[list[int]]) -> None:
    """gather, TaskGroup, wait_for and ensure_future make tasks by the loop's factory."""

    async def one(value: int) -> int:
        return slept(0.001, value)

    async def user() -> list[int]:
        async with asyncio.TaskGroup() as group:
            grouped = [group.create_task(one(number)) for number in range(3)]
        return [
            *(task.result() for task in grouped),
            *await asyncio.gather(one(3), one(4)),
            await asyncio.wait_for(one(5), 5),
            await asyncio.ensure_future(one(6)),
        ]

    assert run(user()) == list(range(7))


def test_bridge_keeps_context_variables(run: Run[list[str]]) -> None:
    """What a task sets stays set for it, before, across and after a wait, and for no other task."""

    async def user(name: str) -> str:
        _place.set(name)
        slept(0.001, None)
        seen = _place.get()
        _place.set(f"{seen} after")
        await asyncio.sleep(0)
        return _place.get()

    async def both() -> list[str]:
        return [*await asyncio.gather(user("a"), user("b")), _place.get()]

    assert run(both()) == ["a after", "b after", "nowhere"]


def test_bridge_raises_what_the_awaited_raised(run: Run[str]) -> None:
    """An error comes out of the blocking call, and can be caught there."""

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("k")

    async def user() -> str:
        try:
            bridge.cross(fails())
        except KeyError as error:
            return f"{error!r}, then {slept(0, 'on')}"
        return "nothing"

    assert run(user()) == "KeyError('k'), then on"


def test_bridge_cancellation_comes_out_of_the_blocking_call(run: Run[list[str]]) -> None:
    """A cancelled task sees CancelledError where it waits, cleans up with further waits, and is cancelled."""

    async def user() -> list[str]:
        said: list[str] = []

        async def waits() -> None:
            try:
                slept(60, None)
            except asyncio.CancelledError:
                said.append("cancelled")
                raise
            finally:
                said.append(slept(0.001, "cleaned up"))

        task = asyncio.create_task(waits())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return [*said, str(task.cancelled())]

    assert run(user()) == ["cancelled", "cleaned up", "True"]


def test_bridge_keeps_timeouts(run: Run[str]) -> None:
    """asyncio.timeout and wait_for end a blocking call, and what it waited for."""

    async def user() -> str:
        awaited = asyncio.create_task(asyncio.sleep(60))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                bridge.cross(awaited)
        assert awaited.cancelled()

        async def waits() -> None:
            slept(60, None)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waits(), 0.01)
        return slept(0, "on")

    assert run(user()) == "on"


def test_bridge_outside_of_a_task_says_what_to_do(run: Run[str]) -> None:
    """A callback of the loop has no task that could wait; the awaitable is not left un-awaited."""

    async def user() -> str:
        said: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def callback() -> None:
            try:
                slept(0, None)
            except bridge.NotDriven as error:
                said.set_result(str(error))

        asyncio.get_running_loop().call_soon(callback)
        return await said

    assert "create_task" in run(user())


def test_bridge_through_other_greenlets(run: Run[str]) -> None:
    """Libraries with greenlets of their own between the task and the blocking call are crossed with it."""

    async def user() -> str:
        return str(greenlet(lambda: f"{slept(0.001, 'through')} {slept(0, 'twice')}").switch())

    assert run(user()) == "through twice"


def test_bridge_async_generators_and_nested_coroutines(run: Run[list[int]]) -> None:
    """Waits deep inside of awaited coroutines and of async generators."""

    async def inner(number: int) -> int:
        return slept(0, number)

    async def numbers() -> Any:
        for number in range(3):
            yield slept(0, number) + await inner(10)

    async def user() -> list[int]:
        return [number async for number in numbers()]

    assert run(user()) == [10, 11, 12]


def test_bridge_a_task_that_is_dropped_ends_its_step(recwarn: pytest.WarningsRecorder) -> None:
    """A loop that is closed under a waiting task: its finally blocks run, and nothing is left behind."""
    loop = asyncio.new_event_loop()
    bridge.install(loop)
    said: list[str] = []

    async def user() -> None:
        try:
            slept(60, None)
        finally:
            said.append("ended")

    coroutine = user()
    driven = bridge.Driven(coroutine)
    asyncio._set_running_loop(loop)
    try:
        driven.send(None)
    finally:
        asyncio._set_running_loop(None)
    driven.close()
    loop.close()
    del driven
    gc.collect()
    assert said == ["ended"]
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_bridge_tasks_look_like_tasks(run: Run[str]) -> None:
    """asyncio's own text of a task names the user's coroutine."""

    async def named_by_the_user() -> str:
        return repr(asyncio.current_task())

    async def user() -> str:
        return await asyncio.create_task(named_by_the_user())

    assert "named_by_the_user" in run(user())

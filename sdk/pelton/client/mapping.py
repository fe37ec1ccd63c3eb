"""Many calls at once: a bounded window of open calls over any number of inputs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pelton.client.futures import CallFuture

if TYPE_CHECKING:
    import asyncio

R = TypeVar("R")
T = TypeVar("T")

Start = Callable[[tuple[Any, ...]], CallFuture[R]]
"""Starts the call with these positional arguments."""


def check_window(window: int) -> None:
    """Refuses a window that can hold no call.

    Raises:
        ValueError: below 1.
    """
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window is the number of open calls, at least 1, not {window!r}")


def map_ordered(
    start: Start[R], inputs: Iterable[tuple[Any, ...]], window: int, return_exceptions: bool
) -> Iterator[R]:
    """Values in the order of the inputs, at most `window` calls open."""
    open_calls: deque[CallFuture[R]] = deque()
    for arguments in inputs:
        open_calls.append(start(arguments))
        if len(open_calls) >= window:
            yield _value(open_calls.popleft(), return_exceptions)
    while open_calls:
        yield _value(open_calls.popleft(), return_exceptions)


def map_unordered(
    start: Start[R], inputs: Iterable[tuple[Any, ...]], window: int, return_exceptions: bool
) -> Iterator[R]:
    """Values in the order in which the calls end, at most `window` calls open."""
    ended: SimpleQueue[CallFuture[R]] = SimpleQueue()
    wait: Callable[[], CallFuture[R]] = ended.get
    count = 0
    for arguments in inputs:
        future = start(arguments)
        future.add_listener(_putter(ended.put, future))
        wait = partial(future.connection.block, ended.get)
        count += 1
        if count >= window:
            count -= 1
            yield _value(wait(), return_exceptions)
    for _ in range(count):
        yield _value(wait(), return_exceptions)


async def amap(
    start: Start[R],
    inputs: Iterable[tuple[Any, ...]] | AsyncIterable[tuple[Any, ...]],
    window: int,
    ordered: bool,
    return_exceptions: bool,
) -> AsyncIterator[R]:
    """The same on the running loop; waiting blocks nobody."""
    import asyncio

    from pelton.client.waking import waker_of

    waker = waker_of(asyncio.get_running_loop())
    ended: asyncio.Queue[CallFuture[R]] = asyncio.Queue()
    open_calls: deque[CallFuture[R]] = deque()
    count = 0

    async def next_ended() -> R:
        first = open_calls.popleft() if ordered else await future.connection.suspend(ended.get())
        try:
            return await first
        except Exception as error:
            return cast(R, _raise_or_return(error, return_exceptions))

    async for arguments in _as_async(inputs):
        future = start(arguments)
        if ordered:
            open_calls.append(future)
        else:
            put = _putter(ended.put_nowait, future)
            future.add_listener(lambda put=put: waker.call(put))  # type: ignore[misc]
        count += 1
        if count >= window:
            count -= 1
            yield await next_ended()
    for _ in range(count):
        yield await next_ended()


def gather(*futures: CallFuture[T], timeout: float | None = None) -> list[T]:
    """Waits for calls; on an event loop use `asyncio.gather`.

    Args:
        futures: what `async_call` returned.
        timeout: seconds for all of them together; None for as long as it takes.

    Returns:
        Their values, in the order of the futures.

    Raises:
        TimeoutError: not all have ended; the calls go on and the futures may be asked again.
        CallFailed: the first future, in their order, whose call failed.
        TypeError: something is no `CallFuture`.
    """
    for future in futures:
        if not isinstance(future, CallFuture):
            raise TypeError(f"gather takes what async_call() returns, not {type(future).__name__}")
    if timeout is None:
        return [future.result() for future in futures]
    end = time.monotonic() + timeout
    return [future.result(max(0.0, end - time.monotonic())) for future in futures]


async def _as_async(inputs: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(inputs, AsyncIterable):
        async for entry in inputs:
            yield entry
    else:
        for entry in inputs:
            yield entry


def _putter(put: Callable[[T], object], entry: T) -> Callable[[], None]:
    def call() -> None:
        put(entry)

    return call


def _value(future: CallFuture[R], return_exceptions: bool) -> R:
    try:
        return future.result()
    except Exception as error:
        return cast(R, _raise_or_return(error, return_exceptions))


def _raise_or_return(error: Exception, return_exceptions: bool) -> Any:
    if return_exceptions:
        return error
    raise error

"""The bridge from blocking code to the loop it runs on: a sync call inside `async def` that blocks nobody.

Every task of the loop is driven step by step, each step in a greenlet. When code in a step has to wait, its
greenlet is left where it stands, the task awaits in its place, and the step goes on with what was awaited. To
the loop, and to every `except` and `finally` on the way, it looks as if the code had written `await`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from types import TracebackType
from typing import Any, TypeVar, cast

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class NotDriven(RuntimeError):
    """Code on the thread of an event loop would have to wait where no task of the loop can wait for it."""


class _Step(greenlet):
    """Runs one step of a coroutine."""

    __slots__ = ()


class _Crossing:
    """What a step hands over when it has to wait: what for, and the greenlet that goes on afterwards."""

    __slots__ = ("awaitable", "waiting")

    def __init__(self, awaitable: Awaitable[Any], waiting: greenlet) -> None:
        self.awaitable = awaitable
        self.waiting = waiting


class Driven(Coroutine[Any, Any, T]):
    """A coroutine whose steps may cross the bridge.

    Args:
        coroutine: the one to drive.
    """

    __slots__ = ("_awaited", "_coroutine", "_waiting")

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._waiting: greenlet | None = None
        self._awaited: Generator[Any, Any, Any] | None = None

    def send(self, value: Any) -> Any:
        """As of a coroutine."""
        if self._awaited is not None:
            return self._after(self._advance(self._awaited.send, value))
        step = _Step(self._coroutine.send)
        # The very context of the task, not a copy: what the code sets there stays set.
        step.gr_context = getcurrent().gr_context
        outcome = step.switch(value)
        return outcome if type(outcome) is not _Crossing else self._after(outcome)

    def throw(
        self,
        kind: Any,
        value: Any = None,
        traceback: TracebackType | None = None,
    ) -> Any:
        """As of a coroutine: what waits across the bridge gets the exception first."""
        error = kind if isinstance(kind, BaseException) else value if value is not None else kind()
        if traceback is not None:
            error = error.with_traceback(traceback)
        if self._awaited is not None:
            return self._after(self._advance(self._awaited.throw, error))
        step = _Step(self._coroutine.throw)
        step.gr_context = getcurrent().gr_context
        return self._after(step.switch(error))

    def close(self) -> None:
        """As of a coroutine; a step that waits across the bridge ends with GeneratorExit first."""
        if self._awaited is not None:
            self._awaited.close()
            try:
                self._resumed().throw(GeneratorExit)
            except (GeneratorExit, StopIteration):
                pass
            else:
                raise RuntimeError("code that waits across the bridge ignored GeneratorExit")
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, T]:
        try:
            value = self.send(None)
            while True:
                try:
                    sent = yield value
                except BaseException as error:
                    value = self.throw(error)
                else:
                    value = self.send(sent)
        except StopIteration as end:
            return cast(T, end.value)

    def __getattr__(self, name: str) -> Any:
        # Names, frames and code, as debuggers and asyncio's `repr` of tasks want them.
        if name.startswith(("cr_", "__name__", "__qualname__")):
            return getattr(self._coroutine, name)
        raise AttributeError(name)

    def _after(self, outcome: Any) -> Any:
        """What a step handed over: something the loop understands, or a crossing, which is entered."""
        while isinstance(outcome, _Crossing):
            self._waiting = outcome.waiting
            self._awaited = outcome.awaitable.__await__()
            outcome = self._advance(self._awaited.send, None)
        return outcome

    def _advance(self, method: Any, value: Any) -> Any:
        """Awaits a little; when that has ended, the step that waited goes on with its result or error."""
        try:
            return method(value)
        except StopIteration as end:
            return self._resumed().switch(end.value)
        except BaseException as error:
            return self._resumed().throw(error)

    def _resumed(self) -> greenlet:
        """The greenlet that waited, which goes on now; what it does next comes back here."""
        waiting, self._waiting, self._awaited = self._waiting, None, None
        if waiting is None:
            raise RuntimeError("nothing waits across the bridge")
        top = waiting
        while not isinstance(top, _Step) and top.parent is not None:
            top = top.parent
        top.parent = getcurrent()
        return waiting


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Lets all tasks of a loop cross the bridge, also those that user code makes."""

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(Driven(coroutine), loop=loop, **options)

    loop.set_task_factory(cast(Any, factory))


def cross(awaitable: Awaitable[T]) -> T:
    """Waits, on the thread of a running loop, for what can only be awaited; other tasks run meanwhile.

    Raises:
        NotDriven: no task of the loop runs this code; nothing was awaited.
    """
    current = getcurrent()
    step: greenlet | None = current
    while step is not None and not isinstance(step, _Step):
        step = step.parent
    if step is None or step.parent is None:
        if isinstance(awaitable, Coroutine):
            awaitable.close()
        raise NotDriven(
            "this code runs on the thread of the event loop but in none of its tasks (a callback, or a "
            "finalizer): it cannot wait there without stopping all others. Start a task, "
            "`loop.create_task(...)`, or use `async_call` with a done callback"
        )
    return cast(T, step.parent.switch(_Crossing(awaitable, current)))


def on_loop() -> bool:
    """Whether this thread runs an event loop."""
    return asyncio._get_running_loop() is not None

"""Waking waiters: what happens on a reading thread reaches event loops and threads, many at a time."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future

Callback = Callable[[], object]


class LoopWaker:
    """Runs callables on one event loop; however many come at once, the loop is woken once."""

    __slots__ = ("__weakref__", "_loop", "_ready", "_scheduled")

    def __init__(self, loop: AbstractEventLoop) -> None:
        # A strong reference would keep the loop alive in the table that is keyed by it.
        self._loop = weakref.ref(loop)
        self._ready: deque[Callback] = deque()
        self._scheduled = False

    def call(self, callback: Callback) -> None:
        """Runs `callback` on the loop soon; from any thread. On a closed loop nobody is left to wake."""
        self._ready.append(callback)
        if self._scheduled:
            return
        self._scheduled = True
        loop = self._loop()
        if loop is None or loop.is_closed():
            self._ready.clear()
            return
        try:
            loop.call_soon_threadsafe(self._run)
        except RuntimeError:
            if not loop.is_closed():
                raise
            self._ready.clear()

    def _run(self) -> None:
        # Reset first: whatever is added from here on is either run below or schedules another turn.
        self._scheduled = False
        ready = self._ready
        for _ in range(len(ready)):
            ready.popleft()()
        if ready and not self._scheduled:
            self.call(_nothing)


_wakers: weakref.WeakKeyDictionary[AbstractEventLoop, LoopWaker] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def waker_of(loop: AbstractEventLoop) -> LoopWaker:
    """The waker of an event loop, made on first use."""
    waker = _wakers.get(loop)
    if waker is None:
        with _making:
            waker = _wakers.get(loop)
            if waker is None:
                waker = _wakers[loop] = LoopWaker(loop)
    return waker


def settle(waiter: Future[None]) -> None:
    """Ends a waiter of the running loop, unless it was cancelled or woken before."""
    if not waiter.done():
        waiter.set_result(None)


class Signal:
    """Wakes the one thread or the one coroutine that waits for something new.

    To wait without missing anything: `clear()` or `arm(loop)`, look again, then wait.
    """

    __slots__ = ("_event", "_waiter")

    def __init__(self) -> None:
        self._event = threading.Event()
        self._waiter: tuple[LoopWaker, Future[None]] | None = None

    def clear(self) -> None:
        """From here on a `notify` ends the next `wait`."""
        self._event.clear()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for `notify`; False when time ran out."""
        return self._event.wait(timeout)

    def arm(self, loop: AbstractEventLoop) -> Future[None]:
        """A waiter of this loop that the next `notify` ends."""
        waiter = loop.create_future()
        self._waiter = (waker_of(loop), waiter)
        return waiter

    def notify(self) -> None:
        """Wakes whoever waits; from any thread."""
        self._event.set()
        armed, self._waiter = self._waiter, None
        if armed is not None:
            waker, waiter = armed
            waker.call(lambda: settle(waiter))


class CallbackThread:
    """Runs callbacks of users: reading threads must not run user code, which may take any time.

    Args:
        name: of the thread, which starts with the first callback.
    """

    def __init__(self, name: str = "pelton-callbacks") -> None:
        self._name = name
        self._queue: SimpleQueue[Callback] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # A collection of garbage may submit while this thread holds it.
        self._starting = threading.RLock()

    def submit(self, callback: Callback) -> None:
        """Runs `callback` soon, in order, on one thread."""
        self._queue.put(callback)
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while True:
            callback = self._queue.get()
            try:
                callback()
            except Exception:
                logging.getLogger("pelton.client").exception("a done callback raised")


def _nothing() -> None:
    return None


def _after_fork() -> None:
    """The lock may have been held by a thread that did not come along."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)

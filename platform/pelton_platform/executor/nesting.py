"""Nested calls inside an executor: what they inherit, and how a run gives its slot back while it waits."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

from pelton.client.nesting import Lineage
from pelton.client.waking import settle, waker_of
from pelton.protocol.frames import FromExecutor
from pelton.runtime.context import current_attempt
from pelton_platform.executor.outbox import Outbox
from pelton_platform.executor.run import Run

T = TypeVar("T")

MAX_BLOCKED: Final = 256
"""So many waits of async functions that can only block have a thread each; more wait for one."""

_PARK: Final = int(FromExecutor.PARK)
_UNPARK: Final = int(FromExecutor.UNPARK)


class Lender(Protocol):
    """What runs the attempts: it may run one more for each that waits."""

    def lend(self) -> None:
        """One attempt waits for calls it made: there is room for another one."""

    def reclaim(self) -> None:
        """It goes on."""


class Place:
    """The slot of one run: held, given back, or asked for again.

    A run is parked while any of its threads or tasks waits for a call, and asks for its slot when the last
    of them wants to go on: two that wait at the same time cannot keep the slot from each other's calls.

    Args:
        run_id: names the run in frames.
        say: sends a record to the coordinator now.
        lender: what runs the attempts.
    """

    __slots__ = (
        "_lender",
        "_lock",
        "_over",
        "_parked",
        "_returning",
        "_run_id",
        "_say",
        "_waiting",
        "_wakes",
    )

    def __init__(self, run_id: int, say: Callable[[list[int]], None], lender: Lender) -> None:
        self._run_id = run_id
        self._say = say
        self._lender = lender
        self._lock = threading.Lock()
        self._waiting = 0
        self._parked = False
        self._returning = False
        self._over = False
        self._wakes: list[Callable[[], None]] = []

    def leave(self) -> None:
        """Somebody waits from here on."""
        with self._lock:
            self._waiting += 1
            if self._parked or self._over:
                return
            self._parked = True
            # Said under the lock, so that the coordinator hears it in the order in which it happened.
            self._say([_PARK, self._run_id])
        self._lender.lend()

    def come_back(self, wake: Callable[[], None]) -> bool:
        """Somebody has what it waited for; False when it must not go on before `wake` is called."""
        with self._lock:
            self._waiting -= 1
            if self._over or (self._waiting and not self._returning):
                return True
            self._wakes.append(wake)
            if not self._returning:
                self._returning = True
                self._say([_UNPARK, self._run_id])
        return False

    def end(self) -> None:
        """The attempt has ended: code that it left behind waits for no slot."""
        with self._lock:
            self._over = True
            lent, self._parked, self._returning = self._parked, False, False
            wakes, self._wakes = self._wakes, []
        if lent:
            self._lender.reclaim()
        for wake in wakes:
            wake()

    def returned(self) -> None:
        """The coordinator gave the slot back; called on the reading thread."""
        with self._lock:
            if not self._returning:
                return
            self._returning = False
            wakes, self._wakes = self._wakes, []
            self._parked = again = self._waiting > 0
            if again:
                # Another thread or task of the run waits already: its call may need the slot.
                self._say([_PARK, self._run_id])
        if not again:
            self._lender.reclaim()
        for wake in wakes:
            wake()


class ExecutorNesting:
    """Implements `pelton.client.nesting.Nesting`.

    Args:
        outbox: where records leave.
        lender: what runs the attempts.
    """

    def __init__(self, outbox: Outbox, lender: Lender) -> None:
        self._outbox = outbox
        self._lender = lender
        self._threads = _Threads()

    def lineage(self) -> Lineage | None:
        """What a call made here and now inherits; None outside of an attempt."""
        run = current_attempt.get()
        if run is None:
            return None
        return Lineage((*run.ancestry, run.call_id), run.deadline_ms or None, run.trace_parent)

    def block(self, wait: Callable[[], T], instead: Callable[[], Awaitable[T]] | None = None) -> T:
        """Calls `wait`, or awaits `instead` on the loop's thread, the slot given back meanwhile."""
        if asyncio._get_running_loop() is not None:
            return _cross(self.suspend(self._threads.run(wait) if instead is None else instead()))
        place = self._place()
        if place is None:
            return wait()
        place.leave()
        try:
            return wait()
        finally:
            returned = threading.Event()
            if not place.come_back(returned.set):
                _await_slot(returned)

    def aside(self, wait: Callable[[], T]) -> T:
        """Calls `wait`, on another thread if this one runs the loop."""
        if asyncio._get_running_loop() is not None:
            return _cross(self._threads.run(wait))
        return wait()

    async def suspend(self, waiter: Awaitable[T]) -> T:
        """Awaits it, the slot given back meanwhile."""
        place = self._place()
        if place is None:
            return await waiter
        place.leave()
        try:
            return await waiter
        finally:
            loop = asyncio.get_running_loop()
            waker = waker_of(loop)
            returned: asyncio.Future[None] = loop.create_future()
            if not place.come_back(lambda: waker.call(lambda: settle(returned))):
                await _uncancelled(returned)

    def _place(self) -> Place | None:
        run = current_attempt.get()
        if not isinstance(run, Run) or run.over:
            # Code that outlived its attempt holds no slot.
            return None
        if run.place is None:
            run.place = Place(run.run_id, self._say, self._lender)
        return run.place

    def _say(self, record: list[int]) -> None:
        self._outbox.post(record)
        self._outbox.nudge()


class _Threads:
    """Threads that block so that the thread of the loop does not have to; made when first needed."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, wait: Callable[[], T]) -> T:
        """Calls `wait` on one of them, in the context of the caller."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(MAX_BLOCKED, thread_name_prefix="pelton-blocked")
        call = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, wait)


def _cross(awaitable: Awaitable[T]) -> T:
    # Late: executors of sync functions do without it.
    from pelton.runtime.bridge import cross

    return cross(awaitable)


def _await_slot(returned: threading.Event) -> None:
    """Waits for the slot, whatever is thrown into this thread meanwhile; raises it afterwards."""
    interruption: BaseException | None = None
    while not returned.is_set():
        try:
            returned.wait()
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


async def _uncancelled(returned: asyncio.Future[None]) -> None:
    """Waits for the slot, also when the task is cancelled meanwhile; cancels it afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not returned.done():
        try:
            await asyncio.shield(returned)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled

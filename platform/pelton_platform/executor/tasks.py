"""Slots for async functions and generators: tasks on one event loop, which is the main thread's."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from pelton.runtime.calling import Arguments, Outcome, call_async, interrupted, stream_async
from pelton.runtime.context import current_attempt
from pelton_platform.executor.desk import Desk
from pelton_platform.executor.run import Run

_log = logging.getLogger("pelton.executor")


class TaskSlots:
    """Runs async attempts as tasks, at most `slots` at a time.

    Args:
        desk: function, runs, outbox.
        slots: how many attempts may run at the same time.
        loop: the loop they run on; `serve` runs it.
    """

    def __init__(self, desk: Desk, slots: int, loop: asyncio.AbstractEventLoop) -> None:
        self._desk = desk
        self._slots = max(1, slots)
        self._loop = loop
        self._streams = desk.target.kind.streams
        self._context = contextvars.copy_context()
        self._queue: deque[Run] = deque()
        self._running = 0
        self._lending = threading.Lock()
        self._interrupts: deque[Run] = deque()
        self._credits: deque[Run] = deque()
        self._called = False
        self._flush_called = False
        self._stopping = False

    def begin(self, runs: Iterable[Run]) -> None:
        """Queues runs."""
        self._queue.extend(runs)
        self._call()

    def credited(self, run: Run) -> None:
        """Lets a blocked generator look again."""
        if run.blocked:
            self._credits.append(run)
            self._call()

    def interrupt(self, run: Run) -> None:
        """Cancels the task, once; a run that waits is not begun."""
        if run.interrupted:
            return
        run.interrupted = True
        self._interrupts.append(run)
        self._call()

    def lend(self) -> None:
        """A run waits: one more may run."""
        with self._lending:
            self._slots += 1
        self._call()

    def reclaim(self) -> None:
        """It goes on."""
        with self._lending:
            self._slots -= 1

    def stop(self) -> None:
        """Lets `serve` return once nothing runs."""
        self._stopping = True
        self._call()

    def serve(self, ending: Callable[[], None]) -> None:
        """Runs the loop until stopped and done; what user code wants done then still finds its loop."""
        while not (self._stopping and not self._desk.runs):
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # A task that user code started raised it, or a signal handler: no call of ours ends by it.
                _log.error("%s left a background task; the executor goes on", type(error).__name__)
        ending()
        self._end_loop()

    def _end_loop(self) -> None:
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def _call(self) -> None:
        """Has the loop look at what came; once for everything that came meanwhile."""
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        # Cleared first: what comes from here on calls again.
        self._called = False
        self._start_waiting()
        while self._interrupts:
            run = self._interrupts.popleft()
            if run.task is not None and run.cancellable:
                run.task.cancel()
        while self._credits:
            run = self._credits.popleft()
            if run.waiter is not None and not run.waiter.done() and run.has_room():
                run.waiter.set_result(None)
        self._stop_if_done()

    def _start_waiting(self) -> None:
        while self._queue and self._running < self._slots:
            run = self._queue.popleft()
            self._running += 1
            # Kept here, since the loop refers to tasks only weakly.
            run.task = self._loop.create_task(self._attempt(run), context=self._context.copy())

    def _stop_if_done(self) -> None:
        if self._stopping and not self._desk.runs:
            self._loop.stop()

    async def _attempt(self, run: Run) -> None:
        arguments = self._desk.read(run)
        if arguments is not None:
            if run.interrupted:
                outcome: Outcome = None, interrupted()
            else:
                outcome = await self._inside(run, arguments)
            run.cancellable = False
            self._desk.finish(run, outcome, arguments.submitted_ms)
        self._running -= 1
        if self._queue:
            self._start_waiting()
        if not self._flush_called:
            self._flush_called = True
            self._loop.call_soon(self._flush)

    async def _inside(self, run: Run, arguments: Arguments) -> Outcome:
        current_attempt.set(run)
        # Only from here on: a task that is cancelled before its first step would never tell its end.
        run.cancellable = True
        if self._streams:
            outcome = await stream_async(self._desk.target, arguments, lambda chunk: self._sink(run, chunk))
        else:
            outcome = await call_async(self._desk.target, arguments)
        self._desk.capture.end_attempt(run)
        return outcome

    def _flush(self) -> None:
        """Everything that ended in this turn of the loop leaves together."""
        self._flush_called = False
        self._desk.outbox.flush()
        self._stop_if_done()

    def _sink(self, run: Run, chunk: bytes) -> Awaitable[bool] | None:
        if run.has_room():
            self._desk.send_chunk(run, chunk)
            return None
        return self._send_when_room(run, chunk)

    async def _send_when_room(self, run: Run, chunk: bytes) -> bool:
        self._desk.outbox.flush()
        run.blocked = True
        try:
            while not run.has_room() and not run.interrupted:
                run.waiter = self._loop.create_future()
                # Credit may have come before there was a waiter.
                if not run.has_room():
                    await run.waiter
        finally:
            run.blocked = False
            run.waiter = None
        if run.interrupted:
            return False
        self._desk.send_chunk(run, chunk)
        return True

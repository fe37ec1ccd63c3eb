"""Slots for sync functions and generators: threads that take runs themselves, as few as the work keeps busy.

A thread that takes a run and leaves others waiting wakes (or starts) one more; that one does the same. Short
calls are therefore run one after another by one thread without a handover, while calls that wait or compute
for long spread over all slots. The main thread is the first slot: with one slot user code runs there.
"""

from __future__ import annotations

import contextvars
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from pelton.runtime.calling import Arguments, Outcome, call, interrupted, stream
from pelton.runtime.context import current_attempt
from pelton.runtime.failures import failure_of
from pelton_platform.executor.desk import Desk
from pelton_platform.executor.run import Run

SPARE_THREADS: Final = 8
"""So many threads stay for the next runs that wait for calls they made."""


class _Parked:
    """A thread without work, and the lock it waits for."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()


class ThreadSlots:
    """Runs sync attempts on at most `slots` threads.

    Args:
        desk: function, runs, outbox.
        slots: how many attempts may run at the same time.
    """

    def __init__(self, desk: Desk, slots: int) -> None:
        self._desk = desk
        self._slots = max(1, slots)
        self._streams = desk.target.kind.streams
        self._context = contextvars.copy_context()
        self._queue: deque[Run] = deque()
        self._lock = threading.Lock()
        self._idle: list[_Parked] = []
        self._threads = 1
        # One thread at a time is on its way to the queue; it wakes the next one when it gets there.
        self._waking = False
        self._stopping = False
        self._main = _Parked()

    def begin(self, runs: Iterable[Run]) -> None:
        """Queues runs."""
        with self._lock:
            self._queue.extend(runs)
            starting = self._call_help()
        if starting:
            self._start_thread()

    def credited(self, run: Run) -> None:
        """Lets a blocked generator look again."""
        gate = run.gate
        if run.blocked and gate is not None:
            with gate:
                gate.notify()

    def interrupt(self, run: Run) -> None:
        """Nothing stops sync code; a generator ends at its next chunk, a run that waits is not begun."""
        run.interrupted = True
        self.credited(run)

    def lend(self) -> None:
        """A run waits in its thread: another one may work."""
        with self._lock:
            self._slots += 1
            starting = self._call_help()
        if starting:
            self._start_thread()

    def reclaim(self) -> None:
        """It goes on; a thread that is one too many ends when it has nothing to do."""
        with self._lock:
            self._slots -= 1

    def stop(self) -> None:
        """Lets `serve` return once nothing runs."""
        with self._lock:
            self._stopping = True
            self._wake_main()

    def serve(self, ending: Callable[[], None]) -> None:
        """Works as the first slot until stopped and done; then does what user code wants done."""
        while not self._done():
            try:
                self._work(self._main, woken=False)
            except BaseException as error:
                # A signal handler of user code raised here, between two runs: there is no call to blame.
                sys.excepthook(type(error), error, error.__traceback__)
        ending()

    def _done(self) -> bool:
        return self._stopping and not self._desk.runs

    def _call_help(self) -> bool:
        """Wakes a thread for what waits; True when one has to be started instead. Needs `_lock`."""
        if self._waking or not self._queue:
            return False
        if self._idle:
            self._waking = True
            self._idle.pop().lock.release()
            return False
        if self._threads < self._slots:
            self._waking = True
            self._threads += 1
            return True
        return False

    def _wake_main(self) -> None:
        """Needs `_lock`."""
        if self._main in self._idle:
            self._idle.remove(self._main)
            self._main.lock.release()

    def _start_thread(self) -> None:
        thread = threading.Thread(
            target=self._work, args=(_Parked(), True), name=f"pelton-slot-{self._threads}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            # The system gives no more threads: the ones there are go on with the queue.
            with self._lock:
                self._threads -= 1
                self._slots = self._threads
                self._waking = False
            sys.excepthook(type(error), error, error.__traceback__)

    def _work(self, parked: _Parked, woken: bool) -> None:
        """Takes runs as long as there are any, then parks."""
        desk, queue, lock = self._desk, self._queue, self._lock
        while True:
            run = None
            starting = False
            with lock:
                if woken:
                    self._waking = woken = False
                if queue:
                    run = queue.popleft()
                    starting = self._call_help() if queue else False
                elif parked is self._main and self._done():
                    return
                elif self._threads > self._slots + SPARE_THREADS and parked is not self._main:
                    self._threads -= 1
                    return
                else:
                    self._idle.append(parked)
            if run is None:
                self._park(parked)
                woken = True
                continue
            if starting:
                self._start_thread()
            self._execute(run)
            if queue:
                desk.outbox.nudge()
            else:
                desk.outbox.flush()
            if self._stopping and not desk.runs:
                with lock:
                    self._wake_main()

    def _park(self, parked: _Parked) -> None:
        try:
            parked.lock.acquire()
        except BaseException:
            with self._lock:
                if parked in self._idle:
                    self._idle.remove(parked)
                else:
                    # Woken and interrupted at once: the wakening is taken, its work is still in the queue.
                    parked.lock.acquire(blocking=False)
                    self._waking = False
            raise

    def _execute(self, run: Run) -> None:
        arguments = self._desk.read(run)
        if arguments is None:
            return
        outcome: Outcome
        try:
            if run.interrupted:
                outcome = None, interrupted()
            else:
                outcome = self._context.copy().run(self._inside, run, arguments)
        except BaseException as error:
            # An exception thrown into this thread from outside, after user code had returned.
            outcome = None, failure_of(error)
        self._desk.finish(run, outcome, arguments.submitted_ms)

    def _inside(self, run: Run, arguments: Arguments) -> Outcome:
        current_attempt.set(run)
        if self._streams:
            outcome = stream(self._desk.target, arguments, lambda chunk: self._sink(run, chunk))
        else:
            outcome = call(self._desk.target, arguments)
        self._desk.capture.end_attempt(run)
        return outcome

    def _sink(self, run: Run, chunk: bytes) -> bool:
        if not run.has_room():
            self._wait_for_room(run)
        if run.interrupted:
            return False
        self._desk.send_chunk(run, chunk)
        return True

    def _wait_for_room(self, run: Run) -> None:
        if run.gate is None:
            run.gate = threading.Condition()
        self._desk.outbox.flush()
        with run.gate:
            run.blocked = True
            try:
                while not run.has_room() and not run.interrupted:
                    run.gate.wait()
            finally:
                run.blocked = False

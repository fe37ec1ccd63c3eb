"""The parent's side of executors: how they are started, spoken to, heard, ended and buried.

One thread of the pool reads all executors, another starts them. Callers of `send` never wait: what a channel
does not take at once is kept and written by the reading thread. Whatever an executor does (closes its
channel, ignores signals, forks, writes rubbish) is contained here and ends as one `ExecutorExit`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from pelton.core.call import Failure
from pelton.protocol.frames import FLOOD_OVER, FromExecutor, ToExecutor, encode_write
from pelton_platform import process
from pelton_platform.confinement import Confinement
from pelton_platform.coordinator.executor_process import (
    Executor,
    ExecutorExit,
    ExecutorSettings,
    RawLines,
    Record,
    executor_environment,
    writes,
)

EOF_GRACE_S: Final = 1.0
"""An executor whose channel ended but which lives on so long is killed: nobody can talk to it."""

_READ_BYTES: Final = 256 * 1024
_PROVEN_S: Final = 1.0
_TELL_DROPPED_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 30.0
_LOOK_S: Final = 0.05
_LAST_READS: Final = 64
_WAKES: Final = 4096
_LENGTHS: Final = {
    int(FromExecutor.READY): 2,
    int(FromExecutor.BROKEN): 2,
    int(FromExecutor.CHUNKS): 3,
    int(FromExecutor.OUTCOME): 5,
    int(FromExecutor.POISON): 3,
    int(FromExecutor.LOG): 10,
    int(FromExecutor.CALL): 3,
    int(FromExecutor.FORGET): 2,
    int(FromExecutor.ASK): 4,
    int(FromExecutor.PARK): 2,
    int(FromExecutor.UNPARK): 2,
    int(FromExecutor.CANCEL): 4,
    int(FromExecutor.PAUSE): 2,
}
_ENDS: Final = (int(FromExecutor.OUTCOME), int(FromExecutor.POISON))
_OF_RUNS: Final = (*_ENDS, int(FromExecutor.CHUNKS), int(FromExecutor.PARK), int(FromExecutor.UNPARK))
_log = logging.getLogger("pelton.coordinator.executors")


__all__ = ["ExecutorExit", "ExecutorPool", "ExecutorSettings", "Record", "executor_environment"]

OnRecords = Callable[[int, list[list[Any]]], None]
OnReady = Callable[[int, int], None]
OnExit = Callable[[ExecutorExit], None]


class ExecutorPool:
    """The executors of one function in one instance.

    Args:
        settings: what they run.
        on_records: called with an executor's id and its records but READY and BROKEN, in order.
        on_ready: called with id and pid when user code is loaded.
        on_exit: called once for every executor that was started, after its last records.

    All callbacks come on the pool's reading thread and must not block; they may call any method but `close`.
    """

    def __init__(
        self, settings: ExecutorSettings, on_records: OnRecords, on_ready: OnReady, on_exit: OnExit
    ) -> None:
        self._settings = settings
        self._on_records = on_records
        self._on_ready = on_ready
        self._on_exit = on_exit
        self._ids = itertools.count(1)
        self._executors: dict[int, Executor] = {}
        self._clock_offset_ms = 0
        self._failures = 0
        self._starts: list[tuple[float, int, Executor]] = []
        self._start_wanted = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_ids = itertools.count()
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain_wakes)
        self._closing = False
        self._empty = threading.Event()
        name = f"pelton-executors-{settings.function}"
        self._reader = threading.Thread(target=self._read_all, name=name, daemon=True)
        self._starter = threading.Thread(target=self._start_all, name=f"{name}-starter", daemon=True)
        self._reader.start()
        self._starter.start()

    def start(self, *, isolated: bool = False) -> int:
        """Starts an executor and returns its id at once; `on_ready` or `on_exit` follows.

        After executors that broke while loading, the start waits: 0.25 s at first, doubling up to 30 s.
        """
        executor = Executor(next(self._ids), isolated)
        self._executors[executor.id] = executor
        executor.channel.post(
            encode_write([[int(ToExecutor.HELLO), self._settings.hello(isolated=isolated)]])
        )
        executor.channel.post(encode_write([[int(ToExecutor.CLOCK), self._clock_offset_ms]]))
        with self._start_wanted:
            due = time.monotonic() + pause_before_start(self._failures)
            heapq.heappush(self._starts, (due, executor.id, executor))
            self._start_wanted.notify()
        return executor.id

    def send(self, executor_id: int, records: Sequence[Record]) -> bool:
        """Sends records in one write; never blocks.

        Returns:
            False when the executor is gone or going: none of the runs will end. They are named in its
            `ExecutorExit`, unless that was told already.
        """
        executor = self._executors.get(executor_id)
        if executor is None or not records:
            return False
        executor.given = True
        executor.runs.update(record[1] for record in records if record[0] == ToExecutor.RUN)
        for data in writes(records):
            taken = executor.channel.post(data)
            if taken is None:
                return False
            if not taken:
                self._call(lambda: self._watch(executor))
        return True

    def interrupt(self, executor_id: int, run_id: int, grace_s: float) -> None:
        """Asks a run to end; when it has not ended after the grace, its executor is killed."""
        self._call(lambda: self._interrupt(executor_id, run_id, grace_s))

    def stop(self, executor_id: int, grace_s: float) -> None:
        """Lets an executor finish what it runs and exit; kills it after the grace."""
        self._call(lambda: self._stop(executor_id, grace_s))

    def kill(self, executor_id: int, reason: str = "killed by its instance", *, asked: bool = True) -> None:
        """Ends an executor and everything it started, at once.

        Args:
            executor_id: which one.
            reason: why.
            asked: its owner wanted it; else it counts as lost.
        """
        self._call(lambda: self._kill(executor_id, reason, asked=asked))

    def set_clock(self, offset_ms: int) -> None:
        """Tells executors, those to come included, broker time minus this machine's wall clock."""
        self._clock_offset_ms = offset_ms
        for executor_id in list(self._executors):
            executor = self._executors.get(executor_id)
            if (
                executor is not None
                and executor.channel.post(encode_write([[int(ToExecutor.CLOCK), offset_ms]])) is False
            ):
                self._call(partial(self._watch, executor))

    def pids(self) -> dict[int, int]:
        """Pids of live executors by id."""
        return {item.id: item.child.pid for item in list(self._executors.values()) if item.child is not None}

    def close(self, grace_s: float) -> None:
        """Stops all executors, kills those that outlast the grace, ends the threads. Blocks until done."""
        self._call(lambda: self._close(grace_s))
        self._empty.wait()
        with self._start_wanted:
            self._start_wanted.notify()
        self._starter.join()
        self._reader.join()

    # -- starting

    def _start_all(self) -> None:
        """The starting thread: starting takes milliseconds, and some starts have to wait."""
        while True:
            with self._start_wanted:
                while not self._starts and not self._empty.is_set():
                    self._start_wanted.wait()
                if not self._starts:
                    return
                due, _, executor = self._starts[0]
                wait = due - time.monotonic()
                if wait > 0 and not executor.asked:
                    self._start_wanted.wait(wait)
                    continue
                heapq.heappop(self._starts)
            error = None if executor.asked else self._spawn(executor)
            self._call(partial(self._started, executor, error))

    def _spawn(self, executor: Executor) -> OSError | None:
        settings = self._settings
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        executor.raw = {out_read: RawLines("stdout"), err_read: RawLines("stderr")}
        channel = executor.child_end
        executor.memory_limit = settings.limits.memory
        confinement = executor.confinement = Confinement(
            settings.limits,
            f"{settings.instance}-{settings.function}-{executor.id}",
            lambda: self.kill(executor.id, "it took too much memory", asked=False),
        )
        try:
            executor.child = process.spawn(
                settings.command(channel.fileno()),
                env=executor_environment(settings.env, os.environ),
                cwd=settings.bundle,
                stdout=out_write,
                stderr=err_write,
                pass_fds=(channel.fileno(),),
                die_with_parent=True,
            )
            confinement.hold(executor.child.pid)
        except OSError as error:
            return error
        finally:
            os.close(out_write)
            os.close(err_write)
            channel.close()
        return None

    def _started(self, executor: Executor, error: OSError | None) -> None:
        """On the reading thread: listens to a new executor."""
        executor.begun = executor.child is not None
        executor.listening = executor.begun
        if executor.child is None:
            self._bury(executor, error)
            return
        self._selector.register(
            executor.channel.socket, selectors.EVENT_READ, lambda mask: self._talk(executor, mask)
        )
        for fd in executor.raw:
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, lambda _, fd=fd: self._read_raw(executor, fd))
        try:
            executor.pidfd = os.pidfd_open(executor.child.pid)
            self._selector.register(
                executor.pidfd, selectors.EVENT_READ, lambda _: self._bury(executor, None)
            )
        except (AttributeError, OSError):
            # No pidfd here: look from time to time.
            self._look(executor)
        if executor.kill_reason:
            self._kill(executor.id, executor.kill_reason)

    def _look(self, executor: Executor) -> None:
        if executor.child is not None and os.waitid(
            os.P_PID, executor.child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            self._bury(executor, None)
        else:
            self._after(_LOOK_S, lambda: self._look(executor))

    # -- the reading thread

    def _read_all(self) -> None:
        while not self._empty.is_set():
            wait = self._timers[0][0] - time.monotonic() if self._timers else None
            for key, mask in self._selector.select(wait if wait is None else max(0.0, wait)):
                key.data(mask)
            while self._calls:
                self._calls.popleft()()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
            if self._closing and not self._executors:
                self._empty.set()
        self._selector.close()
        self._waker.close()
        self._woken.close()

    def _call(self, action: Callable[[], None]) -> None:
        """Has the reading thread do something soon; from any thread."""
        self._calls.append(action)
        try:
            self._waker.send(b"\0")
        except BlockingIOError:
            # Enough wakes are on their way.
            return
        except OSError:
            # The pool is closed: nothing is left to be done.
            self._calls.clear()

    def _drain_wakes(self, mask: int) -> None:
        del mask
        self._woken.recv(_WAKES)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_ids), action))

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:
            # One callback's mistake must not make the pool deaf to all executors.
            _log.exception("a callback of the executor pool raised")

    def _watch(self, executor: Executor) -> None:
        """Writes what was kept once the channel takes more."""
        if executor.listening:
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(executor.channel.socket, events, lambda mask: self._talk(executor, mask))

    def _talk(self, executor: Executor, mask: int) -> None:
        if not executor.listening:
            # Buried by another event of the same turn.
            return
        if mask & selectors.EVENT_WRITE and executor.channel.write_on():
            self._selector.modify(
                executor.channel.socket, selectors.EVENT_READ, lambda mask: self._talk(executor, mask)
            )
        if mask & selectors.EVENT_READ:
            self._hear(executor)

    def _hear(self, executor: Executor) -> bool:
        """Takes what the channel holds now, at most one read; False when there was nothing."""
        try:
            data = executor.channel.socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        try:
            records = [item for item in executor.frames.feed(data) if self._is_for_owner(executor, item)]
        except (ValueError, msgspec.DecodeError, TypeError, LookupError) as error:
            # User code has the descriptor too and may write what it wants.
            self._kill(executor.id, f"it wrote rubbish to its channel: {error}", asked=False)
            records, data = [], b""
        if records:
            self._tell(self._on_records, executor.id, records)
        if not data:
            self._unlisten(executor)
        return bool(data)

    def _is_for_owner(self, executor: Executor, record: list[Any]) -> bool:
        """Checks a record's shape and keeps those that are for the pool."""
        kind = record[0]
        if _LENGTHS[kind] != len(record):
            raise ValueError(f"a record of kind {kind} with {len(record)} fields")
        if kind in _OF_RUNS:
            if type(record[1]) is not int:
                raise ValueError("a record without the id of a run")
            if kind in _ENDS:
                executor.runs.discard(record[1])
        elif kind == FromExecutor.READY:
            executor.ready = True
            self._after(_PROVEN_S, lambda: self._proven(executor))
            self._tell(self._on_ready, executor.id, 0 if executor.child is None else executor.child.pid)
            return False
        elif kind == FromExecutor.BROKEN:
            kind_name, message, traceback, code, retriable, _ = record[1]
            broken = Failure(kind_name, message, traceback, code, bool(retriable))
            executor.broken = self._settings.redact.of_failure(broken)
            return False
        return True

    def _read_raw(self, executor: Executor, fd: int) -> bool:
        """Takes what C code and child processes wrote; False when the pipe is empty or ended."""
        lines = executor.raw[fd]
        if lines.ended:
            return False
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            told = not lines.dropped
            texts = lines.feed(data, time.monotonic())
            if lines.dropped and told:
                self._after(_TELL_DROPPED_S, lambda: self._tell_dropped(executor, lines))
        else:
            self._selector.unregister(fd)
            texts = lines.end()
        self._tell_lines(executor, lines, texts)
        if not data:
            self._tell_dropped(executor, lines)
        return bool(data)

    def _tell_dropped(self, executor: Executor, lines: RawLines) -> None:
        """Says how many lines were dropped, unless a line after them has said so."""
        if lines.dropped:
            self._tell_lines(executor, lines, [FLOOD_OVER])

    def _tell_lines(self, executor: Executor, lines: RawLines, texts: list[str]) -> None:
        if texts:
            now_ms = time.time_ns() // 1_000_000 + self._clock_offset_ms
            log = int(FromExecutor.LOG)
            records: list[list[Any]] = [
                [log, None, 0, lines.source, "", "", text, [], now_ms, 0] for text in texts
            ]
            records[0][9], lines.dropped = lines.dropped, 0
            self._tell(self._on_records, executor.id, records)

    def _unlisten(self, executor: Executor) -> None:
        """The channel is over; the process should be too."""
        if executor.listening:
            executor.listening = False
            self._selector.unregister(executor.channel.socket)
            self._after(EOF_GRACE_S, lambda: self._kill(executor.id, "its channel was closed", asked=False))

    # -- ending; all of it on the reading thread

    def _interrupt(self, executor_id: int, run_id: int, grace_s: float) -> None:
        executor = self._executors.get(executor_id)
        if executor is None or run_id not in executor.runs:
            # It ended meanwhile.
            return
        self.send(executor_id, [[int(ToExecutor.INTERRUPT), run_id]])

        def check() -> None:
            if run_id in executor.runs:
                self._kill(executor_id, "a call that was to stop did not end in time")

        self._after(grace_s, check)

    def _stop(self, executor_id: int, grace_s: float) -> None:
        executor = self._executors.get(executor_id)
        if executor is None:
            return
        if executor.channel.post(encode_write([[int(ToExecutor.STOP)]])) is False:
            self._watch(executor)
        self._ask(executor)
        self._after(grace_s, lambda: self._kill(executor_id, "it did not stop within its grace"))

    def _kill(self, executor_id: int, reason: str, *, asked: bool = True) -> None:
        executor = self._executors.get(executor_id)
        if executor is None:
            return
        executor.kill_reason = executor.kill_reason or reason
        if asked:
            self._ask(executor)
        if executor.begun and executor.child is not None:
            _kill_group(executor.child.pid)

    def _ask(self, executor: Executor) -> None:
        """Notes that the owner wants it to end; one that was not started yet never will be."""
        with self._start_wanted:
            executor.asked = True
            self._start_wanted.notify()

    def _close(self, grace_s: float) -> None:
        self._closing = True
        for executor_id in list(self._executors):
            self._stop(executor_id, grace_s)

    def _proven(self, executor: Executor) -> None:
        if executor.id in self._executors:
            self._failures = 0

    def _bury(self, executor: Executor, error: OSError | None) -> None:
        """Hears what is left, ends what is left of the group, takes the exit code, tells the owner."""
        if executor.id not in self._executors:
            return
        code = -1
        if executor.child is not None:
            # The leader is a zombie until it is reaped, so its number cannot be another group's.
            _kill_group(executor.child.pid)
            while executor.listening and self._hear(executor):
                continue
            for fd in list(executor.raw):
                for _ in range(_LAST_READS):
                    if not self._read_raw(executor, fd):
                        break
            _, status, usage = os.wait4(executor.child.pid, 0)
            code = executor.child.returncode = os.waitstatus_to_exitcode(status)
            executor.peak_memory = usage.ru_maxrss * (1024 if sys.platform == "linux" else 1)
        if executor.confinement is not None:
            executor.out_of_memory = code == -signal.SIGKILL and executor.confinement.exceeded()
            executor.peak_memory = max(executor.peak_memory, executor.confinement.peak())
            executor.confinement.close()
        self._forget(executor)
        if executor.ready and executor.given:
            self._failures = 0
        elif not executor.asked:
            self._failures += 1
        if error is not None:
            executor.broken = Failure(type(error).__name__, str(error), code="FAILED_PRECONDITION")
        self._tell(self._on_exit, executor.exit(code))

    def _forget(self, executor: Executor) -> None:
        if executor.listening:
            executor.listening = False
            self._selector.unregister(executor.channel.socket)
        executor.channel.close()
        executor.child_end.close()
        for fd, lines in executor.raw.items():
            if not lines.ended:
                self._tell_lines(executor, lines, lines.end())
                if executor.begun:
                    self._selector.unregister(fd)
            os.close(fd)
        if executor.pidfd >= 0:
            self._selector.unregister(executor.pidfd)
            os.close(executor.pidfd)
        del self._executors[executor.id]


def pause_before_start(failures: int) -> float:
    """Seconds to wait before a start after so many executors in a row that broke before they were of use."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (min(failures, 16) - 1)) if failures else 0.0


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # Nothing but zombies is left of it.
        return

"""What leaves an executor: records that pile up share a write, and whoever has something to say writes it.

Nothing waits for company: a record posted while the channel is quiet is written at once by the thread that
posted it, without a handover. While writes follow each other closely, records gather and leave together, by a
thread of their own as soon as it gets the interpreter, or by the next poster. No poster ever waits.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from typing import Any, Final, NoReturn, Protocol

from pelton.protocol.frames import FromExecutor, encode_write

QUIET_NS: Final = 300_000
"""So long after a write (in ns) the next record is written by its poster; a write costs about 10 us."""

CHANNEL_LOST_EXIT: Final = 70
"""Exit code when the channel was closed under us, by user code or by the end of the coordinator."""

_MAX_RECORDS: Final = 512
_MAX_WRITE_BYTES: Final = 1024 * 1024
# A flood of log lines leaves in writes of so many, so far apart: 50,000 lines a second, outcomes between.
_LOGS_PER_WRITE: Final = 256
_LOG_PAUSE_S: Final = 0.005
# So many log lines in so many ns are written by their poster, each at once.
_LOG_WRITES: Final = 20
_LOG_WINDOW_NS: Final = 10_000_000
_CHUNKS: Final = int(FromExecutor.CHUNKS)
_OUTCOME: Final = int(FromExecutor.OUTCOME)

Record = list[Any]


class LogSource(Protocol):
    """Where log records wait."""

    def take(self, limit: int) -> list[Record]:
        """Removes and returns up to `limit` LOG records, oldest first."""

    def __len__(self) -> int:
        """How many wait."""


class Outbox:
    """Collects records and writes them to the coordinator.

    Args:
        channel: the socket; reading it is somebody else's business.
        logs: log records; they leave before records that were posted after them, if they are not too many.
    """

    def __init__(self, channel: socket.socket, logs: LogSource) -> None:
        self._channel = channel
        self._inode = os.fstat(channel.fileno()).st_ino
        self._logs = logs
        self._records: deque[Record] = deque()
        self._writing = threading.Lock()
        self._rest: memoryview | None = None
        self._last_write_ns = 0
        self._log_window_ns = 0
        self._log_writes = 0
        self._signalled = False
        self._wake = threading.Lock()
        self._wake.acquire()

    def start(self) -> None:
        """Starts the writing thread."""
        threading.Thread(target=self._write_on, name="pelton-writer", daemon=True).start()

    def post(self, record: Record) -> None:
        """Adds a record; it leaves with the next write. Call `flush`, `nudge` or `signal` afterwards."""
        self._records.append(record)

    def nudge(self) -> None:
        """Writes now if the channel was quiet, else leaves what was posted to the writing thread."""
        if time.monotonic_ns() - self._last_write_ns >= QUIET_NS:
            self.flush()
        else:
            self.signal()

    def signal(self) -> None:
        """Makes the writing thread write as soon as it gets the interpreter."""
        if not self._signalled:
            self._signalled = True
            try:
                self._wake.release()
            except RuntimeError:
                # Two posters at once: the other one has released it.
                return

    def flush(self) -> None:
        """Writes what was posted, as far as the channel takes it now; the writing thread writes the rest.

        When another thread is writing, it is left to that one. Never blocks.
        """
        while self._records:
            if not self._writing.acquire(blocking=False):
                return
            try:
                if not self._write():
                    self.signal()
                    return
            finally:
                self._writing.release()

    def flush_logs(self) -> None:
        """Writes waiting log records now unless there were too many of late; else the writing thread does.

        So the last lines before a crash have left, and a flood still shares its writes.
        """
        now = time.monotonic_ns()
        if now - self._log_window_ns >= _LOG_WINDOW_NS:
            self._log_window_ns, self._log_writes = now, 0
        self._log_writes += 1
        if self._log_writes > _LOG_WRITES or not self._writing.acquire(blocking=False):
            self.signal()
            return
        try:
            written = self._write()
        finally:
            self._writing.release()
        if not written or self._records or len(self._logs):
            self.signal()

    def drain(self) -> None:
        """Writes everything, waiting for the channel as long as it takes; for the end of the process."""
        with self._writing:
            while True:
                self._write_patiently()
                if not self._records and not len(self._logs):
                    return

    def _write_on(self) -> None:
        """The writing thread: writes what posters left behind."""
        while True:
            self._wake.acquire()
            self._signalled = False
            with self._writing:
                self._write_patiently()
            if self._records:
                self.signal()
            elif len(self._logs):
                time.sleep(_LOG_PAUSE_S)
                self.signal()

    def _write_patiently(self) -> None:
        poller = select.poll()
        while not self._write():
            if self._channel.fileno() < 0:
                _channel_lost()
            poller.register(self._channel.fileno(), select.POLLOUT)
            poller.poll(1000)

    def _write(self) -> bool:
        """Writes some log records and all others; False when the channel is full. Needs `_writing`."""
        if self._rest is not None and not self._send(self._rest):
            return False
        batch = self._logs.take(_LOGS_PER_WRITE)
        while self._take(batch):
            if not self._send(memoryview(encode_write(batch))):
                return False
            batch = []
        return True

    def _take(self, batch: list[Record]) -> bool:
        """Adds records for a write to the batch; chunks of a run share a record. False if it stays empty."""
        records = self._records
        streams: dict[int, Record] = {}
        size = 0
        for _ in range(_MAX_RECORDS):
            try:
                record = records.popleft()
            except IndexError:
                break
            kind = record[0]
            if kind == _CHUNKS:
                items = record[2]
                size += len(items[0])
                earlier = streams.setdefault(record[1], record)
                if earlier is not record:
                    earlier[2] += items
                    continue
            elif kind == _OUTCOME and record[2] is not None:
                size += len(record[2])
            batch.append(record)
            if size >= _MAX_WRITE_BYTES:
                break
        return bool(batch)

    def _send(self, data: memoryview) -> bool:
        """Sends what the channel takes; keeps the rest and returns False when it is full."""
        try:
            # User code may have closed the descriptor, and its number may be a file of its own by now.
            if os.fstat(self._channel.fileno()).st_ino != self._inode:
                _channel_lost()
            while data:
                data = data[self._channel.send(data, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            self._rest = data
            return False
        except OSError:
            _channel_lost()
        self._rest = None
        self._last_write_ns = time.monotonic_ns()
        return True


def _channel_lost() -> NoReturn:
    """Ends the process: nothing it computes can be told to anybody any more."""
    try:
        os.write(2, b"pelton: the channel to the coordinator is closed; this executor ends\n")
    finally:
        os._exit(CHANNEL_LOST_EXIT)

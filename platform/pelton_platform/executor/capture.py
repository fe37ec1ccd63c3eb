"""What user code prints and logs: caught line by line with the call it belongs to, bounded, never blocking.

`print`, `sys.stdout`, `sys.stderr` and `logging` are caught here. What C code and child processes write to
descriptors 1 and 2 goes through pipes to the coordinator's side, which also sees the last words of a crash.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pelton.protocol.frames import FLOOD_OVER, FromExecutor
from pelton.runtime.context import Attempt, current_attempt
from pelton.runtime.failures import bounded

MAX_LINE_BYTES: Final = 16 * 1024
"""Longer lines are cut into lines of this length (prints), or lose their middle (log records)."""

MAX_WAITING_LINES: Final = 10_000
MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
"""What waits for the channel is bounded by both; what comes on top is dropped and counted."""

_MAX_FIELDS: Final = 64
_MAX_FIELD_BYTES: Final = 4 * 1024
_LOG: Final = int(FromExecutor.LOG)
_OVERHEAD: Final = 64


class LogQueue:
    """Log records that wait for the channel.

    Args:
        now_ms: broker time.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._wake: Callable[[], None] | None = None
        self._records: deque[list[Any]] = deque()
        self._bytes = 0
        self._dropped = 0
        # Reentrant: a signal handler or a finalizer may print while this very thread holds it.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """How many records wait."""
        return len(self._records)

    def add(
        self,
        source: str,
        text: str,
        level: str = "",
        logger: str = "",
        fields: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Adds a line of the running attempt, or drops and counts it when too much waits."""
        attempt = current_attempt.get()
        call_id, number = (None, 0) if attempt is None else (attempt.call_id, attempt.attempt)
        pairs = [list(pair) for pair in fields]
        record = [_LOG, call_id, number, source, level, logger, text, pairs, self._now_ms(), 0]
        size = _OVERHEAD + len(text) + sum(len(key) + len(value) for key, value in pairs)
        with self._lock:
            if len(self._records) >= MAX_WAITING_LINES or self._bytes + size > MAX_WAITING_BYTES:
                self._dropped += 1
                return
            record[9], self._dropped = self._dropped, 0
            first = not self._records
            self._records.append(record)
            self._bytes += size
        if first and self._wake is not None:
            self._wake()

    def connect(self, wake: Callable[[], None]) -> None:
        """Names who is called after a record was added to an empty queue; it must not block."""
        self._wake = wake

    def take(self, limit: int) -> list[list[Any]]:
        """Removes and returns up to `limit` records, oldest first; the last one says what was dropped."""
        if not self._records:
            return []
        taken: list[list[Any]] = []
        with self._lock:
            while self._records and len(taken) < limit:
                taken.append(self._records.popleft())
            if self._records:
                self._bytes -= sum(_size(record) for record in taken)
                return taken
            self._bytes = 0
            dropped, self._dropped = self._dropped, 0
        if dropped:
            source = taken[-1][3]
            taken.append([_LOG, None, 0, source, "", "", FLOOD_OVER, [], self._now_ms(), dropped])
        return taken


def _size(record: list[Any]) -> int:
    return _OVERHEAD + len(record[6]) + sum(len(key) + len(value) for key, value in record[7])


class CapturedStream(io.TextIOBase):
    """Stands in for `sys.stdout` and `sys.stderr`: a line becomes a log record of the attempt that wrote it.

    Args:
        source: "stdout" or "stderr".
        fd: the descriptor that `fileno()` names, for code that hands it to child processes.
        queue: where lines go.
    """

    def __init__(self, source: str, fd: int, queue: LogQueue) -> None:
        self._source = source
        self._fd = fd
        self._queue = queue
        self._parts: dict[int, str] = {}
        self.buffer = _CapturedBytes(self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Always UTF-8."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """What is done with text that is no UTF-8."""
        return "backslashreplace"

    @property
    def name(self) -> str:
        """As of the stream it stands in for."""
        return f"<{self._source}>"

    def fileno(self) -> int:
        """The process's own descriptor; what is written there is caught without its call."""
        return self._fd

    def writable(self) -> bool:
        """It is."""
        return True

    def isatty(self) -> bool:
        """Never a terminal."""
        return False

    def write(self, text: str) -> int:
        """Takes text; complete lines become records, the rest waits for its line's end."""
        if type(text) is not str:
            if not isinstance(text, str):
                raise TypeError(f"write() argument must be str, not {type(text).__name__}")
            text = str(text)
        attempt = current_attempt.get()
        key = id(attempt)
        waiting = self._parts.pop(key, "")
        *lines, rest = (waiting + text).split("\n") if waiting else text.split("\n")
        for line in lines:
            self._emit(line)
        while len(rest) > MAX_LINE_BYTES:
            self._emit(rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
        if rest and attempt is not None and attempt.over:
            # Nobody comes back for the rest of a line of an attempt that is over.
            self._emit(rest)
        elif rest:
            self._parts[key] = rest
        return len(text)

    def reconfigure(self, **settings: Any) -> None:
        """Accepted and without effect, for programs that set an encoding: lines are always UTF-8."""

    def end_attempt(self, attempt: Attempt) -> None:
        """Gives out the unfinished line of an attempt that is over; called in its context."""
        if self._parts:
            rest = self._parts.pop(id(attempt), "")
            if rest:
                self._emit(rest)

    def end(self) -> None:
        """Gives out the unfinished line that belongs to no attempt, at the end of the process."""
        rest = self._parts.pop(id(None), "")
        if rest:
            self._emit(rest)

    def _emit(self, line: str) -> None:
        if len(line) * 4 <= MAX_LINE_BYTES and line.isascii():
            self._queue.add(self._source, line)
            return
        data = line.encode("utf-8", "backslashreplace")
        for start in range(0, len(data) or 1, MAX_LINE_BYTES):
            self._queue.add(self._source, data[start : start + MAX_LINE_BYTES].decode("utf-8", "ignore"))


class _CapturedBytes(io.RawIOBase):
    """`sys.stdout.buffer`: bytes are read as UTF-8 and join the text."""

    def __init__(self, text: CapturedStream) -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._text.write(bytes(view).decode("utf-8", "backslashreplace"))
        return len(view)


class CapturingHandler(logging.Handler):
    """The root handler of `logging`: records keep level, logger, fields and traceback."""

    def __init__(self, queue: LogQueue) -> None:
        super().__init__()
        self._queue = queue
        self._lines = logging.Formatter("%(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        """Adds the record; a message that cannot be formatted is told on stderr, as Python does."""
        try:
            text = bounded(self._lines.format(record), MAX_LINE_BYTES)
            self._queue.add("log", text, record.levelname, record.name, _fields(record))
        except Exception:
            self.handleError(record)


def _fields(record: logging.LogRecord) -> list[tuple[str, str]]:
    fields = getattr(record, "pelton_fields", None)
    if not isinstance(fields, Mapping):
        return []
    return [
        (bounded(str(key), _MAX_FIELD_BYTES), bounded(str(value), _MAX_FIELD_BYTES))
        for key, value in list(fields.items())[:_MAX_FIELDS]
    ]


class Capture:
    """All of it, put in place.

    Args:
        queue: where lines go.
        level: name or number of the level of the root logger, until user code sets another.
    """

    def __init__(self, queue: LogQueue, level: str | int = logging.INFO) -> None:
        self._streams = (CapturedStream("stdout", 1, queue), CapturedStream("stderr", 2, queue))
        self._handler = CapturingHandler(queue)
        self._level = level

    def install(self) -> None:
        """Takes the place of the standard streams and of the root handlers."""
        sys.stdout, sys.stderr = self._streams
        root = logging.getLogger()
        root.handlers[:] = [self._handler]
        root.setLevel(self._level)

    def end_attempt(self, attempt: Attempt) -> None:
        """Gives out unfinished lines; called in the context of the attempt."""
        attempt.over = True
        for stream in self._streams:
            stream.end_attempt(attempt)

    def end(self) -> None:
        """Gives out unfinished lines that belong to no attempt."""
        for stream in self._streams:
            stream.end()

    def leave(self) -> None:
        """Back to the plain descriptors: for a forked child, whose queue nobody empties."""
        root = logging.getLogger()
        if self._handler in root.handlers:
            root.handlers[:] = [logging.StreamHandler(sys.__stderr__)]
        for plain in (sys.__stdout__, sys.__stderr__):
            if plain is not None and isinstance(plain, io.TextIOWrapper):
                plain.reconfigure(line_buffering=True)
        if sys.stdout is self._streams[0] and sys.__stdout__ is not None:
            sys.stdout = sys.__stdout__
        if sys.stderr is self._streams[1] and sys.__stderr__ is not None:
            sys.stderr = sys.__stderr__

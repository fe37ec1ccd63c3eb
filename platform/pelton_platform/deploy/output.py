"""The output of a plain program: kept in a file of bounded size, and sent to the log topic line by line."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

MAX_LINE_BYTES = 16 * 1024
MAX_WAITING_LINES = 10_000
MAX_FILE_BYTES = 16 * 1024 * 1024


class Line(NamedTuple):
    """A line of output.

    Attributes:
        source: `stdout` or `stderr`.
        text: Without its end.
        dropped: Lines that were dropped just before it.
    """

    source: str
    text: str
    dropped: int


class LineQueue:
    """Lines between the threads that read them and the one that sends them; never makes a reader wait.

    When it is full the newest line is dropped and counted.
    """

    def __init__(self, limit: int = MAX_WAITING_LINES) -> None:
        self._limit = limit
        self._lines: deque[Line] = deque()
        self._changed = threading.Condition()
        self._dropped = 0
        self._closed = False

    def put(self, source: str, text: str) -> None:
        """Add a line, or count it as dropped."""
        with self._changed:
            if len(self._lines) >= self._limit:
                self._dropped += 1
                return
            self._lines.append(Line(source, text, self._dropped))
            self._dropped = 0
            self._changed.notify()

    def close(self) -> None:
        """No more lines come."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> list[Line]:
        """Wait for lines and return all there are; an empty list means that no more come."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            lines = list(self._lines)
            self._lines.clear()
            return lines


class BoundedFile:
    """A file that is kept below a size: when it is full it becomes `NAME.1`, over the one before."""

    def __init__(self, path: Path, limit: int = MAX_FILE_BYTES) -> None:
        self._path = path
        self._limit = limit
        self._lock = threading.Lock()
        self._file = path.open("ab")
        self._size = path.stat().st_size

    def write(self, data: bytes) -> None:
        """Append data as a whole."""
        with self._lock:
            if self._size + len(data) > self._limit and self._size:
                self._file.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._file = self._path.open("ab")
                self._size = 0
            self._file.write(data)
            self._file.flush()
            self._size += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def pump(
    stream: IO[bytes],
    source: str,
    keep: Callable[[bytes], object],
    lines: LineQueue,
    redact: Callable[[bytes], bytes] = bytes,
) -> None:
    """Read a stream to its end: every byte is kept, every line put into the queue, long ones in pieces.

    Args:
        stream: What is read.
        source: `stdout` or `stderr`.
        keep: Gets all of it.
        lines: Gets it line by line.
        redact: Takes out what must not be written down.
    """
    while line := stream.readline(MAX_LINE_BYTES):
        data = redact(line)
        keep(data)
        lines.put(source, data.decode("utf-8", "replace").rstrip("\r\n"))

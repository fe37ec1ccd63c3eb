"""How lines are caught: cut, bounded, counted, each with its attempt."""

from __future__ import annotations

import contextvars
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pelton.core.call import mint_call_id
from pelton.protocol.frames import FLOOD_OVER
from pelton.runtime.context import Attempt, current_attempt
from pelton_platform.executor.capture import (
    MAX_LINE_BYTES,
    MAX_WAITING_BYTES,
    MAX_WAITING_LINES,
    Capture,
    CapturedStream,
    LogQueue,
)

CALL_ID = mint_call_id(1_700_000_000_000, 5, bytes(range(8)))


@pytest.fixture
def queue() -> LogQueue:
    """A queue at a fixed time."""
    return LogQueue(lambda: 1234)


@pytest.fixture
def stream(queue: LogQueue) -> CapturedStream:
    """What stands in for stdout."""
    return CapturedStream("stdout", 1, queue)


def texts(queue: LogQueue) -> list[str]:
    """Takes all lines."""
    return [record[6] for record in queue.take(1_000_000)]


def within(attempt: Attempt, action: Callable[[], Any]) -> None:
    """Runs in the context of an attempt."""

    def inside() -> None:
        current_attempt.set(attempt)
        action()

    contextvars.copy_context().run(inside)


def new_attempt(number: int = 1) -> Attempt:
    """An attempt."""
    return Attempt(CALL_ID, number, 1, "f", 0, "i")


def test_a_line_is_a_record_with_source_and_time(queue: LogQueue, stream: CapturedStream) -> None:
    """Positions are those of the LOG frame."""
    within(new_attempt(3), lambda: print("hello", "world", file=stream))
    assert queue.take(10) == [[5, CALL_ID, 3, "stdout", "", "", "hello world", [], 1234, 0]]


def test_lines_are_put_together_and_empty_ones_kept(queue: LogQueue, stream: CapturedStream) -> None:
    """Writes are not lines."""
    for text in ("a", "b\n", "\n", "c\nd\ne"):
        assert stream.write(text) == len(text)
    assert texts(queue) == ["ab", "", "c", "d"]
    stream.end()
    assert texts(queue) == ["e"]


def test_attempts_have_lines_of_their_own(queue: LogQueue, stream: CapturedStream) -> None:
    """An unfinished line does not swallow another attempt's, and comes out when its attempt ends."""
    one, two = new_attempt(1), new_attempt(2)
    within(one, lambda: stream.write("one"))
    within(two, lambda: stream.write("two"))
    within(one, lambda: stream.write(" more\n"))
    within(two, lambda: stream.end_attempt(two))
    assert [(record[2], record[6]) for record in queue.take(10)] == [(1, "one more"), (2, "two")]


def test_what_an_attempt_left_behind_is_not_kept_for_ever(queue: LogQueue, stream: CapturedStream) -> None:
    """A task that outlives its attempt prints without anybody to end its last line."""
    late = new_attempt()
    late.over = True
    within(late, lambda: stream.write("late"))
    assert texts(queue) == ["late"]


@pytest.mark.parametrize("text", ["x" * 40_000, "ü" * 40_000, "x" * MAX_LINE_BYTES, "\udcff" * 10_000])
def test_long_lines_are_cut_without_loss(queue: LogQueue, stream: CapturedStream, text: str) -> None:
    """Pieces are at most 16 KiB of UTF-8 and together they are the line."""
    stream.write(text + "\n")
    pieces = texts(queue)
    assert all(len(piece.encode()) <= MAX_LINE_BYTES for piece in pieces)
    expected = text.encode("utf-8", "backslashreplace").decode()
    assert "".join(pieces) == expected


def test_a_line_without_end_does_not_grow_in_memory(queue: LogQueue, stream: CapturedStream) -> None:
    """It is cut while it is being written."""
    for _ in range(100):
        stream.write("x" * 1000)
    assert len(queue) >= 5


def test_too_many_lines_are_dropped_and_counted_on_the_next_one(queue: LogQueue) -> None:
    """The bound holds, and the count is told once."""
    for number in range(MAX_WAITING_LINES + 25):
        queue.add("stdout", str(number))
    assert len(queue) == MAX_WAITING_LINES
    queue.take(1)
    queue.add("stdout", "next")
    counts = [record[9] for record in queue.take(MAX_WAITING_LINES)]
    assert counts[-1] == sum(counts) == 25


def test_too_many_lines_are_counted_also_when_none_follows(queue: LogQueue) -> None:
    """Who takes the last line is told how many are missing behind it."""
    for number in range(MAX_WAITING_LINES + 25):
        queue.add("stderr", str(number))
    *lines, last = queue.take(MAX_WAITING_LINES)
    assert lines[-1][6] == str(MAX_WAITING_LINES - 1)
    assert (last[3], last[6], last[9]) == ("stderr", FLOOD_OVER, 25)
    queue.add("stdout", "after")
    assert [record[9] for record in queue.take(10)] == [0]


def test_too_many_bytes_are_dropped_too(queue: LogQueue) -> None:
    """Long lines reach the other bound first, and taking them makes room again."""
    line = "x" * MAX_LINE_BYTES
    for _ in range(2000):
        queue.add("stdout", line)
    kept = len(queue)
    assert kept * MAX_LINE_BYTES <= MAX_WAITING_BYTES
    queue.take(kept // 2)
    queue.add("stdout", line)
    assert queue.take(kept)[-1][9] == 2000 - kept


def test_only_the_first_line_of_an_empty_queue_wakes(queue: LogQueue) -> None:
    """A flood does not wake the writer a million times."""
    wakes: list[int] = []
    queue.connect(lambda: wakes.append(1))
    for _ in range(3):
        queue.add("stdout", "x")
    queue.take(3)
    queue.add("stdout", "x")
    assert len(wakes) == 2


def test_the_stream_is_what_programs_expect_of_stdout(queue: LogQueue, stream: CapturedStream) -> None:
    """Bytes, attributes, str subclasses; a wrong type is Python's TypeError."""

    class Text(str):
        pass

    stream.buffer.write("bytes é\n".encode())
    stream.write(Text("text\n"))
    stream.writelines(["a\n", "b\n"])
    stream.flush()
    stream.reconfigure(encoding="latin-1")
    assert texts(queue) == ["bytes é", "text", "a", "b"]
    assert (stream.fileno(), stream.isatty(), stream.writable(), stream.encoding) == (1, False, True, "utf-8")
    with pytest.raises(TypeError, match="must be str"):
        stream.write(b"x")  # type: ignore[arg-type]


@pytest.fixture
def capture(queue: LogQueue) -> Iterator[Capture]:
    """Capture in place of this process's streams and root handlers, and back afterwards."""
    root = logging.getLogger()
    before = (sys.stdout, sys.stderr, list(root.handlers), root.level)
    capture = Capture(queue)
    capture.install()
    try:
        yield capture
    finally:
        sys.stdout, sys.stderr = before[0], before[1]
        root.handlers[:] = before[2]
        root.setLevel(before[3])


def test_log_records_keep_level_logger_fields_and_traceback(queue: LogQueue, capture: Capture) -> None:
    """Structured fields travel as text pairs."""
    log = logging.getLogger("shop")
    log.info("sold %d", 3, extra={"pelton_fields": {"colour": "red", "n": 2}})
    log.debug("not told")
    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("failed")
    first, second = queue.take(10)
    assert first[3:8] == ["log", "INFO", "shop", "sold 3", [["colour", "red"], ["n", "2"]]]
    assert second[4] == "ERROR"
    assert "ValueError: bad" in second[6]


def test_a_print_in_the_middle_of_a_print_does_not_deadlock(queue: LogQueue) -> None:
    """Finalizers and signal handlers print at any moment, also while their own thread adds a line."""
    with queue._lock:
        queue.add("stdout", "from a finalizer")
    assert texts(queue) == ["from a finalizer"]

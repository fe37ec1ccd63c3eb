"""How the output of plain programs is kept and handed on without ever making the program wait."""

from __future__ import annotations

import io
from pathlib import Path

from pelton_platform.deploy.output import MAX_LINE_BYTES, BoundedFile, Line, LineQueue, pump


def test_deploy_output_lines_are_kept_and_queued() -> None:
    """Every byte is kept as it was; lines come without their ends, bytes that are no text as marks."""
    kept: list[bytes] = []
    lines = LineQueue()
    data = b"one\r\ntwo\n\xff three\nno end"
    pump(io.BytesIO(data), "stdout", kept.append, lines)
    lines.close()
    assert b"".join(kept) == data
    assert lines.take() == [
        Line("stdout", "one", 0),
        Line("stdout", "two", 0),
        Line("stdout", "� three", 0),
        Line("stdout", "no end", 0),
    ]
    assert lines.take() == []


def test_deploy_output_endless_line_comes_in_pieces() -> None:
    """A line without an end cannot fill memory."""
    lines = LineQueue()
    pump(io.BytesIO(b"x" * (2 * MAX_LINE_BYTES + 1)), "stdout", lambda _: None, lines)
    lines.close()
    assert [len(line.text) for line in lines.take()] == [MAX_LINE_BYTES, MAX_LINE_BYTES, 1]


def test_deploy_output_full_queue_drops_and_counts() -> None:
    """When nobody takes lines the newest are dropped, and the next one says how many."""
    lines = LineQueue(limit=2)
    for number in range(5):
        lines.put("stdout", str(number))
    assert [line.text for line in lines.take()] == ["0", "1"]
    lines.put("stderr", "after")
    assert lines.take() == [Line("stderr", "after", 3)]


def test_deploy_output_file_stays_below_its_limit(tmp_path: Path) -> None:
    """A full file becomes the old one, and what was there before that is gone."""
    path = tmp_path / "out.log"
    file = BoundedFile(path, limit=10)
    for number in range(5):
        file.write(b"line %d\n" % number)
    file.close()
    assert path.read_bytes() == b"line 4\n"
    assert (tmp_path / "out.log.1").read_bytes() == b"line 3\n"

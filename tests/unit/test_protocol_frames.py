"""Frames: cut anywhere, many in one piece, and refused when they are none."""

from __future__ import annotations

from typing import Any

import pytest

from pelton.protocol.frames import MAX_WRITE_BYTES, FrameReader, FromExecutor, ToExecutor, encode_write

RECORDS: list[list[Any]] = [[ToExecutor.RUN, 7, b"x" * 300, {"k": "v"}], [ToExecutor.STOP]]


def test_records_survive_any_cut() -> None:
    """Bytes arrive in pieces of any size: the same records come out, in order, once."""
    stream = encode_write(RECORDS) + encode_write([[FromExecutor.LOG, None]])
    for size in (1, 2, 3, 5, 100, len(stream)):
        reader = FrameReader()
        found = []
        for start in range(0, len(stream), size):
            found += list(reader.feed(stream[start : start + size]))
        assert found == [[1, 7, b"x" * 300, {"k": "v"}], [4], [5, None]]


def test_a_reader_that_stops_half_way_loses_no_later_write() -> None:
    """Taking only the first record of a write leaves the reader ready for the next write."""
    reader = FrameReader()
    assert next(reader.feed(encode_write(RECORDS)))[0] == ToExecutor.RUN
    assert list(reader.feed(encode_write([[4]]))) == [[4]]


def test_a_length_over_the_limit_is_refused_before_it_is_waited_for() -> None:
    """A peer that is broken is noticed by its length prefix."""
    with pytest.raises(ValueError, match="over the limit"):
        list(FrameReader().feed((MAX_WRITE_BYTES + 1).to_bytes(4, "little")))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x01",
        b"\x91\x01",
        b"\x91\x90",
        b"\x91\x91\xa1x",
        b"\x90\x01",
        b"\x91" * 5000 + b"\x01",
    ],
)
def test_other_bytes_are_no_frames(body: bytes) -> None:
    """Bytes that are no array of records are a ValueError, whatever they are, also nested without end."""
    with pytest.raises(ValueError):
        list(FrameReader().feed(len(body).to_bytes(4, "little") + body))

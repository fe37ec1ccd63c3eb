"""What the parent's side decides: pauses before starts, environments, raw lines, sizes of writes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pelton.protocol.frames import FrameReader, ToExecutor
from pelton_platform.coordinator.executor_process import (
    MAX_RAW_LINE_BYTES,
    MAX_RAW_LINES_PER_S,
    Channel,
    ExecutorSettings,
    RawLines,
    executor_environment,
    writes,
)
from pelton_platform.coordinator.executors import pause_before_start
from pelton_platform.executor.reader import Hello


def test_pauses_double_up_to_their_limit() -> None:
    """No pause for healthy code, half a minute for code that is broken for long."""
    assert [pause_before_start(n) for n in (0, 1, 2, 3, 4)] == [0.0, 0.25, 0.5, 1.0, 2.0]
    assert pause_before_start(8) == pause_before_start(10_000) == 30.0


def test_the_environment_is_a_short_list_and_what_is_given() -> None:
    """Keys and the way to Kafka never pass, not even when given."""
    inherited = {"PATH": "/bin", "HOME": "/h", "TZ": "UTC", "AWS_SECRET": "x", "PELTON_KEY_FILE": "k"}
    given = {
        "A": "1",
        "HOME": "/other",
        "PELTON_KAFKA_SSL": "x",
        "PELTON_KEY": "x",
        "PELTON_BOOTSTRAP_SERVERS": "x",
    }
    assert executor_environment(given, inherited) == {"PATH": "/bin", "HOME": "/other", "TZ": "UTC", "A": "1"}


def test_hello_of_the_parent_is_what_the_executor_reads() -> None:
    """Both sides name the settings alike; an isolated executor has one slot."""
    settings = ExecutorSettings(
        namespace="n",
        function="f",
        kind="sync",
        module="m",
        qualname="q",
        bundle=Path("/b"),
        slots=8,
        container="c",
        instance="i",
        version=3,
        chunk_credit=9,
        log_level="DEBUG",
    )
    assert Hello.read(settings.hello(isolated=False) | {"unknown": 1}) == Hello(
        "n", "f", "sync", "m", "q", "/b", 8, "c", "i", 3, 9, "DEBUG"
    )
    assert Hello.read(settings.hello(isolated=True)).slots == 1


def test_raw_lines_are_put_together_and_cut() -> None:
    """Whatever the reads are, lines are lines; too long ones become several."""
    lines = RawLines("stdout")
    assert lines.feed(b"a", 0.0) == []
    assert lines.feed(b"b\nc\n\nd", 0.0) == ["ab", "c", ""]
    assert lines.end() == ["d"]
    long = RawLines("stdout")
    pieces = long.feed(b"x" * 40_000 + b"\n", 0.0)
    assert "".join(pieces) == "x" * 40_000
    assert max(len(piece) for piece in pieces) == MAX_RAW_LINE_BYTES
    endless = RawLines("stderr")
    assert sum(len(piece) for _ in range(10) for piece in endless.feed(b"y" * 10_000, 0.0)) > 80_000


def test_raw_lines_above_the_rate_are_dropped_and_counted() -> None:
    """The next second has room again."""
    lines = RawLines("stdout")
    assert len(lines.feed(b"x\n" * (MAX_RAW_LINES_PER_S + 7), 10.0)) == MAX_RAW_LINES_PER_S
    assert lines.feed(b"x\n", 10.5) == []
    assert lines.dropped == 8
    assert lines.feed(b"x\n", 11.0) == ["x"]


def test_last_words_are_the_end_of_it() -> None:
    """Bytes that are no UTF-8 become visible."""
    lines = RawLines("stderr")
    lines.feed(b"x" * 10_000 + b"\nFatal \xff", 0.0)
    assert lines.last_words().endswith("Fatal \\xff")
    assert len(lines.last_words()) < 5000


def test_large_runs_are_spread_over_writes() -> None:
    """No write comes near the limit of a frame; order stays."""
    records = [[int(ToExecutor.RUN), n, b"id", 1, 1, 0, b"x" * 900_000] for n in range(20)]
    frames = writes(records)
    assert max(map(len, frames)) < 6 * 1024 * 1024
    reader = FrameReader()
    assert [record[1] for frame in frames for record in reader.feed(frame)] == list(range(20))


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_channel_keeps_what_is_not_taken(size: int) -> None:
    """Everything arrives in order, though nobody reads while it is posted; afterwards the channel is over."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    sent = [bytes([n]) * size for n in range(50)]
    whole = [channel.post(data) for data in sent]
    assert (False in whole) == (size > 1)
    received = b""
    while len(received) < 50 * size:
        received += theirs.recv(1 << 20)
        channel.write_on()
    assert received == b"".join(sent)
    theirs.close()
    assert channel.post(b"x") is None
    channel.close()
    assert channel.post(b"x") is None

"""How records leave an executor: at once when quiet, together when they pile up, in order, never blocking."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pelton.protocol.frames import FrameReader, FromExecutor
from pelton_platform.executor.outbox import Outbox

CHUNKS, OUTCOME, LOG = int(FromExecutor.CHUNKS), int(FromExecutor.OUTCOME), int(FromExecutor.LOG)


class Logs:
    """Log records that wait."""

    def __init__(self) -> None:
        self.waiting: list[list[Any]] = []

    def take(self, limit: int) -> list[list[Any]]:
        """Removes and returns up to `limit`."""
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return taken

    def __len__(self) -> int:
        return len(self.waiting)


class Peer:
    """The coordinator's end."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.ours.settimeout(10)
        self.logs = Logs()
        self.outbox = Outbox(self.theirs, self.logs)
        self.frames = FrameReader()

    def writes(self) -> list[list[list[Any]]]:
        """What is there now, write by write."""
        self.ours.setblocking(False)
        data = b""
        try:
            while piece := self.ours.recv(1 << 20):
                data += piece
        except BlockingIOError:
            pass
        self.ours.settimeout(10)
        found = []
        while data:
            length = 4 + int.from_bytes(data[:4], "little")
            found.append(list(FrameReader().feed(data[:length])))
            data = data[length:]
        return found

    def read(self, count: int) -> list[list[Any]]:
        """Waits for so many records."""
        found: list[list[Any]] = []
        while len(found) < count:
            found.extend(self.frames.feed(self.ours.recv(1 << 20)))
        return found


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A channel without a writing thread."""
    peer = Peer()
    yield peer
    peer.ours.close()
    peer.theirs.close()


def outcome(run: int, value: bytes = b"\xc0") -> list[Any]:
    """An OUTCOME record."""
    return [OUTCOME, run, value, None, 0]


def test_a_quiet_channel_is_written_by_the_poster(peer: Peer) -> None:
    """No other thread is needed for the first record."""
    peer.outbox.post(outcome(1))
    peer.outbox.nudge()
    assert peer.writes() == [[outcome(1)]]


def test_records_that_pile_up_share_a_write(peer: Peer) -> None:
    """Right after a write nudges leave records for the writing thread, which writes them together."""
    peer.outbox.post(outcome(0))
    peer.outbox.flush()
    for run in range(1, 101):
        peer.outbox.post(outcome(run))
    peer.outbox.flush()
    assert peer.writes() == [[outcome(0)], [outcome(run) for run in range(1, 101)]]


def test_chunks_of_a_run_share_a_record_and_outcomes_follow_them(peer: Peer) -> None:
    """Interleaved runs keep their own order."""
    for number in range(3):
        for run in (1, 2):
            peer.outbox.post([CHUNKS, run, [bytes([number])]])
    peer.outbox.post(outcome(1))
    peer.outbox.flush()
    items = [b"\0", b"\1", b"\2"]
    assert peer.writes() == [[[CHUNKS, 1, items], [CHUNKS, 2, items], outcome(1)]]


def test_large_records_are_spread_over_writes(peer: Peer) -> None:
    """One write stays moderate, however much waits."""
    peer.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    peer.outbox.start()
    for run in range(8):
        peer.outbox.post(outcome(run, b"x" * 500_000))
    peer.outbox.flush()
    assert [record[1] for record in peer.read(8)] == list(range(8))


def test_a_full_channel_does_not_block_posters_and_loses_nothing(peer: Peer) -> None:
    """What does not fit is written by the writing thread when there is room, in order."""
    peer.outbox.start()
    for run in range(2000):
        peer.outbox.post(outcome(run, b"x" * 1000))
        peer.outbox.flush()
    assert [record[1] for record in peer.read(2000)] == list(range(2000))


def test_logs_leave_before_the_outcome_that_follows_them(peer: Peer) -> None:
    """A reader of the outcome has the lines of the call already."""
    peer.logs.waiting = [[LOG, None, 0, "stdout", "", "", "line", [], 0, 0]]
    peer.outbox.post(outcome(1))
    peer.outbox.flush()
    assert [[record[0] for record in write] for write in peer.writes()] == [[LOG, OUTCOME]]


def test_a_flood_of_logs_leaves_in_bounded_writes_with_outcomes_between(peer: Peer) -> None:
    """An outcome waits for a few hundred lines at most."""
    peer.logs.waiting = [[LOG, None, 0, "stdout", "", "", "line", [], 0, 0]] * 5000
    peer.outbox.post(outcome(1))
    peer.outbox.flush()
    (write,) = peer.writes()
    assert write[-1] == outcome(1)
    assert len(write) < 500
    peer.outbox.start()
    peer.outbox.signal()
    assert len(peer.read(5000 - len(write) + 1)) == 5000 - len(write) + 1


def test_drain_writes_everything_before_it_returns(peer: Peer) -> None:
    """The end of a process loses neither records nor logs."""
    received: list[list[Any]] = []
    reader = threading.Thread(target=lambda: received.extend(peer.read(3001)))
    reader.start()
    peer.logs.waiting = [[LOG, None, 0, "stdout", "", "", "x" * 500, [], 0, 0]] * 3000
    peer.outbox.post(outcome(1, b"x" * 500_000))
    peer.outbox.drain()
    reader.join(10)
    assert len(received) == 3001


def test_posting_from_many_threads_loses_nothing(peer: Peer) -> None:
    """Whoever finds the channel taken leaves its records to the one who has it."""
    peer.outbox.start()

    def post(start: int) -> None:
        for run in range(start, start + 500):
            peer.outbox.post(outcome(run))
            if run % 3:
                peer.outbox.flush()
            else:
                peer.outbox.nudge()

    threads = [threading.Thread(target=post, args=(1000 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    runs = [record[1] for record in peer.read(4000)]
    for thread in threads:
        thread.join()
    assert len(set(runs)) == 4000
    for number in range(8):
        own = [run for run in runs if run // 1000 == number]
        assert own == sorted(own)

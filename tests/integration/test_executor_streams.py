"""Streams out of executors: first chunk at once, credit bounds what is on its way, interrupts end them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pelton.protocol.frames import ToExecutor
from support.executor_rig import Rig, executor_of

KINDS = ["generator", "async-generator"]


def source(kind: str, body: str) -> str:
    """A stream of this kind; `WAIT` waits in its way."""
    wait = "await asyncio.sleep" if kind == "async-generator" else "time.sleep"
    prefix = "async " if kind == "async-generator" else ""
    text = f"import asyncio, pathlib, time\n{prefix}def run(*args):\n{body}"
    return text.replace("WAIT", wait)


def stays(rig: Rig, run: int, chunks: int) -> None:
    """Waits until so many chunks came, and makes sure that no more come in the next moments."""
    rig.wait(lambda: len(rig.chunks.get(run, [])) >= chunks)
    with pytest.raises(AssertionError):
        rig.wait(lambda: len(rig.chunks[run]) > chunks, seconds=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_chunk_leaves_at_once(tmp_path: Path, kind: str) -> None:
    """It arrives while the generator computes or waits for the second one."""
    body = "    yield 1\n    while not pathlib.Path('go').exists(): WAIT(0.001)\n    yield 2\n"
    with executor_of(tmp_path, source(kind, body), kind=kind) as rig:
        run = rig.begin()
        rig.wait(lambda: rig.values(run) == [1])
        assert run not in rig.ended
        (tmp_path / "bundle" / "go").touch()
        assert rig.end_of(run).failure is None
        assert rig.values(run) == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_no_chunk_lingers_while_user_code_computes(tmp_path: Path, kind: str) -> None:
    """A burst of chunks followed by computing without a pause: all of the burst arrives meanwhile."""
    body = (
        "    for i in range(20): yield i\n"
        "    while not pathlib.Path('go').exists(): sum(range(1000))\n"
        "    yield 20\n"
    )
    with executor_of(tmp_path, source(kind, body), kind=kind) as rig:
        run = rig.begin()
        rig.wait(lambda: len(rig.chunks.get(run, [])) == 20)
        (tmp_path / "bundle" / "go").touch()
        rig.end_of(run)
        assert rig.values(run) == list(range(21))


@pytest.mark.parametrize("kind", KINDS)
def test_credit_bounds_the_chunks_on_their_way(tmp_path: Path, kind: str) -> None:
    """The generator stops at its credit, goes on by as much as is acknowledged, and loses nothing."""
    body = "    for i in range(1000): yield i\n"
    with executor_of(tmp_path, source(kind, body), kind=kind, chunk_credit=16) as rig:
        rig.credits = False
        run = rig.begin()
        stays(rig, run, 16)
        rig.acknowledge(run, 5)
        stays(rig, run, 21)
        rig.credits = True
        rig.acknowledge(run, 16)
        rig.end_of(run)
        assert rig.values(run) == list(range(1000))


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_bound_the_chunks_on_their_way(tmp_path: Path, kind: str) -> None:
    """Large chunks stop at 8 MiB however much credit there is."""
    body = "    for i in range(64): yield b'x' * 500_000\n"
    with executor_of(tmp_path, source(kind, body), kind=kind, chunk_credit=1000) as rig:
        rig.credits = False
        run = rig.begin()
        stays(rig, run, 17)
        rig.credits = True
        rig.acknowledge(run, 17)
        assert rig.end_of(run).failure is None
        assert len(rig.chunks[run]) == 64


def test_a_blocked_stream_does_not_block_others(tmp_path: Path) -> None:
    """One async stream without credit, another one passes it; the same with threads."""
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        with executor_of(
            tmp_path / kind,
            source(kind, "    for i in range(args[0]): yield i\n"),
            kind=kind,
            slots=2,
            chunk_credit=4,
        ) as rig:
            rig.credits = False
            blocked = rig.begin(10)
            stays(rig, blocked, 4)
            rig.credits = True
            passing = rig.begin(100)
            rig.end_of(passing)
            assert rig.values(passing) == list(range(100))
            assert blocked not in rig.ended
            rig.acknowledge(blocked, 4)
            rig.end_of(blocked)
            assert rig.values(blocked) == list(range(10))


def test_a_run_interrupted_before_it_begins_never_begins(tmp_path: Path) -> None:
    """It waits for the slot, is interrupted, and its function is not called."""
    body = "    for name in args:\n        pathlib.Path(name).touch()\n        yield name\n"
    with executor_of(tmp_path, source("generator", body), kind="generator", chunk_credit=1) as rig:
        rig.credits = False
        first = rig.begin("first", "last")
        rig.wait(lambda: rig.values(first) == ["first"])
        second = rig.begin("second")
        rig.pool.send(rig.executor, [[int(ToExecutor.INTERRUPT), second]])
        # Frames are read in order: what lets the first run end comes after the interrupt.
        rig.acknowledge(first, 2)
        assert rig.end_of(first).failure is None
        failure = rig.end_of(second).failure
        assert failure is not None
        assert failure[3] == "CANCELLED"
        assert not (tmp_path / "bundle" / "second").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("credit", [4, 64])
def test_an_interrupted_stream_is_closed(tmp_path: Path, kind: str, credit: int) -> None:
    """Waiting for credit or between two chunks: it ends, its finally runs, the executor lives."""
    body = (
        "    try:\n"
        "        while True:\n"
        "            WAIT(0.001)\n"
        "            yield 1\n"
        "    finally: pathlib.Path('closed').touch()\n"
    )
    with executor_of(tmp_path, source(kind, body), kind=kind, chunk_credit=credit) as rig:
        rig.credits = credit > 4
        run = rig.begin()
        rig.wait(lambda: len(rig.chunks.get(run, [])) >= 4)
        rig.pool.interrupt(rig.executor, run, 60.0)
        failure = rig.end_of(run).failure
        assert failure is not None
        assert failure[3] == "CANCELLED"
        assert (tmp_path / "bundle" / "closed").exists()
        assert rig.exits == []


@pytest.mark.parametrize("kind", KINDS)
def test_streams_side_by_side_keep_their_own_order(tmp_path: Path, kind: str) -> None:
    """Chunks of several runs share writes and never mix."""
    body = "    for i in range(2000):\n        yield [args[0], i]\n"
    with executor_of(tmp_path, source(kind, body), kind=kind, slots=8) as rig:
        runs = [rig.begin(number) for number in range(8)]
        for number, run in enumerate(runs):
            assert rig.end_of(run).failure is None
            assert rig.values(run) == [[number, i] for i in range(2000)]

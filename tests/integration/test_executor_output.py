"""What user code prints and logs arrives with its call, bounded, and never blocks user code."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pelton.protocol.frames import FLOOD_OVER
from support.executor_rig import Rig, executor_of, pool_of, wait_for_file


def with_text(rig: Rig, text: str) -> list[Any]:
    """Waits for the log record with this text."""
    rig.wait(lambda: any(log[6] == text for log in rig.logs))
    return next(log for log in rig.logs if log[6] == text)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_prints_and_log_records_bear_call_and_attempt(tmp_path: Path, kind: str) -> None:
    """stdout, stderr, logging with level and logger, pelton.logger with fields."""
    prefix = "async " if kind == "async" else ""
    source = f"""
    import logging, sys
    import pelton
    print("loading")
    {prefix}def run(x):
        print("out", x)
        print("err", x, file=sys.stderr)
        logging.getLogger("shop.cart").warning("warned %s", x)
        pelton.logger.info("event", colour="red", count=2)
        sys.stdout.buffer.write("bytes é\\n".encode())
        print("unfinished", end="")
    """
    with executor_of(tmp_path, source, kind=kind, slots=2) as rig:
        before = time.time() * 1000
        run = rig.begin("x")
        rig.end_of(run)
        mine = [rig.call_ids[run], 1]
        assert with_text(rig, "loading")[1:4] == [None, 0, "stdout"]
        assert with_text(rig, "out x")[1:6] == [*mine, "stdout", "", ""]
        assert with_text(rig, "err x")[1:6] == [*mine, "stderr", "", ""]
        assert with_text(rig, "warned x")[1:6] == [*mine, "log", "WARNING", "shop.cart"]
        event = with_text(rig, "event")
        assert event[1:5] == [*mine, "log", "INFO"]
        assert sorted(event[7]) == [["colour", "red"], ["count", "2"]]
        assert with_text(rig, "bytes é")[1:4] == [*mine, "stdout"]
        assert with_text(rig, "unfinished")[1:4] == [*mine, "stdout"]
        assert abs(with_text(rig, "out x")[8] - before) < 10_000


def test_lines_bear_broker_time(tmp_path: Path) -> None:
    """Executors that run and executors to come follow the clock that the coordinator tells."""
    source = "import os\ndef run(text):\n    print(text)\n    os.write(1, f'raw {text}\\n'.encode())\n"
    hour = 3_600_000
    with executor_of(tmp_path, source) as rig:
        for number in (1, 2):
            rig.pool.set_clock(number * hour)
            for text in (f"running {number}", f"started {number}"):
                rig.call(text)
                for line in (text, f"raw {text}"):
                    offset = with_text(rig, line)[8] - time.time() * 1000
                    assert abs(offset - number * hour) < hour / 10
                rig.start()


def test_lines_of_concurrent_calls_do_not_mix(tmp_path: Path) -> None:
    """Each call's line is put together on its own, in threads and in tasks."""
    threads = """
    import threading
    meeting = threading.Barrier(8)
    def run(i):
        for part in ("a", "b", "c"):
            print(f"{i}{part}", end=" ")
            meeting.wait(15)
        print()
    """
    tasks = """
    import asyncio
    async def run(i):
        for part in ("a", "b", "c"):
            print(f"{i}{part}", end=" ")
            await asyncio.sleep(0.001)
        print()
    """
    for kind, source in (("sync", threads), ("async", tasks)):
        (tmp_path / kind).mkdir()
        with executor_of(tmp_path / kind, source, kind=kind, slots=8) as rig:
            runs = [rig.begin(i) for i in range(8)]
            for i, run in enumerate(runs):
                rig.end_of(run)
                assert with_text(rig, f"{i}a {i}b {i}c ")[1] == rig.call_ids[run]


def test_to_thread_and_tasks_inherit_the_call_and_plain_threads_do_not(tmp_path: Path) -> None:
    """The rule for threads that user code starts."""
    source = """
    import asyncio, threading
    async def run():
        await asyncio.to_thread(print, "by to_thread")
        await asyncio.create_task(say("by task"))
        thread = threading.Thread(target=print, args=("by thread",))
        thread.start()
        thread.join()
    async def say(text): print(text)
    """
    with executor_of(tmp_path, source, kind="async") as rig:
        run = rig.begin()
        rig.end_of(run)
        assert with_text(rig, "by to_thread")[1] == rig.call_ids[run]
        assert with_text(rig, "by task")[1] == rig.call_ids[run]
        assert with_text(rig, "by thread")[1] is None


def test_output_of_c_code_and_child_processes_is_caught_without_a_call(tmp_path: Path) -> None:
    """Descriptors 1 and 2 are pipes to the pool; also what a forked child prints."""
    source = """
    import os, subprocess, sys
    def run():
        os.write(1, b"raw out\\n")
        os.write(2, b"raw err\\nhalf a line")
        subprocess.run(["sh", "-c", "echo from a child"], check=True)
        if os.fork() == 0:
            print("from a fork")
            sys.stdout.flush()
            os._exit(0)
        os.wait()
    """
    with executor_of(tmp_path, source) as rig:
        rig.call()
        for text, stream in (
            ("raw out", "stdout"),
            ("raw err", "stderr"),
            ("from a child", "stdout"),
            ("from a fork", "stdout"),
        ):
            assert with_text(rig, text)[1:4] == [None, 0, stream]
        rig.pool.stop(rig.executor, 10.0)
        rig.wait_exit()
        assert "half a line" in rig.lines("stderr")


def test_the_last_words_before_a_crash_arrive(tmp_path: Path) -> None:
    """What was printed before os._exit, and what the interpreter says of a segmentation fault."""
    source = """
    import ctypes, os
    def run(how):
        print("before", how)
        if how == "exit": os._exit(9)
        ctypes.string_at(0)
    """
    with pool_of(tmp_path, source) as rig:
        ends = []
        for how in ("exit", "fault"):
            rig.start()
            rig.begin(how)
            ends.append(rig.wait_exit())
            assert f"before {how}" in rig.lines("stdout")
        assert [end.code for end in ends] == [9, -11]
        assert "Segmentation fault" in ends[1].last_words
        assert "Fatal Python error: Segmentation fault" in rig.lines("stderr")


RAW_FLOOD = """
import os
def run(n):
    block = b"".join(b"%d\\n" % i for i in range(1000))
    for _ in range(n): os.write(1, block)
"""


def accounted(rig: Rig) -> tuple[int, int]:
    """Lines that arrived, and lines that others say were dropped."""
    logs = list(rig.logs)
    return sum(log[6] != FLOOD_OVER for log in logs), sum(log[9] for log in logs)


def test_a_flood_of_lines_is_bounded_and_counted(tmp_path: Path) -> None:
    """User code is not slowed to the channel's pace: lines are dropped and counted, the last ones too."""
    source = """
    def run(n):
        for i in range(n): print("line", i)
    """
    with executor_of(tmp_path, source) as rig:
        lines = 300_000
        rig.call(lines)
        rig.wait(lambda: "line 0" in rig.lines()[:1])
        rig.wait(lambda: accounted(rig)[1] > 0 and sum(accounted(rig)) == lines)


def test_a_raw_flood_is_bounded_and_counted(tmp_path: Path) -> None:
    """C code may write as fast as it wants: the pool reads all and keeps so much a second."""
    with executor_of(tmp_path, RAW_FLOOD) as rig:
        rig.call(100)
        rig.pool.stop(rig.executor, 10.0)
        end = rig.wait_exit()
        assert end.code == 0
        kept, dropped = accounted(rig)
        assert kept + dropped == 100_000
        assert dropped > 0


def test_a_raw_flood_is_told_while_its_executor_lives(tmp_path: Path) -> None:
    """What was dropped is said soon after the flood, also when nothing is written any more."""
    with executor_of(tmp_path, RAW_FLOOD) as rig:
        rig.call(100)
        rig.wait(lambda: accounted(rig)[1] > 0 and sum(accounted(rig)) == 100_000)
        assert rig.exits == []


@pytest.mark.parametrize("how", ["print", "raw", "log"])
def test_long_lines_are_cut(tmp_path: Path, how: str) -> None:
    """No record of a line is longer than 16 KiB, and prints lose nothing."""
    source = """
    import logging, os
    def run(how):
        text = "ü" * 50_000
        if how == "print": print(text)
        if how == "raw": os.write(1, (text + "\\n").encode())
        if how == "log": logging.error(text)
    """
    with executor_of(tmp_path, source) as rig:
        rig.call(how)
        wanted = 1 if how == "log" else 7
        rig.wait(lambda: len(rig.logs) >= wanted)
        assert all(len(line.encode()) <= 4 * 16 * 1024 for line in rig.lines())
        assert all(len(line) <= 16 * 1024 for line in rig.lines())


def test_loggers_that_fail_do_not_fail_the_call(tmp_path: Path) -> None:
    """A message that cannot be formatted is told on stderr, as Python does; surrogates become escapes."""
    source = """
    import logging
    def run():
        logging.error("%d", "no number")
        print("\\udcff")
        return 1
    """
    with executor_of(tmp_path, source) as rig:
        assert rig.call().value == 1
        rig.wait(lambda: "--- Logging error ---" in rig.lines("stderr"))
        with_text(rig, "\\udcff")


def test_a_coordinator_that_does_not_read_does_not_block_user_code(tmp_path: Path) -> None:
    """With its reading thread held up, user code prints on and ends; afterwards its outcome arrives."""
    source = """
    import pathlib
    def run():
        for i in range(50_000): print("x" * 200)
        pathlib.Path("done").touch()
    """
    with executor_of(tmp_path, source) as rig:
        with rig.deaf():
            run = rig.begin()
            wait_for_file(tmp_path / "bundle" / "done")
            assert run not in rig.ended
        assert rig.end_of(run).failure is None

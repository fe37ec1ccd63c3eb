"""The measurements of Pelton itself, each through the public API against a running platform."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil

import pelton
from benchmarks.platform_home import PlatformHome
from pelton.core.call import Timer
from pelton.protocol.codec import encode_timer
from pelton.protocol.topics import Control, Topics, timer_key
from pelton.transport.kafka.producer import RecordProducer

HERE = Path(__file__).resolve().parent

TAKEOVER_CALLS = 8
"""Half of the slots of both instances."""


def sequential(name: str, calls: int, value: str) -> list[float]:
    """Round trips of calls in ms, one after the other."""
    function = pelton.function_ref(name)
    for _ in range(50):
        function(value)
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        function(value)
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


def nested(calls: int, value: str) -> list[float]:
    """Round trips in ms of calls that a function makes, one after the other."""
    function = pelton.function_ref("bench-nest")
    function(50, value)
    taken: list[float] = function(calls, value)
    return taken


def closed_loop(name: str, calls: int, in_flight: int, value: object, keys: int = 0) -> float:
    """Calls with results per second, so many in flight; with so many keys in turn, 0 for no key."""
    function = pelton.function_ref(name)
    turn = [function.options(key=key) for key in range(keys)] or [function]
    room = threading.Semaphore(in_flight)
    done = threading.Event()
    left = calls
    failed: list[BaseException] = []

    def ended(future: Future[Any]) -> None:
        nonlocal left
        error = future.exception()
        if error is not None:
            failed.append(error)
        room.release()
        left -= 1
        if not left:
            done.set()

    began = time.perf_counter()
    for number in range(calls):
        room.acquire()
        turn[number % len(turn)].async_call(value).add_done_callback(ended)
    if not done.wait(180):
        raise TimeoutError(f"{left} of {calls} calls did not end")
    took = time.perf_counter() - began
    if failed:
        raise failed[0]
    return calls / took


def drain(name: str, calls: int, value: str, unfinished: Callable[[str], int]) -> float:
    """Calls per second from the first submit until none is left, nobody waiting for results."""
    function = pelton.function_ref(name)
    began = time.perf_counter()
    for _ in range(calls):
        function.submit(value)
    wait_for(lambda: not unfinished(name), 180)
    return calls / (time.perf_counter() - began)


def first_chunks(streams: int) -> list[float]:
    """Time to the first chunk of a stream, in ms."""
    function = pelton.function_ref("bench-count")
    taken = []
    for number in range(streams + 20):
        began = time.perf_counter()
        stream = function(2)
        next(stream)
        if number >= 20:
            taken.append((time.perf_counter() - began) * 1e3)
        for _ in stream:
            continue
    return taken


def chunk_rate(chunks: int) -> float:
    """Chunks per second of one stream."""
    function = pelton.function_ref("bench-count")
    began = time.perf_counter()
    got = sum(1 for _ in function(chunks))
    if got != chunks:
        raise AssertionError(f"{got} of {chunks} chunks came")
    return chunks / (time.perf_counter() - began)


def backlog_memory(home: PlatformHome, waiting: int) -> float:
    """Resident memory in MB of a coordinator with so many waiting calls."""
    function = pelton.function_ref("bench-held")
    function("")
    gate = home.folder / "gate"
    gate.touch()
    for _ in range(waiting):
        function.submit(str(gate))
    pelton.close()
    pelton.connect()
    (instance,) = home.instances("bench-backlog")
    memory = settled_memory(psutil.Process(instance["pid"]))
    gate.unlink()
    return memory


def timers_memory(home: PlatformHome, timers: int) -> float:
    """Resident memory in MB of the cron service with so many timers that are due tomorrow."""
    config = home.connection()
    topics = Topics(config.namespace)
    topic = topics.control(Control.TIMERS)
    due_ms = int(time.time() + 86_400) * 1000
    producer = RecordProducer(config)
    refused: list[object] = []

    def report(failure: object, _partition: int, _offset: int, _at_ms: int) -> None:
        if failure is not None:
            refused.append(failure)

    try:
        for number in range(timers):
            timer = Timer(due_ms + number % 3_600_000, topics.retries("bench-flaky"), number % 4, bytes(200))
            key = timer_key(number.to_bytes(16, "big"), 2)
            producer.send(topic, encode_timer(timer), key=key, on_report=report)
    finally:
        left = producer.close(60)
    if refused or left:
        raise RuntimeError(f"{len(refused)} timers were refused, {left} not acknowledged")
    cron = psutil.Process(home.cron_pid())
    # It has read them all when it has nothing left to do.
    wait_for(lambda: cron.cpu_percent(1.0) < 5, 300)
    return settled_memory(cron)


def settled_memory(process: psutil.Process) -> float:
    """Resident memory in MB once it no longer grows: 10 looks in 2 s that differ by less than 1 %."""
    looks: list[float] = []

    def settled() -> bool:
        looks.append(process.memory_info().rss / 1e6)
        time.sleep(0.2)
        last = looks[-10:]
        return len(last) == 10 and max(last) - min(last) < 0.01 * last[-1]

    wait_for(settled, 60)
    return looks[-1]


def takeover(home: PlatformHome, kills: int) -> list[float]:
    """Seconds from the kill of an instance until each of its calls runs again."""
    notes = home.folder / "takeover.txt"
    function = pelton.function_ref("bench-slow")
    taken: list[float] = []
    for number in range(kills):
        notes.write_text("")
        home.wait_for_instances("bench-takeover", 2)
        # Half of the slots stay free, so that nothing but the takeover is waited for.
        calls = [function.async_call(str(notes), number * 100 + call) for call in range(TAKEOVER_CALLS)]
        wait_for(lambda: len(_starts(notes)) >= TAKEOVER_CALLS, 60)
        victim = max(home.instances("bench-takeover"), key=lambda instance: instance["running"])
        mine = {call for call, pid, _ in _starts(notes) if pid in victim["executors"]}
        killed = time.time()
        os.kill(victim["pid"], signal.SIGKILL)
        wait_for(lambda mine=mine, killed=killed: mine <= _again(notes, killed), 60)  # type: ignore[misc]
        first: dict[int, float] = {}
        for call, _, at in _starts(notes):
            if at > killed and call in mine:
                first.setdefault(call, at)
        taken.extend(at - killed for at in first.values())
        pelton.gather(*calls, timeout=120)
    return taken


def _starts(notes: Path) -> list[tuple[int, int, float]]:
    rows = [line.split() for line in notes.read_text().splitlines()]
    return [(int(call), int(pid), float(at)) for call, pid, at in (row for row in rows if len(row) == 3)]


def _again(notes: Path, since: float) -> set[int]:
    return {call for call, _, at in _starts(notes) if at > since}


def wait_for(true: Callable[[], bool], within_s: float) -> None:
    """Waits on a condition."""
    until = time.monotonic() + within_s
    while not true():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {within_s:g} s")
        time.sleep(0.02)


def import_ms(rounds: int = 15) -> float:
    """What `import pelton` adds to the start of Python, in ms."""

    def start(statement: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.perf_counter() - began

    added = [start("import pelton") - start("pass") for _ in range(rounds)]
    return statistics.median(added) * 1e3


def first_call_s(folder: Path, rounds: int = 3) -> float:
    """Seconds from `pelton up` to the answer of the first `pelton call`, on a platform with one function.

    Caches are warm and the function was deployed, and called once, before the platform was stopped.

    Args:
        folder: for the platform's home, which is removed again.
        rounds: starts; the median counts.
    """
    home = PlatformHome(folder)
    taken = []
    try:
        home.run("up", "--detach")
        home.run("deploy", str(HERE / "hello.py"))
        home.run("call", "bench-hello", "warm")
        for _ in range(rounds):
            home.run("down")
            began = time.perf_counter()
            home.run("up", "--detach")
            home.run("call", "bench-hello", "hello")
            taken.append(time.perf_counter() - began)
    finally:
        home.run("down", "--purge")
    return statistics.median(taken)

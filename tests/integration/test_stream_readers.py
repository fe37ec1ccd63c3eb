"""Readers of streams that are slow, come late, or come from elsewhere: through a real instance and client."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pelton.client import calls, session
from pelton.client.streams import Stream
from pelton.core.spec import FunctionKind, ParameterSpec
from pelton.references import function_ref
from pelton.transport.kafka.calls import KafkaTransport
from support.embedded_broker import Broker
from support.worker_instance import Platform, platform_on, wait_until

pytestmark = pytest.mark.integration

ANY = (ParameterSpec("args", "VAR_POSITIONAL", False),)

SOURCE = """
import os, time

def count(n):
    for number in range(n):
        yield number

def gated(n, gate):
    for number in range(n):
        if number == n // 2:
            while not os.path.exists(gate):
                time.sleep(0.01)
        yield number

def big(n, size):
    for number in range(n):
        yield [number, "x" * size]
"""

STREAM = FunctionKind.GENERATOR


@pytest.fixture(scope="module")
def platform(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One instance that serves the streams; this process is a client of it."""
    with platform_on(broker.bootstrap_servers, tmp_path_factory.mktemp("readers")) as platform:
        functions = {"count": STREAM, "gated": STREAM, "big": STREAM}
        platform.deploy(SOURCE, functions, slots=4, partitions=2, parameters=ANY)
        platform.start_ready()
        session.install(KafkaTransport(platform.config))
        try:
            yield platform
        finally:
            session.close()


def test_a_slow_reader_slows_nobody_and_misses_nothing(platform: Platform) -> None:
    """30,000 chunks wait for a reader that sleeps; another stream and its end come meanwhile."""
    total = 30_000
    slow = function_ref("count")(total)
    assert isinstance(slow, Stream)
    assert next(slow) == 0
    wait_until(lambda: slow._call.paused, what="the slow stream has left the shared consumer")
    began = time.monotonic()
    assert sum(1 for _ in function_ref("count")(5_000)) == 5_000
    assert time.monotonic() - began < 20
    most = 0
    for number in range(1, total):
        assert next(slow) == number
        most = max(most, len(slow._call.chunks))
    assert list(slow) == []
    assert most < 2 * calls.MAX_BEHIND_CHUNKS, "the memory of a slow reader is bounded"


def test_a_slow_reader_of_large_chunks_is_bounded_in_bytes(platform: Platform) -> None:
    """60 MiB wait in the log, not in the memory of the reader."""
    slow = function_ref("big")(240, 256 * 1024)
    most = 0
    for number in range(240):
        assert next(slow)[0] == number
        most = max(most, sum(map(len, slow._call.chunks)))
        if number == 0:
            wait_until(lambda: slow._call.paused, what="the slow stream has left the shared consumer")
    assert list(slow) == []
    assert most < 2 * calls.MAX_BEHIND_BYTES


def test_another_process_attaches_from_the_first_chunk_on_and_follows(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In the middle of a stream: it replays what was, then follows what comes."""
    gate = tmp_path_factory.mktemp("gate") / "open"
    future = function_ref("gated").async_call(2_000, str(gate))
    half = iter(future.stream())
    assert [next(half) for _ in range(1_000)] == list(range(1_000))
    program = (
        "import pelton, sys\n"
        f"pelton.connect({platform.config.bootstrap_servers!r}, namespace={platform.namespace!r})\n"
        f"stream = pelton.function_ref('gated').attach({future.call_id!r}).stream()\n"
        "for number in stream:\n"
        "    if number == 999:\n"
        "        print('half', flush=True)\n"
        "    expected = globals().setdefault('expected', 0)\n"
        "    assert number == expected, (number, expected)\n"
        "    expected += 1\n"
        "print(expected)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    overdue = threading.Timer(60, child.kill)
    overdue.start()
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n", (
            "everything up to now is replayed before anything more comes"
        )
        gate.touch()
        assert child.stdout.read() == "2000\n"
        assert child.wait(20) == 0
    finally:
        overdue.cancel()
        child.kill()
        child.wait()
    assert future.result(20) == list(range(2_000))

"""Failing calls on a real broker: tried again in the instance, by the topic of retries, by timers."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pelton.core.call import ResultKind
from pelton.core.retry import RetrySpec
from pelton.core.spec import FunctionKind
from pelton.protocol.topics import Control
from pelton.transport.config import ConnectionConfig
from pelton_platform.cron.service import CronService
from support.embedded_broker import Broker
from support.worker_instance import Platform, platform_on, wait_until

pytestmark = pytest.mark.integration

SOURCE = """
import json, os, time
import pelton

class Flaky(Exception):
    pass

@pelton.function(retry_policy=pelton.RetryPolicy(5, initial=0.3, jitter=0, retry_on=Flaky))
def flaky(path, fails, after=None):
    with open(path, "a") as out:
        print(json.dumps([pelton.context().attempt, time.time_ns() // 1_000_000]), file=out)
    if pelton.context().attempt <= fails:
        if after is not None:
            raise pelton.Retry("not yet", after=after)
        raise Flaky("not yet")
    return pelton.context().attempt

def strict():
    raise ConnectionError("no policy")

def feed(path, count):
    for number in range(count):
        with open(path, "a") as out:
            print(os.getpid(), file=out)
        yield number
        time.sleep(0.1)
"""
POLICY = RetrySpec(300, 1.0, 300, 0.0, ("UNAVAILABLE",))


@pytest.fixture
def platform(broker: Broker, tmp_path: Path) -> Iterator[Platform]:
    """A namespace of its own with one instance."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        kinds = {"flaky": FunctionKind.SYNC, "strict": FunctionKind.SYNC}
        platform.deploy(SOURCE, kinds, max_attempts=6, retry=POLICY)
        platform.start_ready()
        yield platform


@pytest.fixture
def cron(broker: Broker, platform: Platform) -> Iterator[CronService]:
    """The cron service, in a thread of this process."""
    service = CronService(ConnectionConfig(broker.bootstrap_servers, platform.namespace))
    thread = threading.Thread(target=service.run)
    thread.start()
    yield service
    service.stop()
    thread.join()


def attempts(path: Path) -> list[tuple[int, int]]:
    """Number and begin of each attempt, in ms."""
    return [(number, at) for number, at in map(json.loads, path.read_text().splitlines())]


def waited(path: Path) -> list[int]:
    """Milliseconds between the begins of attempts."""
    found = attempts(path)
    return [later[1] - earlier[1] for earlier, later in pairwise(found)]


def test_retries_in_the_instance_come_when_they_are_due(platform: Platform, tmp_path: Path) -> None:
    """Each attempt has its number, none is early, and all are soon after their time."""
    path = tmp_path / "attempts"
    found = platform.wait("flaky", platform.call("flaky", str(path), 3))
    assert found.value == 4
    assert [number for number, _ in attempts(path)] == [1, 2, 3, 4]
    assert all(298 <= each <= 300 + 250 for each in waited(path)), waited(path)
    assert found.outcome is not None
    assert found.outcome.attempts == 4


def test_retries_by_the_topic_come_when_they_are_due(platform: Platform, tmp_path: Path) -> None:
    """A delay of seconds waits in the log: the record moves, and its history with it."""
    path = tmp_path / "attempts"
    call_id = platform.call("flaky", str(path), 9, after=1.5)
    found = platform.wait("flaky", call_id)
    assert found.outcome is not None
    failure = found.outcome.failure
    assert failure is not None
    assert (failure.type, failure.code) == ("pelton.errors.Retry", "ABORTED")
    assert [number for number, _ in attempts(path)] == [1, 2, 3, 4, 5, 6]
    assert all(1_498 <= each <= 1_500 + 250 for each in waited(path)), waited(path)
    assert [each.moved_to for each in found.results if each.kind is ResultKind.MOVED] != []
    (letter,) = platform.dead_letters("flaky")
    assert [each.attempt for each in letter.history] == [1, 2, 3, 4, 5]
    assert letter.reason.attempt == 6


def test_retries_by_timers_come_when_they_are_due(
    platform: Platform, cron: CronService, tmp_path: Path
) -> None:
    """Above 30 s the cron service appends the record; nobody holds it meanwhile, and its timer is removed."""
    path = tmp_path / "attempts"
    call_id = platform.call("flaky", str(path), 1, after=31)
    topic = platform.topics.control(Control.TIMERS)
    wait_until(lambda: len(platform.read(topic)) == 1, 30, "the timer")
    wait_until(lambda: platform.all_done("flaky"), 30, "the record is done")
    found = platform.wait("flaky", call_id, 60)
    assert found.value == 2
    (only,) = waited(path)
    assert 30_998 <= only <= 31_000 + 250
    wait_until(lambda: platform.read(topic)[-1].value is None, 30, "its tombstone")


def test_retries_are_none_without_a_policy(platform: Platform) -> None:
    """User exceptions end the call, also those whose code would be retried."""
    found = platform.wait("strict", platform.call("strict"))
    assert found.outcome is not None
    failure = found.outcome.failure
    assert failure is not None
    assert (failure.type, failure.code, failure.attempt) == ("ConnectionError", "UNAVAILABLE", 1)


def test_retries_survive_the_instance(platform: Platform, tmp_path: Path) -> None:
    """The next attempt is made by another instance, with its number and not before its time."""
    path = tmp_path / "attempts"
    call_id = platform.call("flaky", str(path), 1, after=4)
    wait_until(lambda: path.exists() and len(attempts(path)) == 1, 30, "the first attempt")
    wait_until(lambda: len(platform.read(platform.topics.retries("flaky"))) == 1, 30, "the record moved")
    (worker,) = platform.workers
    worker.kill()
    platform.start_ready()
    found = platform.wait("flaky", call_id, 60)
    assert found.value == 2
    assert [number for number, _ in attempts(path)] == [1, 2]
    assert waited(path)[0] >= 3_998


def running(path: Path) -> int:
    """The pid that has yielded more than three values last; 0 for none."""
    pids = path.read_text().split() if path.exists() else []
    return int(pids[-1]) if pids and pids.count(pids[-1]) > 3 else 0


def test_stream_that_broke_off_begins_again(broker: Broker, tmp_path: Path) -> None:
    """Killed in the middle, twice: what counts in the end is one whole execution."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        platform.deploy(SOURCE, {"feed": FunctionKind.GENERATOR}, on_stream_failure="restart", slots=1)
        platform.start_ready()
        path = tmp_path / "pids"
        call_id = platform.call("feed", str(path), 30)
        killed: list[int] = []
        for _ in range(2):
            wait_until(lambda: running(path) not in (0, *killed), 30, "the stream runs")
            killed.append(running(path))
            os.kill(killed[-1], signal.SIGKILL)
        found = platform.wait("feed", call_id)
        assert found.outcome is not None
        assert (found.outcome.failure, found.outcome.attempts) == (None, 3)
        assert found.chunks == list(range(30))
        assert len(set(path.read_text().split())) == 3

"""Key order among kills, scale-outs and restarts: the order of starts of each key, exactly."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pelton import function_ref
from pelton.client import session
from pelton.core.spec import FunctionKind, ParameterSpec
from pelton.transport.kafka.calls import KafkaTransport
from support.busy import kill_busy
from support.embedded_broker import Broker, running_broker
from support.worker_instance import Platform, platform_on, wait_until

ANY = (ParameterSpec("args", "VAR_POSITIONAL", False),)

SOURCE = """
import os, random, time

journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def step(key, number, seconds=0.0):
    os.write(journal, f"{key} {number}\\n".encode())
    time.sleep(seconds)
    return number

def late(key, number):
    time.sleep(random.random() * 0.02)
    return step(key, number)
"""


@pytest.fixture(scope="module")
def keys_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for this module."""
    with running_broker(tmp_path_factory.mktemp("keys")) as running:
        yield running


@pytest.fixture
def platform(keys_broker: Broker, tmp_path: Path) -> Iterator[Platform]:
    """A namespace of its own, and this process connected to it."""
    with platform_on(keys_broker.bootstrap_servers, tmp_path) as platform:
        platform.deploy(
            SOURCE,
            dict.fromkeys(("step", "late"), FunctionKind.SYNC),
            slots=16,
            parameters=ANY,
            ordering="key",
        )
        with closing(session.install(KafkaTransport(platform.config))):
            yield platform


def submit(calls: int, keys: int, *more: float, function: str = "step") -> list[str]:
    """Sends calls, key by key in turn; their ids."""
    step = function_ref(function)
    steps = [step.options(key=f"key-{number}") for number in range(keys)]
    return [steps[number % keys].submit(number % keys, number // keys, *more) for number in range(calls)]


def starts(platform: Platform) -> dict[int, list[int]]:
    """Numbers of the calls of each key in the order of their starts."""
    found: dict[int, list[int]] = defaultdict(list)
    for line in platform.ran():
        key, number = line.split()
        found[int(key)].append(int(number))
    return found


def out_of_order(found: dict[int, list[int]]) -> list[tuple[int, list[int]]]:
    """Keys of which a call started after one that came later, with what happened there."""
    return [
        (key, numbers[max(0, at - 3) : at + 3])
        for key, numbers in found.items()
        for at in range(1, len(numbers))
        if numbers[at] < numbers[at - 1]
    ]


def run_keys(platform: Platform, *, calls: int, keys: int, kills: int, seconds: float) -> None:
    """Calls with keys, while executors and instances are killed, added and told to leave, all along."""
    for _ in range(2):
        platform.start_ready()
    ids = submit(calls, keys, seconds)
    assert session.flush(30) == 0
    dice = random.Random(calls)
    written = sum(len(f"{number % keys} {number // keys}\n") for number in range(calls))
    for number in range(kills):
        size = written * number // kills
        wait_until(lambda size=size: _size(platform.journal) >= size, 120, "calls go on")  # type: ignore[misc]
        kill_busy(platform, dice, instance=number % 2 == 1)
        if number % 4 == 2:
            leaving = next(worker for worker in platform.workers if worker.child.poll() is None)
            platform.start_ready()
            assert leaving.end() == 0
    wait_until(lambda: platform.all_done("step"), 600, "all calls are done")
    found = starts(platform)
    assert out_of_order(found) == []
    assert sorted(found) == list(range(keys))
    for key, numbers in found.items():
        assert sorted(set(numbers)) == list(range(len(range(key, calls, keys)))), key
    outcomes = platform.outcomes("step")
    assert len(outcomes) == len(ids) == calls
    assert all(each.outcome is not None and each.outcome.failure is None for each in outcomes.values())
    assert sum(map(len, found.values())) > calls, "nothing ran again: the kills prove nothing"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.timeout(400)
def test_chaos_key_order_survives_kills(platform: Platform) -> None:
    """4,000 calls of 100 keys; an executor and two instances die, one joins and one leaves."""
    run_keys(platform, calls=4_000, keys=100, kills=4, seconds=0.02)


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
def test_chaos_key_order_of_many_calls_survives_many_kills(platform: Platform) -> None:
    """100,000 calls of 500 keys through twelve kills."""
    run_keys(platform, calls=100_000, keys=500, kills=12, seconds=0.02)


@pytest.mark.parametrize("bug", ["key order ignored", ""])
def test_chaos_key_order_needs_lanes(platform: Platform, bug: str) -> None:
    """Calls that take their time before they say that they began overtake each other without the rule."""
    if bug:
        platform.program = ["support.chaos_bugs", bug]
    submit(200, 4, function="late")
    assert session.flush(30) == 0
    platform.start_ready()
    wait_until(lambda: platform.all_done("late"), 60, "all calls are done")
    found = starts(platform)
    assert bool(out_of_order(found)) is bool(bug)

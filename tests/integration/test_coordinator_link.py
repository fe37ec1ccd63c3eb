"""Callers and instances on a bad network: slow, narrow, reset in the middle, silently dead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pelton
from pelton.core.spec import FunctionKind, ParameterSpec
from support.link import LinkedBroker, linked_broker
from support.worker_instance import Platform, platform_on, wait_until

SOURCE = """
import time
def twice(text):
    return text + text
def slowly(number):
    time.sleep(0.05)
    return number
def count(upto):
    for number in range(upto):
        time.sleep(0.05)
        yield number
"""
FUNCTIONS = {"twice": FunctionKind.SYNC, "slowly": FunctionKind.SYNC, "count": FunctionKind.GENERATOR}
VALUE = ParameterSpec("value", "POSITIONAL_ONLY", True)
SLOW_DELAY_S = 0.05
MEGABIT = 1_000_000 / 8


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinkedBroker]:
    """One broker behind a link for the tests of this file."""
    with linked_broker(tmp_path_factory.mktemp("linked") / "kafka") as broker:
        yield broker


@pytest.fixture
def platform(linked: LinkedBroker, tmp_path: Path) -> Iterator[Platform]:
    """Functions in a namespace of their own; an instance and the SDK of this process use the link."""
    linked.link.smooth()
    with platform_on(linked.direct, tmp_path) as platform:
        platform.deploy(SOURCE, FUNCTIONS, slots=8, parameters=(VALUE,))
        platform.config = replace(platform.config, bootstrap_servers=linked.through_link)
        platform.start_ready()
        pelton.connect(
            linked.through_link, namespace=platform.namespace, key_file=str(platform.config.key_file)
        )
        try:
            yield platform
        finally:
            linked.link.smooth()
            pelton.close(5)


def test_coordinator_link_slow_and_narrow_only_slows(linked: LinkedBroker, platform: Platform) -> None:
    """Over a link of 1 Mbit/s with 50 ms each way calls and streams end whole, in order, each run once."""
    twice, count = pelton.function_ref("twice"), pelton.function_ref("count")
    assert twice("warm") == "warmwarm"
    linked.link.delay_s, linked.link.bytes_per_s = SLOW_DELAY_S, MEGABIT
    began = time.monotonic()
    assert twice("x") == "xx"
    # To the broker, to the instance, and the same way back.
    assert time.monotonic() - began > 4 * SLOW_DELAY_S
    texts = [f"{number:04}" * 500 for number in range(40)]
    began = time.monotonic()
    futures = [twice.async_call(text) for text in texts]
    assert [future.result(30) for future in futures] == [text + text for text in texts]
    # The longer way is that of the results: from the instance to the broker.
    assert time.monotonic() - began > sum(2 * len(text) for text in texts) / MEGABIT
    assert list(count(10)) == list(range(10))
    assert platform.workers[0].counters.get("expiries", 0) == 0


def test_coordinator_link_resets_lose_nothing(linked: LinkedBroker, platform: Platform) -> None:
    """While all connections are reset again and again every call and stream ends with its own values."""
    slowly, count = pelton.function_ref("slowly"), pelton.function_ref("count")
    assert slowly(-1) == -1
    stream = count.async_call(100)
    futures = [slowly.async_call(number) for number in range(300)]
    for part in (1, 2, 3):
        wait_until(lambda: linked.link.alive >= 4, 20, "clients connect again")
        assert linked.link.reset() >= 1
        wait_until(futures[60 * part].done, 20, "calls go on")
    assert stream.result(30) == list(range(100))
    assert [future.result(30) for future in futures] == list(range(300))
    assert platform.workers[0].child.poll() is None


@pytest.mark.chaos_long
def test_coordinator_link_half_open_is_found_out(linked: LinkedBroker, platform: Platform) -> None:
    """Connections that carry nothing more and never end are given up in time: what was called ends."""
    slowly = pelton.function_ref("slowly")
    assert slowly(-1) == -1
    began = time.monotonic()
    assert linked.link.half_open() >= 4
    futures = [slowly.async_call(number) for number in range(20)]
    assert [future.result(30) for future in futures] == list(range(20))
    # A client gives a request up after 10 s.
    assert time.monotonic() - began < 20
    assert platform.workers[0].child.poll() is None

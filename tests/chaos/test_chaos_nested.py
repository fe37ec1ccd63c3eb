"""Trees of calls among kills, and what goes wrong with them when one rule is left out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.core.call import CallId, Cancellation
from pelton.core.spec import FunctionKind, ParameterSpec
from pelton.protocol.codec import encode_cancellation
from pelton.protocol.topics import Control
from support.busy import kill_busy
from support.embedded_broker import Broker, running_broker
from support.worker_instance import Platform, platform_on, wait_until

ANY = (ParameterSpec("args", "VAR_POSITIONAL", False),)

SOURCE = """
import os, time
from pelton import function_ref

def note(text):
    with open(os.environ["JOURNAL"], "a") as journal:
        journal.write(text + "\\n")

def tree(depth):
    if depth == 0:
        time.sleep(0.02)
        return 1
    return 1 + sum(function_ref("tree").map([depth - 1] * 2))

def rows(depth):
    yield depth
    if depth:
        yield from function_ref("rows")(depth - 1)

def quick(number):
    note(f"started {number}")
    return number
"""

SYNC = FunctionKind.SYNC

LAST_DELIVERY = 3
"""A call is not delivered again after so many times."""


@pytest.fixture(scope="module")
def nested_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for this module."""
    with running_broker(tmp_path_factory.mktemp("nested")) as running:
        yield running


def run_trees(platform: Platform, *, roots: int, depth: int, kills: int) -> None:
    """Trees of calls, while executors and instances are killed; each comes to its value, or is given up."""
    platform.deploy(SOURCE, {"tree": SYNC, "rows": FunctionKind.GENERATOR}, slots=4, parameters=ANY)
    for _ in range(2):
        platform.start_ready()
    trees = platform.submit("tree", [(depth,)] * roots)
    chains = platform.submit("rows", [(depth,)] * roots)
    dice = random.Random(roots)
    for number in range(kills):
        kill_busy(platform, dice, instance=number % 2 == 1)
    found = platform.wait_all("tree", trees, 240)
    streams = platform.wait_all("rows", chains, 240)
    whole_trees = 0
    for each in trees:
        outcome = found[each].outcome
        assert outcome is not None
        if outcome.failure is None:
            assert found[each].value == 2 ** (depth + 1) - 1
            whole_trees += 1
        else:
            # A call that lives through as many kills as this is given up, and fails those that wait for it.
            assert kills >= LAST_DELIVERY
            assert f"delivered {LAST_DELIVERY} times" in outcome.failure.message
    assert whole_trees >= roots // 2
    for each in chains:
        # A stream that was cut after its first chunk fails as it was declared to; none loses a chunk.
        outcome = streams[each].outcome
        assert outcome is not None
        whole = list(range(depth, -1, -1))
        assert streams[each].chunks == whole[: len(streams[each].chunks)]
        assert outcome.failure is not None or streams[each].chunks == whole
    for function in ("tree", "rows"):
        wait_until(lambda function=function: platform.all_done(function), 120, f"{function} is done")  # type: ignore[misc]
        histories = platform.outcomes(function)
        # A chain that was cut has fewer calls than a whole one; a tree that ended has them all.
        assert function == "rows" or len(histories) >= whole_trees * (2 ** (depth + 1) - 1)
        assert [each for each in histories.values() if each.outcome is None] == []


@pytest.mark.timeout(400)
def test_chaos_trees_of_calls_survive_kills(nested_broker: Broker, tmp_path: Path) -> None:
    """12 trees of 31 calls and 12 chains of streams; an executor and an instance die in between."""
    with platform_on(nested_broker.bootstrap_servers, tmp_path) as platform:
        run_trees(platform, roots=12, depth=4, kills=2)


@pytest.mark.chaos_long
@pytest.mark.timeout(900)
def test_chaos_many_trees_of_calls_survive_many_kills(nested_broker: Broker, tmp_path: Path) -> None:
    """60 trees of 63 calls and 60 chains of streams through ten kills."""
    with platform_on(nested_broker.bootstrap_servers, tmp_path) as platform:
        run_trees(platform, roots=60, depth=5, kills=10)


# ---- one rule left out ----


def ends(platform: Platform, call_id: CallId, seconds: float) -> bool:
    """Whether a tree has its outcome within so many seconds."""
    try:
        platform.wait("tree", call_id, seconds)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("bug", ["park without giving back", ""])
def test_chaos_recursion_on_one_slot_needs_parked_calls_to_give_it_back(
    nested_broker: Broker, tmp_path: Path, bug: str
) -> None:
    """With the rule a tree of 15 calls ends on one slot; without it nothing ever does."""
    with platform_on(nested_broker.bootstrap_servers, tmp_path) as platform:
        platform.deploy(SOURCE, {"tree": SYNC}, slots=1, parameters=ANY)
        if bug:
            platform.program = ["support.chaos_bugs", bug]
        platform.start_ready()
        assert ends(platform, platform.call("tree", 3), 8 if bug else 40) is not bool(bug)


@pytest.mark.parametrize("bug", ["cancellation read after dispatch", ""])
def test_chaos_cancelled_calls_need_the_requests_to_be_read_first(
    nested_broker: Broker, tmp_path: Path, bug: str
) -> None:
    """Cancelled while nobody serves: with the rule none starts; without it the next instance starts them."""
    with platform_on(nested_broker.bootstrap_servers, tmp_path) as platform:
        platform.deploy(SOURCE, {"quick": SYNC}, slots=4, parameters=ANY)
        ids = platform.submit("quick", [(number,) for number in range(30)])
        topic = platform.topics.control(Control.CANCELLATIONS)
        for call_id in ids:
            platform.send(topic, encode_cancellation(Cancellation(call_id, 0, "nobody wants it")), call_id)
        if bug:
            platform.program = ["support.chaos_bugs", bug]
        platform.start_ready()
        found = platform.wait_all("quick", ids, 60)
        cancelled = [
            each
            for each in ids
            if (outcome := found[each].outcome) is not None
            and outcome.failure is not None
            and outcome.failure.code == "CANCELLED"
        ]
        if bug:
            assert platform.ran("started")
            assert len(cancelled) < len(ids)
        else:
            assert not platform.ran("started")
            assert len(cancelled) == len(ids)

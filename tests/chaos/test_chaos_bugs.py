"""Seeded bugs: each rule left out of the real instance is caught by the checker that passes without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.chaos_bugs import BUGS
from support.chaos_checker import Verdict
from support.chaos_cluster import running_cluster
from support.chaos_scenes import (
    deadly_call,
    failing_call,
    killed_in_flight,
    leader_lost,
    lone_executor_killed,
    results_refused,
    stream_cut,
)
from support.chaos_world import World, world_on
from support.embedded_broker import Broker, running_broker

Scene = Callable[[World], Verdict]

SHORT: dict[str, tuple[Scene, str]] = {
    "dead letter dropped": (failing_call, "dead letter"),
    "retry lost": (lone_executor_killed, "lost"),
}
LONG: dict[str, tuple[Scene, str]] = {
    "commit before ack": (results_refused, "lost"),
    "commit the highest": (killed_in_flight, "commit"),
    "token ignored": (stream_cut, "lost"),
    "fence skipped": (stream_cut, "stream"),
    "suspects uncounted": (deadly_call, "deliveries"),
}
"""Bug, the scene that shows it, and the promise it breaks there."""


@pytest.fixture(scope="module")
def bug_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for all scenes."""
    with running_broker(tmp_path_factory.mktemp("bugs")) as running:
        yield running


def seen_by_checker(broker: Broker, folder: Path, scene: Scene, bug: str = "") -> Verdict:
    """Plays a scene with or without a bug."""
    with world_on(broker.bootstrap_servers, folder / "world", bug) as world:
        return scene(world)


def both_ways(short: bool) -> list[object]:
    """Each bug in its scene, and each scene once without any."""
    table = SHORT if short else LONG
    marks = [] if short else [pytest.mark.chaos_long]
    cases: dict[str, tuple[Scene, str, str]] = {name: (*found, name) for name, found in table.items()}
    cases |= {f"no bug, {scene.__name__}": (scene, "", "") for scene, _ in table.values()}
    return [pytest.param(*case, id=name, marks=marks) for name, case in cases.items()]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("scene", "promise", "bug"), both_ways(short=True) + both_ways(short=False))
def test_chaos_checker_finds_the_bug_and_nothing_else(
    bug_broker: Broker, tmp_path: Path, scene: Scene, promise: str, bug: str
) -> None:
    """With the bug the promise it breaks is found broken; without one no promise is."""
    verdict = seen_by_checker(bug_broker, tmp_path, scene, bug)
    if bug:
        assert promise in verdict.broken(), str(verdict)
    else:
        assert not verdict.violations, str(verdict)


@pytest.mark.chaos_long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("bug", ["acks=1", ""])
def test_chaos_checker_finds_records_that_one_replica_alone_acknowledged(tmp_path: Path, bug: str) -> None:
    """What only a leader had is lost with it; with all replicas asked nothing is."""
    # Questions may go to the broker that stands still first: it must not be missed before they are answered.
    with running_cluster(tmp_path / "cluster", {"broker.session.timeout.ms": "20000"}) as cluster:
        verdict = leader_lost(cluster, tmp_path / "world", bug)
    if bug:
        assert "lost" in verdict.broken(), str(verdict)
    else:
        assert "lost" not in verdict.broken(), str(verdict)
        assert "commit" not in verdict.broken(), str(verdict)


def test_chaos_each_bug_has_a_test() -> None:
    """No bug of the launcher is left without a scene that shows it."""
    elsewhere = {"park without giving back", "cancellation read after dispatch", "key order ignored"}
    assert {*SHORT, *LONG, "acks=1", *elsewhere} == set(BUGS)

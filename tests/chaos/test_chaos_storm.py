"""Calls through kills, freezes and broker restarts: nothing lost, one outcome, exact streams."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.chaos_checker import Verdict
from support.chaos_runs import say, storm
from support.embedded_broker import Broker


def judge(verdict: Verdict, *, kills: int, freezes: int) -> None:
    """What holds in every run."""
    say(f"\n{verdict}")
    figures = verdict.figures
    assert not verdict.violations, str(verdict)
    assert figures["hits: executor"] == kills
    assert figures["hits: instance"] == kills
    assert figures["hits: freeze"] == freezes
    assert figures["kills on busy targets"] >= 0.9, str(verdict)
    assert figures["executions again"] > 0, "the kills proved nothing"
    assert figures["again without a fault"] <= figures["copies"], str(verdict)
    assert figures["refused_commits"] > 0, str(verdict)
    assert figures["dropped_completions"] > 0, str(verdict)
    assert figures.get("takeover: p99 s", 0) <= 10, str(verdict)


@pytest.mark.timeout(240)
def test_chaos_short_storm_loses_nothing(chaos_broker: Broker, tmp_path: Path) -> None:
    """2,000 calls, a fifth streams, through kills, a freeze and a broker's death keep every promise."""
    verdict = storm(
        chaos_broker,
        tmp_path / "world",
        seed=1,
        total=2_000,
        faults={"executor": 3, "instance": 3, "freeze": 1, "broker kill": 1},
        attached=100,
    )
    judge(verdict, kills=3, freezes=1)


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
def test_chaos_long_storm_loses_nothing(chaos_broker: Broker, tmp_path: Path) -> None:
    """20,000 calls, 20 kills each of executors and instances, 10 freezes, the broker restarted twice."""
    verdict = storm(
        chaos_broker,
        tmp_path / "world",
        seed=2,
        total=20_000,
        faults={"executor": 20, "instance": 20, "freeze": 10, "broker kill": 1, "broker restart": 1},
        attached=500,
    )
    judge(verdict, kills=20, freezes=10)

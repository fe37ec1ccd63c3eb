"""Instances come, go and take over: nothing runs twice that need not, and takeovers are quick."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.chaos_checker import Verdict
from support.chaos_ledgers import Sent
from support.chaos_runs import say
from support.chaos_scenes import call, ended, executing, judged
from support.chaos_world import World, world_on
from support.embedded_broker import Broker
from support.worker_instance import wait_until


def sound(verdict: Verdict) -> dict[str, float]:
    """Asserts that no promise was broken; returns the figures."""
    say(f"\n{verdict}")
    assert not verdict.violations, str(verdict)
    return verdict.figures


@pytest.mark.timeout(110)
def test_chaos_takeover_of_a_killed_instance_is_quick(chaos_broker: Broker, tmp_path: Path) -> None:
    """Calls in flight on an instance killed with SIGKILL run again elsewhere within 10 s."""
    with world_on(chaos_broker.bootstrap_servers, tmp_path / "world") as world:
        # Each instance has a slot for every call, however chance shares them out.
        world.deploy_ledgers("quick", slots=24)
        victim = world.start()
        world.wait_settled(1)
        world.start()
        world.wait_settled(2)
        sent = [call(world, number, hold_ms=3000) for number in range(24)]
        wait_until(lambda: executing(world, 24), 30, "all calls run")
        hit = world.kill_instance(victim)
        assert len(hit.in_flight) >= 4
        figures = sound(judged(world, sent))
        assert figures["takeover: calls"] == len(hit.in_flight)
        assert figures["takeover: p99 s"] <= 10
        assert figures["executions again"] == len(hit.in_flight)


def scale_out(world: World, hold_ms: int) -> None:
    """Two instances join one that runs long calls."""
    world.deploy_ledgers("quick", slots=8)
    world.start()
    world.wait_settled(1)
    sent = [call(world, number, hold_ms=hold_ms) for number in range(8)]
    wait_until(lambda: executing(world, 8), 30, "all calls run")
    world.start()
    world.wait_settled(2)
    world.start()
    world.wait_settled(3)
    assert not ended(world, 1), "the calls were too short to prove anything"
    figures = sound(judged(world, sent))
    assert figures["executions"] == 8
    assert figures["copies"] > 0


@pytest.mark.timeout(110)
def test_chaos_scale_out_restarts_no_running_call(chaos_broker: Broker, tmp_path: Path) -> None:
    """Instances that join while calls of many seconds run make none of them run again."""
    with world_on(chaos_broker.bootstrap_servers, tmp_path / "world") as world:
        scale_out(world, 15_000)


@pytest.mark.chaos_long
@pytest.mark.timeout(180)
def test_chaos_scale_out_restarts_no_call_of_30_seconds(chaos_broker: Broker, tmp_path: Path) -> None:
    """The same with calls of 30 s."""
    with world_on(chaos_broker.bootstrap_servers, tmp_path / "world") as world:
        scale_out(world, 30_000)


@pytest.mark.timeout(110)
def test_chaos_second_instance_joins_a_batch_and_nothing_ended_runs_again(
    chaos_broker: Broker, tmp_path: Path
) -> None:
    """A second instance that joins in the middle of a batch loses none and runs no call again."""
    with world_on(chaos_broker.bootstrap_servers, tmp_path / "world") as world:
        world.deploy_ledgers("quick")
        world.start()
        world.wait_settled(1)
        sent = [call(world, number, hold_ms=50) for number in range(200)]
        wait_until(lambda: ended(world, 50), 30, "a part has ended")
        world.start()
        world.wait_settled(2)
        figures = sound(judged(world, sent))
        assert figures["executions again"] <= figures["copies"]


@pytest.mark.chaos_long
@pytest.mark.timeout(300)
def test_chaos_rolling_restart_of_five_repeats_little(chaos_broker: Broker, tmp_path: Path) -> None:
    """Five instances replaced one after the other under load lose nothing, repeat little and log no error."""
    with world_on(chaos_broker.bootstrap_servers, tmp_path / "world") as world:
        world.deploy_ledgers("quick", partitions=10)
        for _ in range(5):
            world.start()
        world.wait_settled(5)
        sent: list[Sent] = []
        for old in list(world.alive):
            sent += [call(world, len(sent), hold_ms=100) for _ in range(60)]
            world.start()
            assert old.end() == 0, old.log
            world.wait_settled(5)
        figures = sound(judged(world, sent))
        assert figures["executions again"] <= 5 * world.slots
        assert not [worker.name for worker in world.workers if '"level": "error"' in worker.log], world.logs()

"""Brokers that go away for long: groups move to another broker, and after a minute of silence all goes on."""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import psutil
import pytest

import pelton
from pelton.errors import AcceptanceUnknown
from pelton.protocol.topics import Control
from support.chaos_cluster import running_cluster
from support.chaos_ledgers import Sent
from support.chaos_runs import calling, say
from support.chaos_scenes import call, ended, executing, judged
from support.chaos_world import Hit, world_on
from support.embedded_broker import Broker
from support.worker_instance import wait_until

SILENT_S = 60.0
KEEPS_GROUPS_TWICE = {"offsets.topic.replication.factor": "2"}


@pytest.mark.chaos_long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["handed over", "dead"])
def test_chaos_outage_of_the_broker_that_keeps_the_group_moves_it(tmp_path: Path, how: Signals) -> None:
    """The group goes on at the other broker; if the first one hands it over no running call is repeated."""
    with running_cluster(tmp_path / "cluster", KEEPS_GROUPS_TWICE) as cluster:
        cluster.follower.start()
        cluster.await_broker(cluster.follower)
        with world_on(cluster.bootstrap_servers, tmp_path / "world") as world:
            group = world.topics.group("quick")
            world.admin.committed(group, [(world.topics.control(Control.LOGS), 0)])
            keeper = cluster.coordinator(group)
            other = cluster.follower if keeper is cluster.leader else cluster.leader
            world.deploy_ledgers("quick", prepare=partial(cluster.led_by, other))
            world.wait_ready(world.start())
            sent = [call(world, number, hold_ms=15_000) for number in range(8)]
            wait_until(lambda: executing(world, 8), 30, "all calls run")
            wait_until(lambda: cluster.in_sync("__consumer_offsets"), 30, "both brokers have all offsets")
            keeper.signal(how)
            hit = Hit("broker kill", at_ns=time.monotonic_ns())
            world.hits.append(hit)
            wait_until(
                lambda: cluster.leaders("__consumer_offsets", other) == {other.number},
                60,
                "the group has moved",
            )
            hit.over_ns = time.monotonic_ns()
            assert not ended(world, 1), "the calls were too short to prove anything"
            sent += [call(world, number) for number in range(8, 40)]
            verdict = judged(world, sent)
            say(f"\n{verdict}")
            assert not verdict.violations, str(verdict)
            # A dead broker is missed later than members give up a group that does not answer.
            assert verdict.figures["executions"] <= (40 if how == signal.SIGTERM else 48)
            assert verdict.figures["again without a fault"] == 0, str(verdict)


@pytest.mark.chaos_long
@pytest.mark.timeout(240)
def test_chaos_outage_of_a_minute_is_told_and_survived(chaos_broker: Broker, tmp_path: Path) -> None:
    """A broker frozen for 60 s: callers are told, memory stays, and 10 s later all is normal."""
    with world_on(chaos_broker.bootstrap_servers, tmp_path / "world") as world, calling(world):
        world.deploy_ledgers("quick", slots=8)
        worker = world.start()
        world.wait_settled(1)
        quick = pelton.function_ref("quick")
        assert quick(0)[0] == 0
        own = [psutil.Process(), psutil.Process(worker.child.pid)]
        before = [process.memory_info().rss for process in own]
        futures = {number: quick.async_call(number, 3_000) for number in range(1, 9)}
        wait_until(lambda: executing(world, 8), 30, "calls run")
        frozen = time.monotonic()
        world.bounce_broker("broker freeze", partial(silent_for_a_minute, chaos_broker, quick, futures))
        began = time.monotonic()
        assert began - frozen >= SILENT_S
        assert quick(1_000)[0] == 1_000
        say(f"the first call after the silence took {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < 10
        # What user code had ended before or in the silence is told, and nothing of it ran again.
        assert [futures[number].result(20)[0] for number in range(1, 9)] == list(range(1, 9))
        grown = [
            (process.memory_info().rss - size) / 2**20 for process, size in zip(own, before, strict=True)
        ]
        say(f"caller and instance have grown by {grown} MiB")
        assert max(grown) < 50
        unknown = {number: future for number, future in futures.items() if number >= 100}
        assert len(unknown) == 50
        for future in unknown.values():
            refusal = future.accepted.exception(0)
            assert isinstance(refusal, AcceptanceUnknown)
            assert "Attach" in str(refusal)
        sent = [
            Sent(number, "quick", call_id=future.call_id, accepted="unknown" if number in unknown else "yes")
            for number, future in futures.items()
        ]
        verdict = judged(world, sent)
        # The calls made with `quick(...)` are not in the list.
        broken = [each for each in verdict.violations if each.promise != "unknown call"]
        assert not broken, str(verdict)


def silent_for_a_minute(broker: Broker, quick: Any, futures: dict[int, Any]) -> None:
    """Freezes the broker, calls meanwhile, and waits until the caller heard what became of these calls."""
    broker.freeze()
    over = time.monotonic() + SILENT_S
    try:
        futures.update({number: quick.async_call(number) for number in range(100, 150)})
        wait_until(lambda: all(futures[n].accepted.done() for n in range(100, 150)), 45, "callers are told")
        wait_until(lambda: time.monotonic() >= over, SILENT_S + 1)
    finally:
        broker.thaw()

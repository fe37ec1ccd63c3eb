"""Many waiting calls: one that never ends holds nobody up, nothing expires, nothing finished runs again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from confluent_kafka.admin import AdminClient

from pelton.core.call import InputPartition, InputTopic
from support.chaos_scenes import call, executing, judged
from support.chaos_world import World, world_on
from support.embedded_broker import Broker
from support.worker_instance import wait_until

FIRST = InputPartition(InputTopic.INVOCATIONS, 0)


class Peak:
    """The most memory a process was seen with, in MiB."""

    def __init__(self, pid: int) -> None:
        self.mib = 0.0
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            self.mib = max(self.mib, self._process.memory_info().rss / 2**20)

    def end(self) -> float:
        """Stops looking; the most that was seen."""
        self._stop.set()
        self._thread.join(5)
        return self.mib


def outcomes(world: World) -> int:
    """Records in the results topic."""
    topic = world.topics.results("quick")
    return sum(world.admin.ends([(topic, number) for number in range(8)]).values())


def one_that_never_ends(world: World, count: int) -> None:
    """A call without end at the head of the log, and so many behind it."""
    world.deploy_ledgers("quick", slots=16, partitions=2)
    endless = world.submit("quick", [(0, -1)], partition=0)
    world.submit("quick", [(number, 0) for number in range(1, count)])
    first = world.start()
    peak = Peak(first.child.pid)
    # `started` of the endless call, and the outcomes of all others.
    wait_until(lambda: outcomes(world) >= count, 240, "all but one have ended")
    assert peak.end() <= 200
    (place,) = (place for partition, place in world.places("quick").items() if partition == FIRST)

    def window_moved_on() -> bool:
        offset, meta = world.committed("quick")[FIRST]
        end = world.admin.ends([place])[place]
        return offset == 0 and meta is not None and meta.finished == ((1, end - 1),)

    wait_until(window_moved_on, 30, "all behind the endless call are committed as finished")
    world.ledger.poll()
    assert len(world.ledger.executions) == count
    first.kill()
    second = world.start()
    wait_until(lambda: executing(world, 2), 30, "the endless call runs again")
    world.ledger.poll()
    assert len(world.ledger.executions) == count + 1
    assert len(world.ledger.by_call) == count
    assert endless[0] not in {h for h, found in world.outcomes("quick").items() if found.outcome is not None}
    assert second.child.poll() is None


@pytest.mark.timeout(110)
def test_chaos_one_call_without_end_holds_up_no_other(chaos_broker: Broker, tmp_path: Path) -> None:
    """Behind a call that never ends the window moves on; a restart runs again only that one."""
    with world_on(chaos_broker.bootstrap_servers, tmp_path / "world") as world:
        one_that_never_ends(world, 5_000)


@pytest.mark.chaos_long
@pytest.mark.timeout(400)
def test_chaos_one_call_without_end_holds_up_no_other_of_50000(chaos_broker: Broker, tmp_path: Path) -> None:
    """The same with 50,000 waiting calls: memory stays bounded."""
    with world_on(chaos_broker.bootstrap_servers, tmp_path / "world") as world:
        one_that_never_ends(world, 50_000)


@pytest.mark.timeout(110)
def test_chaos_waiting_calls_never_expire_with_the_log(
    new_broker: Callable[..., Broker], tmp_path: Path
) -> None:
    """On a broker that forgets ordinary topics within seconds, calls of a function without instances stay."""
    forgetful = {
        "log.retention.ms": "1000",
        "log.retention.check.interval.ms": "500",
        "log.initial.task.delay.ms": "500",
    }
    broker = new_broker(forgetful)
    with world_on(broker.bootstrap_servers, tmp_path / "world") as world:
        world.deploy_ledgers("quick")
        sent = [call(world, number) for number in range(50)]
        # The broker has forgotten an ordinary topic by then: it had its chance to forget the calls, too.
        forget_an_ordinary_topic(world)
        world.start()
        figures = judged(world, sent)
        assert not figures.violations, str(figures)
        assert figures.figures["executions"] == 50


def forget_an_ordinary_topic(world: World) -> None:
    """Waits until the broker has deleted a record of a topic that does not say how long it keeps them."""
    from pelton.protocol.topics import TopicPlan

    topic = f"{world.namespace}.ordinary"
    world.admin.create_topics([TopicPlan(topic, 1, 1, {"segment.bytes": "1048576", "segment.ms": "500"})])
    for _ in range(2):
        world.send(topic, b"x", None)
    wait_until(lambda: world.admin.watermarks([(topic, 0)])[topic, 0][0] > 0, 60, "a record was forgotten")


@pytest.mark.timeout(110)
def test_chaos_idle_group_whose_offsets_are_gone_runs_nothing_again(
    chaos_broker: Broker, tmp_path: Path
) -> None:
    """When the group of an idle function has expired, its next instance runs new calls and no old one."""
    with world_on(chaos_broker.bootstrap_servers, tmp_path / "world") as world:
        world.deploy_ledgers("quick")
        first = world.start()
        sent = [call(world, number) for number in range(50)]
        wait_until(world.inputs_done, 40, "all is committed")
        assert first.end() == 0
        group = world.topics.group("quick")
        admin = AdminClient({"bootstrap.servers": chaos_broker.bootstrap_servers})
        admin.delete_consumer_groups([group])[group].result(20)
        assert world.committed("quick") == {}
        sent += [call(world, number) for number in range(50, 60)]
        world.start()
        verdict = judged(world, sent)
        assert not verdict.violations, str(verdict)
        assert verdict.figures["executions"] == 60

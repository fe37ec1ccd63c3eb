"""An instance that works for long keeps the size it had: memory, descriptors and threads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import pelton
from pelton.errors import FunctionError
from support.chaos_runs import calling, say
from support.chaos_world import World, world_on
from support.embedded_broker import Broker

BATCH = 500
WARM_UP = 20
BATCHES = 160


@dataclass(frozen=True, slots=True)
class Size:
    """What a process holds.

    Attributes:
        name: which one.
        mib: resident memory.
        descriptors: open ones.
        threads: living ones.
    """

    name: str
    mib: float
    descriptors: int
    threads: int


def sizes(world: World) -> list[Size]:
    """Of this process, which calls, of the instance, and of its executors."""
    (worker,) = world.alive
    own, instance = psutil.Process(), psutil.Process(worker.child.pid)
    found = {"caller": own, "instance": instance}
    found |= {f"executor {child.pid}": child for child in instance.children()}
    return [
        Size(name, each.memory_info().rss / 2**20, each.num_fds(), each.num_threads())
        for name, each in found.items()
    ]


def work(first: int) -> None:
    """Half a thousand calls, one in a hundred of which fails."""
    quick = pelton.function_ref("quick")
    futures = {
        number: quick.async_call(number, 0, number % 100 == 0) for number in range(first, first + BATCH)
    }
    for number, future in futures.items():
        if number % 100 == 0:
            assert isinstance(future.exception(60), FunctionError)
        else:
            assert future.result(60)[0] == number


@pytest.mark.chaos_long
@pytest.mark.timeout(400)
def test_chaos_soak_keeps_the_size_of_every_process(chaos_broker: Broker, tmp_path: Path) -> None:
    """Over 70,000 calls, 1 % failing, caller, instance and executors keep descriptors, threads and memory."""
    with world_on(chaos_broker.bootstrap_servers, tmp_path / "world") as world:
        world.deploy_ledgers("quick", slots=8)
        world.start()
        world.wait_settled(1)
        with calling(world):
            for batch in range(WARM_UP):
                work(batch * BATCH)
            before = sizes(world)
            for batch in range(WARM_UP, BATCHES):
                work(batch * BATCH)
            after = sizes(world)
    for old, new in zip(before, after, strict=True):
        say(f"{old} -> {new}")
        assert new.name == old.name, "an executor was replaced"
        assert new.descriptors <= old.descriptors + 3, (old, new)
        assert new.threads <= old.threads + 3, (old, new)
        assert new.mib <= old.mib + 15, (old, new)

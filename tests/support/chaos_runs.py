"""A whole run under fault: callers, storm, readers, and the verdict."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pelton
from support.chaos_callers import AttachingReader, Caller
from support.chaos_checker import Checker, Verdict, busy_share
from support.chaos_faults import Storm, first_share, table
from support.chaos_ledgers import Seen
from support.chaos_watch import Watch
from support.chaos_world import World, world_on
from support.embedded_broker import Broker
from support.worker_instance import wait_until


def say(text: str) -> None:
    """Progress, for who runs this by hand."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextmanager
def calling(world: World) -> Iterator[None]:
    """The SDK of this process is connected to the world."""
    pelton.connect(
        world.config.bootstrap_servers, namespace=world.namespace, key_file=str(world.config.key_file)
    )
    try:
        yield
    finally:
        pelton.close(5)


def storm(
    broker: Broker,
    folder: Path,
    *,
    seed: int,
    total: int,
    faults: Mapping[str, int],
    attached: int,
    instances: int = 3,
    slots: int = 8,
    window: int = 64,
) -> Verdict:
    """Calls through a storm of faults, then judges what became of each call.

    Args:
        broker: its own broker.
        folder: for everything written.
        seed: decides calls, faults and targets.
        total: calls, a fifth of them streams.
        faults: how many of each kind.
        attached: calls that a second process attaches to while they run, and again as many afterwards.
        instances: how many serve.
        slots: of each executor.
        window: calls open at a time.
    """
    with world_on(broker.bootstrap_servers, folder) as world:
        world.deploy_ledgers("quick", "flow", slots=slots)
        for _ in range(instances):
            world.start()
        world.wait_settled(instances)
        watch = Watch(world)
        try:
            with calling(world):
                caller = Caller(seed, total, window)
                verdict = _through(world, broker, caller, watch, seed, total, faults, attached)
        finally:
            watch.close()
        verdict.figures["kills on busy targets"] = round(busy_share(world.hits), 3)
        return verdict


def _through(
    world: World,
    broker: Broker,
    caller: Caller,
    watch: Watch,
    seed: int,
    total: int,
    faults: Mapping[str, int],
    attached: int,
) -> Verdict:
    dice = random.Random(seed)
    plan = table(seed, faults)
    first = first_share(total, len(plan))
    caller.allow(first)
    caller.start()
    wait_until(lambda: caller.ended >= first // 2, 60, "the first calls")
    sample = [call for call in list(caller.sent)[-attached:] if call.call_id]
    live = AttachingReader(world, sample, world.folder, "live")
    try:
        Storm(world, broker, caller, total, say).run(plan)
        caller.finish(180)
        readers: dict[str, Mapping[str, Seen]] = {"caller": caller.seen, "live": live.seen(240)}
    finally:
        live.close()
    wait_until(world.inputs_done, 60, "everything committed")
    late = AttachingReader(world, dice.sample(caller.sent, min(attached, total)), world.folder, "late")
    readers["late"] = late.seen(300)
    world.wait_counted()
    return Checker(world, caller.sent, readers, watch).check()

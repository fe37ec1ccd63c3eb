"""The table of faults of a run, made from a seed, and the hand that does them one after the other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from pelton_platform import process
from support.chaos_callers import Caller
from support.chaos_world import Hit, World
from support.embedded_broker import Broker
from support.worker_instance import Worker, wait_until

FROZEN_S: Final = 7.0
"""Longer than the session of 6 s: the group has given the partitions to others by then."""

BUSY_S: Final = 20.0
"""How long a target may take to have a call in flight; then it is hit idle, which counts against the run."""

BEHIND_S: Final = 60.0
"""How long the calls of the shares before the last one may take to end before the next fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of the table.

    Attributes:
        kind: "executor", "instance", "freeze", "broker kill", "broker restart".
        dice: decides the target.
    """

    kind: str
    dice: int


def table(seed: int, counts: Mapping[str, int]) -> list[Fault]:
    """So many faults of each kind, in the order and with the targets that the seed decides."""
    dice = random.Random(seed)
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    dice.shuffle(kinds)
    return [Fault(kind, dice.randrange(1 << 30)) for kind in kinds]


def first_share(total: int, faults: int) -> int:
    """How many calls are made before the first fault; with each fault and after the last go as many."""
    return total // (faults + 2)


class Storm:
    """Does the faults of a table while a caller calls, and brings everything back after each.

    Args:
        world: has so many instances when it begins, and is kept at that.
        broker: what the world runs on.
        caller: may make its calls in step with the faults, so that both end together.
        total: calls it makes.
        say: told of each fault.
    """

    def __init__(
        self, world: World, broker: Broker, caller: Caller, total: int, say: Callable[[str], None]
    ) -> None:
        self._world = world
        self._broker = broker
        self._caller = caller
        self._total = total
        self._say = say
        self._count = len(world.alive)
        self._share = 0

    def run(self, faults: Sequence[Fault]) -> None:
        """Does all of them."""
        doers: dict[str, Callable[[Fault], Hit | None]] = {
            "executor": self._kill_executor,
            "instance": self._kill_instance,
            "freeze": self._freeze,
            "broker kill": self._kill_broker,
            "broker restart": self._restart_broker,
        }
        share = first_share(self._total, len(faults))
        for done, fault in enumerate(faults):
            # Faults that outran the calls would leave most of these to the calm after the storm.
            _wait(partial(self._has_ended, share * done), BEHIND_S)
            self._share = share * (done + 2)
            began = time.monotonic()
            hit = doers[fault.kind](fault)
            what = (
                fault.kind if hit is None else f"{hit.target} with {len(hit.in_flight)} in flight, {hit.kind}"
            )
            taken, ended = time.monotonic() - began, self._caller.ended
            self._say(f"{done + 1}/{len(faults)} {what}: {taken:.1f} s, {ended} calls ended")
            assert self._caller.failure is None, self._caller.failure
        self._world.mend(self._count)

    def _has_ended(self, count: int) -> bool:
        return self._caller.ended >= count

    # ---- what can be hit ----

    def _busy_instance(self, dice: int) -> Worker:
        """An instance with calls in flight; any after a time.

        The share of calls that goes with a fault is let go now, when all is in place: before, it would have
        ended while the group settled.
        """
        self._caller.allow(self._share)
        found: list[Worker] = []

        def look() -> bool:
            found[:] = [each for each in self._world.alive if self._flying(each)]
            return bool(found)

        _wait(look, BUSY_S)
        candidates = found or self._world.alive
        return candidates[dice % len(candidates)]

    def _flying(self, worker: Worker) -> list[int]:
        """Executors of an instance that have calls in flight."""
        world = self._world
        world.ledger.poll()
        return [pid for pid in world.executors(worker) if world.ledger.open(pid)]

    def _standing(self, stand: Callable[[Worker], Hit], dice: int) -> tuple[Worker, Hit]:
        """A busy target that stands still; one whose last call ended before it stood goes on, for another."""
        deadline = time.monotonic() + BUSY_S
        while True:
            worker = self._busy_instance(dice)
            hit = stand(worker)
            if hit.in_flight or time.monotonic() >= deadline:
                return worker, hit
            self._world.go_on(worker, hit)

    def _kill_executor(self, fault: Fault) -> Hit:
        def stand(worker: Worker) -> Hit:
            pids = self._flying(worker) or self._world.executors(worker)
            return self._world.stop_executor(worker, pids[fault.dice % len(pids)])

        return self._world.kill(*self._standing(stand, fault.dice))

    def _kill_instance(self, fault: Fault) -> Hit:
        self._world.mend(self._count)
        hit = self._world.kill(*self._standing(self._world.stop_instance, fault.dice))
        self._world.start()
        return hit

    def _freeze(self, fault: Fault) -> Hit:
        world = self._world
        world.mend(self._count)
        worker, hit = self._standing(world.stop_instance, fault.dice)
        # In the first one all stand still; in others executors may end calls that nobody hears of.
        first = not any(hit.kind == "freeze" for hit in world.hits)
        world.keep_frozen(hit, executors=first or bool(fault.dice & 1))
        try:
            began = time.monotonic()
            world.wait_settled(self._count - 1)
            # The group may be quicker than the session when it had lost the member before.
            wait_until(lambda: time.monotonic() - began >= FROZEN_S, FROZEN_S + 5)
        finally:
            world.wake(worker, hit)
        return hit

    def _kill_broker(self, fault: Fault) -> None:
        del fault
        self._bounce("broker kill", self._broker.kill)

    def _restart_broker(self, fault: Fault) -> None:
        del fault
        identity = self._broker.kafka.identity
        self._bounce("broker restart", lambda: _end(identity))

    def _bounce(self, kind: str, end: Callable[[], None]) -> None:
        self._world.mend(self._count)
        self._caller.allow(self._share)

        def bounce() -> None:
            end()
            # What a dying broker leaves to the kernel may hold its port for a moment longer.
            wait_until(lambda: process.port_is_free(self._broker.port), 20, "the broker's port is free")
            self._broker.restart()

        self._world.bounce_broker(kind, bounce)


def _end(identity: process.ProcessIdentity) -> None:
    process.terminate(identity, 15.0)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Waits for a condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True

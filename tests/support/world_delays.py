"""Calls of the random world that fail for a while, and the timers of those that are tried again late."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pelton.core.call import Failure, InputPartition, InputTopic
from pelton.core.decisions import SendTimer, Start
from pelton.core.retry import RetrySpec, delay_ms
from support.world_parts import MAX_ATTEMPTS, Broken, Call

if TYPE_CHECKING:
    from support.world import World

TIMERS = InputPartition(InputTopic.RETRIES, 99)
"""How `live` names the place of a timer."""


class Delays:
    """The retry policy of the world's function, and whether attempts keep to it.

    Attributes:
        spec: the policy; delays in process, in the topic of retries, or as timers.
        fails: how many attempts of a flaky call fail.
        failed_at: when an attempt of a call failed first, by call and attempt.
        timers: written and not tombstoned, by call and attempt.
    """

    def __init__(self, rng: random.Random, on: bool) -> None:
        self.on = on
        initial = rng.choice([200, 4_000, 40_000]) if on else 100
        self.spec = RetrySpec(initial, 1.5, 60_000, 0.0, ("UNAVAILABLE",)) if on else RetrySpec()
        self.failed_at: dict[tuple[int, int], int] = {}
        self.timers: dict[tuple[bytes, int], SendTimer] = {}
        self.deadlines: dict[int, int] = {}

    def deadline(self, world: World, call: Call) -> int:
        """Until when a call must have ended, 0 for any time."""
        if not self.on or world.rng.random() < 0.8:
            return 0
        self.deadlines[call.number] = world.now_ms + world.rng.randint(2_000, 60_000)
        return self.deadlines[call.number]

    @staticmethod
    def fails(call: Call) -> int:
        """How many attempts of a call fail before one does not."""
        return call.number % (MAX_ATTEMPTS + 1) if call.kind == "flaky" else 0

    def may_end_well(self, call: Call) -> bool:
        """Whether its attempts suffice for a flaky call."""
        return call.kind == "flaky" and self.fails(call) < MAX_ATTEMPTS

    def end(self, world: World, call: Call, attempt: int) -> Failure | None:
        """How an attempt of a call ends."""
        if call.kind == "fail":
            return Failure("ValueError", "no")
        if attempt > self.fails(call):
            return None
        self.failed_at.setdefault((call.number, attempt), world.now_ms)
        world.counters["failed_attempts"] += 1
        return Failure("Flaky", "not yet", code="ABORTED", retriable=True)

    def start(self, world: World, call: Call, action: Start) -> None:
        """An attempt starts: not before its time."""
        if world.now_ms > self.deadlines.get(call.number, world.now_ms):
            raise Broken(f"D {call} started after its deadline, at {world.now_ms}")
        failed = self.failed_at.get((call.number, action.attempt - 1))
        if failed is None or call.kind != "flaky":
            return
        due = failed + delay_ms(self.spec, action.attempt - 1, 1.0)
        if world.now_ms < due:
            raise Broken(f"R {call} attempt {action.attempt} started {due - world.now_ms} ms early")
        world.counters["delayed_starts"] += 1

    def write(self, action: SendTimer) -> int:
        """The broker takes a timer."""
        self.timers[action.headers.call_id, action.headers.attempt] = action
        return len(self.timers)

    def fire(self, world: World) -> None:
        """The cron service appends what is due; dying before the tombstone, it does so twice."""
        for key, action in list(self.timers.items()):
            if action.headers.due_ms <= world.now_ms:
                world.append_input(action)
                world.counters["fired_timers"] += 1
                if not world.faults or world.rng.random() < 0.8:
                    del self.timers[key]

    def live(self, call_id: bytes) -> Iterator[tuple[InputPartition, int]]:
        """Timers of a call."""
        for found, attempt in self.timers:
            if found == call_id:
                yield TIMERS, attempt

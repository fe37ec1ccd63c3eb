"""What the random world is made of: calls, instances and what runs in them, and how a history is judged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pelton.core.call import InputPartition, InputTopic
from pelton.core.cancelling import Cancellations
from pelton.core.decisions import Commit, ReadCancellations, SendDeadLetter, SendInput, SendResult, SendTimer
from pelton.core.engine import Engine
from pelton.core.fold import Fold

if TYPE_CHECKING:
    from support.world import World

MESSAGE_MS, SESSION_MS, MAX_ATTEMPTS = 4000, 6000, 3
PARTITIONS = [InputPartition(InputTopic.INVOCATIONS, n) for n in range(3)] + [
    InputPartition(InputTopic.RETRIES, 0)
]


class Broken(AssertionError):
    """A promise did not hold; the text begins with its number."""


@dataclass(frozen=True)
class Call:
    """What the user's code does: `ok`, `stream`, `fail`, `flaky`, `nest`, or `kill-` something."""

    number: int
    kind: str
    chunks: int = 0
    ancestry: bytes = b""

    @property
    def id(self) -> bytes:
        """The call id."""
        return self.number.to_bytes(16, "big")


def random_calls(rng: random.Random, *, streams: bool, nested: bool, delays: bool) -> dict[int, Call]:
    """The calls of a history, by number."""
    kinds = ["ok", "stream" if streams else "ok", "fail", "kill-executor", "kill-instance", "flaky"]
    calls: dict[int, Call] = {}
    for number in range(1, rng.randint(4, 10)):
        weights = [4, 5, 2, 1, 1, 9 * delays]
        kind = "nest" if nested and rng.random() < 0.7 else rng.choices(kinds, weights)[0]
        chunks = rng.randint(1, 4) if streams and kind not in ("nest", "flaky") else 0
        calls[number] = Call(number, kind, chunks)
    return calls


@dataclass(eq=False)
class Sent:
    """A record in a producer's queue."""

    action: SendResult | SendDeadLetter | SendInput | SendTimer
    at_ms: int


@dataclass(eq=False)
class Execution:
    """User code running in an executor."""

    id: int
    run_id: int
    call: Call
    executor: int
    attempt: int = 1
    step: int = 0
    child: Call | None = None
    asked: bool = False
    granted: bool = False
    to_stop: bool = False
    deadly: bool = False


@dataclass(eq=False)
class Instance:
    """One worker process: the engine, its producer's queue, its executors."""

    name: str
    engine: Engine
    member: int = 0
    generation: int = -1
    heartbeat_ms: int = 0
    frozen_until: int = -1
    stalled_until: int = -1
    queue: list[Sent] = field(default_factory=list)
    inbox: list[Callable[[], None]] = field(default_factory=list)
    commits: list[tuple[int, int, Commit]] = field(default_factory=list)
    serving: bool = False
    positions: dict[InputPartition, int] = field(default_factory=dict)
    revoking: set[InputPartition] = field(default_factory=set)
    paused: set[InputPartition] = field(default_factory=set)
    executions: dict[int, Execution] = field(default_factory=dict)
    shared: int = 0
    cancellations: Cancellations = field(default_factory=Cancellations)
    cancels_read: int = 0
    reads_from_ms: int = 0
    reads: list[Callable[[], None]] = field(default_factory=list)
    cancels_before: dict[InputPartition, int] = field(default_factory=dict)


class Cancels:
    """The topic of requests to cancel, and how instances read it.

    Attributes:
        chance: of a request in each round; without one, reading takes no time.
        asked: whose end was asked for, in order.
    """

    def __init__(self, chance: float) -> None:
        self.chance = chance
        self.asked: list[Call] = []

    def concern(self, call: Call, end: int | None = None) -> bool:
        """Whether one of the first requests is about a call, or about one above it."""
        above = {call.ancestry[at : at + 16] for at in range(0, len(call.ancestry), 16)}
        return any(each.id == call.id or each.id in above for each in self.asked[:end])

    def perhaps(self, world: World) -> None:
        """Somebody may ask for the end of a call."""
        if self.chance and world.rng.random() < self.chance:
            self.asked.append(world.rng.choice(list(world.calls.values())))
            world.trace.append(f"{world.now_ms} cancel {self.asked[-1]}")

    def read(self, world: World, instance: Instance, end: int) -> None:
        """An instance reads requests."""
        if instance.cancels_read < end:
            fresh = self.asked[instance.cancels_read : end]
            instance.cancels_read = end
            instance.cancellations.add({call.id: "r" for call in fresh})
            instance.engine.cancelled(world.now_ms)

    def ask_to_read(self, world: World, instance: Instance, action: ReadCancellations) -> None:
        """An instance wants to have read all there are by now; that takes its time."""
        end = len(self.asked)

        def answer() -> None:
            self.read(world, instance, end)
            instance.engine.cancellations_read(world.now_ms, action.partition, action.epoch)

        if not self.chance:
            answer()
            return
        instance.reads.append(answer)
        instance.reads_from_ms = world.now_ms + world.rng.randint(0, 4000)


class Keys:
    """Keys of calls, and what the order of their starts has to be.

    Attributes:
        ordered: whether the function has key order.
        started: offset of the latest call of a key that an owner started.
    """

    def __init__(self, ordered: bool) -> None:
        self.ordered = ordered
        self.started: dict[bytes, int] = {}

    def of(self, call: Call) -> bytes:
        """The record key of a call: one of two, or its id; nested calls have none of the two."""
        keyed = self.ordered and not call.ancestry and call.number % 5
        return b"k%d" % (call.number % 2) if keyed else call.id

    def partition(self, world: World, call: Call) -> InputPartition:
        """Where the record of a call goes."""
        key = self.of(call)
        return PARTITIONS[world.rng.randrange(3) if key == call.id else key[1] - ord("0")]

    def start(self, world: World, instance: Instance, call: Call) -> None:
        """A call starts: among those with its key nothing that came after it may have started before.

        Owners that were expelled while they were frozen may start what they still hold.
        """
        key = self.of(call)
        if key == call.id:
            return
        partition = self.partition(world, call)
        if partition not in world.owned.get(instance.member, ()) or instance.member not in world.members:
            return
        offset = next(at for at, (found, _) in enumerate(world.logs[partition]) if found.call_id == call.id)
        if offset < self.started.get(key, -1):
            raise Broken(f"K {call} started after the call at {self.started[key]} of its key {key!r}")
        self.started[key] = offset
        world.counters["keyed_starts"] += 1


def folded(world: World, call: Call) -> tuple[Fold, list[bytes]]:
    """All results of a call, folded, and the chunks that count in the end."""
    fold = world.fold_type()
    chunks: list[bytes] = []
    for result in [each for each in world.results if each.call_id == call.id]:
        restarts = fold.restarts
        fresh = fold.feed(result)
        if fold.restarts > restarts:
            world.counters["restarts"] += 1
            chunks.clear()
        chunks.extend(fresh)
    return fold, chunks


def judge_call(world: World, call: Call, fold: Fold, chunks: list[bytes]) -> None:
    """P2, P3 and P7 for one call, at the end of a history.

    Args:
        world: the history.
        call: which call.
        fold: all its results, folded.
        chunks: what a reader of them saw.

    Raises:
        Broken: a promise does not hold.
    """
    outcome = fold.outcome
    if outcome is None:
        raise Broken(f"P2 {call} has no outcome")
    if fold.restarts and not world.restart:
        raise Broken(f"P3 {call} began again for a reader that had seen its chunks")
    parts = [chunk.decode().split(":") for chunk in chunks]
    if [int(step) for _, step in parts] != list(range(len(parts))):
        raise Broken(f"P3 {call} chunks {parts}")
    if len({who for who, _ in parts}) > 1:
        raise Broken(f"P3 {call} mixes executions {parts}")
    if outcome.failure is not None and outcome.failure.code == "CANCELLED":
        if not world.cancels.concern(call):
            raise Broken(f"C {call} ended as cancelled, and nobody asked for that")
        world.counters["ended_cancelled"] += 1
        return
    if outcome.failure is not None and outcome.failure.code == "DEADLINE_EXCEEDED":
        if call.number not in world.delays.deadlines or call.id not in world.dead:
            raise Broken(f"D {call} ended as too late without a deadline, or without a dead letter")
        world.counters["ended_late"] += 1
        return
    if not world.executions[call.number]:
        if outcome.failure is None or outcome.failure.code != "UNAVAILABLE":
            raise Broken(f"P2 {call} ended {outcome} and never ran")
        # Deliveries are counted, not executions: each of them was lost before it began.
        world.counters["never_ran"] += 1
    if outcome.failure is None:
        if len(parts) != call.chunks:
            raise Broken(f"P3 {call} ended well with {parts}")
        if parts and {who for who, _ in parts} != {outcome.items[0].decode()}:
            raise Broken(f"P3 {call} has chunks of another execution than its outcome {outcome}")
        if call.kind not in ("ok", "stream", "nest") and not world.delays.may_end_well(call):
            raise Broken(f"P2 {call} ended well")
    else:
        if call.id not in world.dead:
            raise Broken(f"P7 {call} was given up without a dead letter")
        granted = world.delays.may_end_well(call) and call.number not in world.delays.deadlines
        if granted and outcome.failure.code != "UNAVAILABLE":
            raise Broken(f"R {call} was given up before its attempts were used: {outcome.failure}")
        if call.kind.startswith("kill") and outcome.failure.code != "UNAVAILABLE":
            raise Broken(f"P7 {call} ended {outcome.failure}")
    if call.kind.startswith("kill") and world.deaths[call.number] > 2 * MAX_ATTEMPTS * (MAX_ATTEMPTS + 1):
        raise Broken(f"P7 {call} killed {world.deaths[call.number]} times")

"""What the random world is made of: calls, instances and what runs in them, and how a history is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pelton.core.call import InputPartition, InputTopic
from pelton.core.decisions import Commit, SendDeadLetter, SendInput, SendResult
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
    """What the user's code does: `ok`, `stream`, `fail`, `kill-executor`, `kill-instance`, `nest`."""

    number: int
    kind: str
    chunks: int = 0
    ancestry: bytes = b""

    @property
    def id(self) -> bytes:
        """The call id."""
        return self.number.to_bytes(16, "big")


@dataclass(eq=False)
class Sent:
    """A record in a producer's queue."""

    action: SendResult | SendDeadLetter | SendInput
    at_ms: int


@dataclass(eq=False)
class Execution:
    """User code running in an executor."""

    id: int
    run_id: int
    call: Call
    executor: int
    step: int = 0
    child: Call | None = None
    asked: bool = False
    granted: bool = False


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
    parts = [chunk.decode().split(":") for chunk in chunks]
    if [int(step) for _, step in parts] != list(range(len(parts))):
        raise Broken(f"P3 {call} chunks {parts}")
    if len({who for who, _ in parts}) > 1:
        raise Broken(f"P3 {call} mixes executions {parts}")
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
        if call.kind not in ("ok", "stream", "nest"):
            raise Broken(f"P2 {call} ended well")
    else:
        if call.id not in world.dead:
            raise Broken(f"P7 {call} was given up without a dead letter")
        if call.kind.startswith("kill") and outcome.failure.code != "UNAVAILABLE":
            raise Broken(f"P7 {call} ended {outcome.failure}")
    if call.kind.startswith("kill") and world.deaths[call.number] > 2 * MAX_ATTEMPTS * (MAX_ATTEMPTS + 1):
        raise Broken(f"P7 {call} killed {world.deaths[call.number]} times")

"""How many instances a container should have: from what waits and runs, and what it needed lately."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Bounds:
    """What limits and shapes the number of instances of a container.

    Attributes:
        min_instances: never fewer, also when nothing waits.
        max_instances: never more, whatever waits.
        slots: attempts one instance runs at the same time, per function.
        keep_warm_ms: how long an instance stays after it was last needed.
    """

    min_instances: int
    max_instances: int
    slots: int
    keep_warm_ms: int


class Load(NamedTuple):
    """What one function has to do.

    Attributes:
        waiting: calls in its input topics that no instance runs yet.
        running: attempts running now.
    """

    waiting: int
    running: int


class Need(NamedTuple):
    """So many instances were needed at that time."""

    at_ms: int
    instances: int


Needs = tuple[Need, ...]
"""What was needed lately and may still count: times rise, numbers fall strictly."""


def needed(loads: Iterable[Load], slots: int) -> int:
    """Instances that can run everything at once: those of the function that has most to do.

    Functions of one container do not share slots, so the busiest one decides.

    Raises:
        ValueError: `slots` is below 1.
    """
    if slots < 1:
        raise ValueError(f"an instance has at least one slot, not {slots}")
    return max((-(-max(0, load.waiting + load.running) // slots) for load in loads), default=0)


def remember(needs: Needs, now_ms: int, instances: int, keep_warm_ms: int) -> Needs:
    """Adds what is needed now and forgets what no longer counts.

    A need counts for `keep_warm_ms`; one that a later need equals or exceeds is forgotten at once.
    """
    kept = tuple(need for need in needs if need.at_ms + keep_warm_ms > now_ms and need.instances > instances)
    return (*kept, Need(now_ms, instances))


def desired(bounds: Bounds, needs: Needs) -> int:
    """The number of instances to have: the highest need that counts, within the bounds.

    So instances start as soon as calls wait, and stop one keep-warm time after they were last needed.
    """
    highest = max((need.instances for need in needs), default=0)
    return max(bounds.min_instances, min(bounds.max_instances, highest))

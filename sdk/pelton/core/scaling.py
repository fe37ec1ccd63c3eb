"""How many instances a container should have: by what waits, runs and arrives, and was needed lately."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

AT_ONCE: Final = 4
"""So many instances may start together; beyond it as many as are ready: a machine is not stormed."""

DRAIN_S: Final = 5.0
"""Calls that wait should have begun after so long, if they go on to take what they took before."""

PATIENCE_MS: Final = 5_000
"""When a call has waited for so long, what was known of the function was wrong, or too little."""

BUSY: Final = 0.8
"""Share of the slots that may be taken on average: calls do not come evenly."""

IDLE: Final = 0.6
"""An instance too many is kept while without it more than this share would be taken: nothing swings."""

CPU_SHARE: Final = 0.7
"""Share of its cores that an instance of a plain program may use on average."""

_STEADY: Final = 0.1
"""Calls a second: with fewer of them no slot has to be free for the next one."""

_TOLERANCE: Final = 0.1
"""A share of CPU so near to the wanted one changes nothing."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What limits and shapes the number of instances of a container.

    Attributes:
        min_instances: never fewer, also when nothing waits.
        max_instances: never more, whatever waits.
        slots: attempts one instance runs at the same time, per function.
        keep_warm_ms: how long the last instance stays after it was last needed.
        cool_down_ms: how long fewer instances must have been enough before some are stopped.
    """

    min_instances: int
    max_instances: int
    slots: int
    keep_warm_ms: int
    cool_down_ms: int


class Load(NamedTuple):
    """What one function has to do.

    Attributes:
        waiting: calls in its input topics that no instance runs yet.
        running: attempts running, on average of the last seconds.
        arriving: calls that arrive in a second.
        service_s: seconds that one attempt takes a slot; None while no call has ended yet.
        oldest_ms: how long the oldest waiting call has waited.
        partitions: of its invocations: more instances than these would get nothing to do.
    """

    waiting: int
    running: float
    arriving: float = 0.0
    service_s: float | None = None
    oldest_ms: int = 0
    partitions: int = 1_000


class Need(NamedTuple):
    """So many instances were needed at that time."""

    at_ms: int
    instances: int


Needs = tuple[Need, ...]
"""What was needed lately and may still count: times rise, numbers fall strictly."""


class Decision(NamedTuple):
    """How many instances there should be, and why in a few words."""

    instances: int
    reason: str


def needed(loads: Iterable[Load], slots: int, current: int = 0) -> Decision:
    """Instances that do the work of the function that needs most of them.

    Functions of one container do not share slots, so the busiest one decides.

    Args:
        loads: what its functions have to do.
        slots: of one instance, per function.
        current: instances there should be by the decision before: a few too many of them are kept.

    Raises:
        ValueError: `slots` is below 1.
    """
    if slots < 1:
        raise ValueError(f"an instance has at least one slot, not {slots}")
    return max(
        (_needed_by(load, slots, current) for load in loads), default=_IDLE, key=lambda one: one.instances
    )


_IDLE: Final = Decision(0, "nothing waits or runs")


def _needed_by(load: Load, slots: int, current: int) -> Decision:
    waiting, running = max(0, load.waiting), max(0.0, load.running)
    # An average fades out slowly: what is left of one attempt after seconds is none.
    present = waiting + math.ceil(running - 0.05)
    if present <= 0:
        return _IDLE
    if load.arriving >= _STEADY:
        present = waiting + math.ceil(running / IDLE)
    most = min(math.ceil(present / slots), max(1, load.partitions))
    counts = f"{waiting} waiting, {running:.3g} running"
    if load.service_s is None:
        return Decision(most, f"{counts}, and no call has ended yet")
    if waiting and load.oldest_ms >= PATIENCE_MS:
        return Decision(most, f"{counts}, the oldest for {load.oldest_ms / 1000:.0f} s")
    busy = max(running, load.arriving * load.service_s) + waiting * load.service_s / DRAIN_S
    kept = min(current, math.ceil(busy / (slots * IDLE)))
    enough = max(1, kept, math.ceil(busy / (slots * BUSY)))
    reason = f"{counts}, {load.arriving:.3g} a second of {load.service_s * 1000:.3g} ms each"
    return Decision(min(enough, most), reason)


def needed_for_lag(lag: int, per_instance: int, partitions: int) -> Decision:
    """Instances of a program that reads a topic: one for so many unread records, at most one a partition."""
    instances = min(-(-max(0, lag) // per_instance), partitions)
    return Decision(instances, f"{max(0, lag)} records unread in {partitions} partitions")


def needed_for_cpu(used: float, cores: float, instances: int) -> Decision:
    """Instances that keep what a program uses near the wanted share.

    Args:
        used: cores that all instances use together.
        cores: what one instance may use.
        instances: how many that are.
    """
    if instances < 1 or cores <= 0:
        return Decision(1, "no instance runs yet")
    share = used / (cores * instances)
    reason = f"{share:.0%} of their CPU used by {instances}"
    if abs(share / CPU_SHARE - 1) <= _TOLERANCE:
        return Decision(instances, reason)
    return Decision(max(1, math.ceil(used / (cores * CPU_SHARE))), reason)


def remember(needs: Needs, now_ms: int, instances: int, kept_ms: int) -> Needs:
    """Adds what is needed now and forgets what no longer counts.

    Args:
        needs: what was remembered before.
        now_ms: milliseconds on any clock that never goes back.
        instances: what is needed now.
        kept_ms: for how long a need may count; one that a later need equals or exceeds is forgotten at once.
    """
    kept = tuple(need for need in needs if need.at_ms + kept_ms > now_ms and need.instances > instances)
    return (*kept, Need(now_ms, instances))


def desired(bounds: Bounds, needs: Needs, now_ms: int, ready: int | None = None) -> int:
    """The number of instances to have: the highest need that counts, within the bounds.

    So instances start as soon as they are needed, are stopped once fewer were enough for a cool-down time,
    and the last one goes one keep-warm time after anything was needed.

    Args:
        bounds: of the container.
        needs: what `remember` keeps.
        now_ms: on the same clock.
        ready: instances that are ready, by which the number that starts together is bounded; None for no
            such bound.
    """
    # What is needed now counts in any case, also where nothing is remembered.
    highest = needs[-1].instances if needs else 0
    for need in needs:
        if need.at_ms + bounds.cool_down_ms > now_ms:
            highest = max(highest, need.instances)
    if any(need.instances for need in needs if need.at_ms + bounds.keep_warm_ms > now_ms):
        highest = max(1, highest)
    if ready is not None:
        highest = min(highest, max(ready * 2, ready + AT_ONCE))
    return max(bounds.min_instances, min(bounds.max_instances, highest))

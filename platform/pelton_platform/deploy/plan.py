"""What the local deployer does next: from the containers there should be and the instances there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

BACKOFF_FIRST_MS = 500
BACKOFF_MAX_MS = 30_000
HEALTHY_AFTER_MS = 30_000
"""An instance that was ready for so long ended for a reason of its own: counting starts anew."""

SILENT_AFTER_MS = 30_000
"""An instance is given up when its process lives but says nothing: longer than any pause it recovers from."""

KILL_MARGIN_MS = 5_000
"""What a stopping instance gets beyond its drain time to leave its groups and write its last status."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A container as it should be.

    Attributes:
        container: Its name.
        version: The version to run.
        count: How many instances.
        spares_busy: Whether one that runs attempts is left alone where fewer are needed, since it would not
            finish them in its drain time.
    """

    container: str
    version: int
    count: int
    spares_busy: bool = False


@dataclass(frozen=True, slots=True)
class Live:
    """An instance whose process runs. Times are monotonic milliseconds.

    Attributes:
        instance: Its id.
        container: Its container.
        version: Container version it runs.
        started_ms: When it was started.
        ready_ms: When it was first seen ready; None when it was not yet.
        heard_ms: When it was last heard of (its start counts).
        running: Attempts it runs.
        slots: Room for attempts.
        reason: What it says is wrong with it.
        stopping_ms: When it was told to stop; None when it was not.
    """

    instance: str
    container: str
    version: int
    started_ms: int
    ready_ms: int | None
    heard_ms: int
    running: int = 0
    stopping_ms: int | None = None
    slots: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Crashes:
    """How often a version of a container ended by itself lately.

    Attributes:
        version: The version.
        count: In a row, without a healthy time between.
        last_ms: When the last one ended.
        reason: How the last one ended.
    """

    version: int
    count: int
    last_ms: int
    reason: str


class Start(NamedTuple):
    """Start an instance."""

    container: str
    version: int


class Stop(NamedTuple):
    """Tell an instance to finish what runs and end."""

    instance: str
    why: str


class Kill(NamedTuple):
    """End an instance that did not end when told, or that is silent."""

    instance: str
    why: str


Action = Start | Stop | Kill


def backoff_ms(crashes: int) -> int:
    """How long to wait before the next start; the first crash is answered at once."""
    if crashes <= 1:
        return 0
    return int(min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** min(crashes - 2, 16)))


def next_start_ms(crashes: Crashes | None, version: int) -> int:
    """When a version may be started; 0 for at once."""
    if crashes is None or crashes.version != version:
        return 0
    return crashes.last_ms + backoff_ms(crashes.count)


def after_exit(crashes: Crashes | None, ended: Live, now_ms: int, reason: str) -> Crashes | None:
    """Count the end of an instance that nobody asked for; one that was told to stop is no crash."""
    if ended.stopping_ms is not None:
        return crashes
    healthy = ended.ready_ms is not None and now_ms - ended.ready_ms >= HEALTHY_AFTER_MS
    if crashes is None or crashes.version != ended.version or healthy:
        if crashes is not None and crashes.version > ended.version:
            return crashes
        return Crashes(ended.version, 1, now_ms, reason)
    return replace(crashes, count=crashes.count + 1, last_ms=now_ms, reason=reason)


def plan(
    now_ms: int,
    workloads: Mapping[str, Workload],
    live: Sequence[Live],
    crashes: Mapping[str, Crashes],
    drain_ms: int,
) -> list[Action]:
    """Decide what to start, stop and kill now.

    Args:
        now_ms: Monotonic milliseconds.
        workloads: The containers there should be, by name.
        live: The instances there are.
        crashes: Crashes of each container, by name.
        drain_ms: How long a stopping instance may take.

    Returns:
        Actions in order. The same arguments give the same actions; nothing to do gives none.
    """
    actions: list[Action] = []
    by_container: dict[str, list[Live]] = {}
    for one in live:
        if one.stopping_ms is not None:
            if now_ms - one.stopping_ms >= drain_ms + KILL_MARGIN_MS:
                actions.append(Kill(one.instance, "it did not end in its drain time"))
        elif one.ready_ms is not None and now_ms - one.heard_ms >= SILENT_AFTER_MS:
            actions.append(Kill(one.instance, f"it has said nothing for {(now_ms - one.heard_ms) // 1000} s"))
        else:
            by_container.setdefault(one.container, []).append(one)
    for container, instances in by_container.items():
        if container not in workloads:
            actions += [Stop(one.instance, "its container was removed") for one in instances]
    for workload in workloads.values():
        mine = by_container.get(workload.container, [])
        actions += _plan_one(now_ms, workload, mine, crashes.get(workload.container))
    return actions


def _plan_one(now_ms: int, workload: Workload, mine: Sequence[Live], crashes: Crashes | None) -> list[Action]:
    actions: list[Action] = []
    current = [one for one in mine if one.version == workload.version]
    missing = workload.count - len(current)
    if missing > 0 and now_ms >= next_start_ms(crashes, workload.version):
        # After a crash one instance shows whether the version runs at all.
        careful = crashes is not None and crashes.version == workload.version and crashes.count > 1
        actions += [Start(workload.container, workload.version)] * (1 if careful else missing)
    ready = sum(one.ready_ms is not None for one in current)
    if ready >= workload.count:
        actions += [
            Stop(one.instance, f"version {workload.version} has replaced it")
            for one in mine
            if one.version != workload.version
        ]
    if missing < 0:
        # Those that are of least use go first: not ready, then idle, then youngest.
        current.sort(key=lambda one: (one.ready_ms is not None, one.running, -one.started_ms, one.instance))
        actions += [
            Stop(one.instance, "fewer instances are needed")
            for one in current[:-missing]
            if not (workload.spares_busy and one.running)
        ]
    return actions

"""Scaling: from what was counted, heard and measured to how many instances there should be, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pelton.core.flow import Flow
from pelton.core.scaling import (
    Bounds,
    Decision,
    Load,
    Need,
    Needs,
    desired,
    needed,
    needed_for_cpu,
    needed_for_lag,
    remember,
)
from pelton.core.spec import ContainerSpec, FunctionSpec
from pelton_platform.deploy.backlog import Count
from pelton_platform.deploy.port import READY, ContainerState

BY_HAND: Final = "set by hand"
"""The reason of a number of instances that somebody has set."""


@dataclass(frozen=True, slots=True)
class Lag:
    """What a program has not read.

    Attributes:
        unread: Records.
        partitions: Of the topic; 0 when nothing is known, and `reason` says why.
        reason: Why nothing is known.
    """

    unread: int = 0
    partitions: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Scaling:
    """One decision for one container, with what led to it.

    Attributes:
        wanted: Instances there should be.
        reason: Why.
        waiting: Calls, or records, that wait.
        running: Attempts that run.
        slots: Room for attempts.
        arriving: Calls that arrive in a second.
        service_ms: Milliseconds that a call takes a slot; None while that is not known.
        oldest_ms: How long the oldest waiting call has waited.
        spare_busy: Whether instances that run attempts are left alone.
    """

    wanted: int
    reason: str
    waiting: int = 0
    running: int = 0
    slots: int = 0
    arriving: float = 0.0
    service_ms: float | None = None
    oldest_ms: int = 0
    spare_busy: bool = False


class Scaler:
    """Remembers what flowed and what was needed, and decides.

    Args:
        keep_warm_ms: How long the last instance stays after it was needed.
        cool_down_ms: How long fewer instances must have been enough before some are stopped.
        drain_ms: How long a stopping instance may take.
    """

    def __init__(self, keep_warm_ms: int, cool_down_ms: int, drain_ms: int) -> None:
        self._keep_warm_ms = keep_warm_ms
        # Whoever wants instances to go at once wants so of all of them.
        self._cool_down_ms = min(cool_down_ms, keep_warm_ms)
        self._drain_ms = drain_ms
        self._flows: dict[str, Flow] = {}
        self._needs: dict[str, Needs] = {}
        self._wanted: dict[str, int] = {}
        self._counted_ms = -1

    def found(self, container: str, instances: int, now_ms: int) -> None:
        """Take note of instances from before: they were needed until now, as far as anybody knows."""
        self._needs[container] = (Need(now_ms, instances),)

    def observe(
        self,
        now_ms: int,
        counts: Mapping[str, Count],
        containers: Mapping[str, ContainerSpec],
        states: Mapping[str, ContainerState],
    ) -> None:
        """Take in one look at the backlog; the same look may be given again and changes nothing.

        Args:
            now_ms: When it was looked, monotonic milliseconds.
            counts: Calls by function.
            containers: Specs by name.
            states: What there is, by container.
        """
        if now_ms <= self._counted_ms:
            return
        self._counted_ms = now_ms
        for spec in containers.values():
            hosted = [name for name in spec.functions if name in counts]
            unfinished = sum(counts[name].unfinished for name in hosted)
            state = states.get(spec.name)
            running = 0 if state is None else sum(one.running for one in state.instances)
            for name in hosted:
                count = counts[name]
                # An instance tells how much it runs, not of what: functions of one container share it out.
                share = running * count.unfinished // unfinished if unfinished else 0
                self._flows.setdefault(name, Flow()).observe(now_ms, count.arrived, count.unfinished, share)
        for name in self._flows.keys() - counts.keys():
            del self._flows[name]
        # A container of the same name that comes later has needs of its own.
        for name in self._wanted.keys() - containers.keys():
            del self._wanted[name]
            self._needs.pop(name, None)

    def decide(
        self,
        spec: ContainerSpec,
        functions: Mapping[str, FunctionSpec],
        state: ContainerState | None,
        lag: Lag | None,
        now_ms: int,
    ) -> Scaling:
        """Decide how many instances a container should have now.

        Args:
            spec: Its spec.
            functions: Specs of functions by name.
            state: What there is of it; None for nothing.
            lag: What its program has not read, where that decides.
            now_ms: Monotonic milliseconds.
        """
        instances = () if state is None else state.instances
        ready = sum(one.state == READY for one in instances)
        loads = [
            self._flows[name].load(functions[name].partitions)
            for name in spec.functions
            if name in functions and name in self._flows
        ]
        if spec.fixed_instances is not None:
            want, wanted = Decision(spec.fixed_instances, BY_HAND), spec.fixed_instances
        else:
            want = self._needed(spec, loads, state, lag)
            wanted = self._within(spec, want.instances, ready, now_ms)
        self._wanted[spec.name] = wanted
        slowest = max((load.service_s or 0.0 for load in loads), default=0.0)
        return Scaling(
            wanted=wanted,
            reason=_reason(spec, want, wanted),
            waiting=sum(max(0, load.waiting) for load in loads) if loads else lag.unread if lag else 0,
            running=sum(one.running for one in instances),
            slots=sum(one.slots for one in instances),
            arriving=round(sum(load.arriving for load in loads), 3),
            service_ms=round(slowest * 1000, 3) if slowest else None,
            oldest_ms=max((load.oldest_ms for load in loads), default=0),
            # Twice the mean: few calls take longer, and those are handed on.
            spare_busy=not slowest or slowest * 2000 > self._drain_ms,
        )

    def _needed(
        self, spec: ContainerSpec, loads: list[Load], state: ContainerState | None, lag: Lag | None
    ) -> Decision:
        if not spec.entrypoint:
            return needed(loads, max(1, spec.max_concurrent_requests), self._wanted.get(spec.name, 0))
        if spec.lag is not None:
            if lag is None or not lag.partitions:
                known = self._wanted.get(spec.name, spec.min_instances)
                return Decision(known, "" if lag is None else lag.reason)
            return needed_for_lag(lag.unread, spec.lag.per_instance, lag.partitions)
        if spec.min_instances == spec.max_instances or state is None:
            return Decision(spec.least_instances, "min_instances")
        ready = [one for one in state.instances if one.state == READY]
        if len(ready) < self._wanted.get(spec.name, 0):
            return Decision(self._wanted[spec.name], "instances start")
        return needed_for_cpu(sum(one.cpu for one in ready), (spec.cpu or 1000) / 1000, len(ready))

    def _within(self, spec: ContainerSpec, instances: int, ready: int, now_ms: int) -> int:
        bounds = Bounds(
            spec.least_instances,
            spec.max_instances,
            max(1, spec.max_concurrent_requests),
            self._keep_warm_ms,
            self._cool_down_ms,
        )
        kept_ms = max(self._keep_warm_ms, self._cool_down_ms)
        needs = remember(self._needs.get(spec.name, ()), now_ms, instances, kept_ms)
        self._needs[spec.name] = needs
        return desired(bounds, needs, now_ms, ready)


def _reason(spec: ContainerSpec, want: Decision, wanted: int) -> str:
    """Why there should be so many, when that is not what is needed."""
    if want.instances == wanted or spec.fixed_instances is not None:
        return want.reason
    if wanted == spec.max_instances and want.instances > wanted:
        return f"{want.reason}; {want.instances} would be of use, max_instances is {wanted}"
    if wanted == spec.min_instances and want.instances < wanted:
        return f"{want.reason}; min_instances is {wanted}"
    if want.instances > wanted:
        return f"{want.reason}; {want.instances} are needed, a few start at a time"
    return f"{want.reason}; {want.instances} are enough, the others cool down"

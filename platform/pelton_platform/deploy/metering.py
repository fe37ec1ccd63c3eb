"""What instances use of this machine, averaged over the last seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from pelton_platform import usage

EVERY_S: Final = 2.0
"""How often is measured."""

SMOOTH_S: Final = 10.0
"""Time constant of the average of CPU."""


class Use(NamedTuple):
    """What one instance uses.

    Attributes:
        cpu: Cores, on average.
        memory: Bytes resident.
    """

    cpu: float = 0.0
    memory: int = 0


class Metering:
    """Measures trees of processes now and then."""

    def __init__(self) -> None:
        self._measured_s = -math.inf
        self._spent: dict[str, float] = {}
        self._use: dict[str, Use] = {}

    def measure(self, now_s: float, pids: Mapping[str, int]) -> None:
        """Measure if it is time to.

        Args:
            now_s: Monotonic seconds.
            pids: Pid of the first process of each instance.
        """
        passed = now_s - self._measured_s
        if passed < EVERY_S or not pids:
            return
        self._measured_s = now_s
        found = usage.measure(pids.values())
        use = {}
        for instance, pid in pids.items():
            taken = found[pid]
            before = self._spent.get(instance)
            # What it used to load is no load: the average begins at nothing, with the second look.
            average = self._use.get(instance, Use()).cpu
            if before is not None:
                keep = math.exp(-passed / SMOOTH_S)
                average = average * keep + max(0.0, taken.cpu_s - before) / passed * (1 - keep)
            use[instance] = Use(round(average, 3), taken.memory)
            self._spent[instance] = taken.cpu_s
        self._use = use
        self._spent = {instance: self._spent[instance] for instance in pids}

    def of(self, instance: str) -> Use:
        """Return what an instance used when it was measured last."""
        return self._use.get(instance, Use())

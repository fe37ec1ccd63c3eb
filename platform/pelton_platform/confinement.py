"""Limits of memory and CPU that hold for a process and all it starts: by control groups, else by looking."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pelton_platform import cgroups, telemetry, usage
from pelton_platform.cgroups import Cgroups, Group

LOOK_S: Final = 0.1
"""How often resident memory is looked at where no control group bounds it."""

_log = telemetry.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may use.

    Attributes:
        memory: Bytes, with all it starts; 0 for any.
        cpu: Thousandths of a core; 0 for any.
    """

    memory: int = 0
    cpu: int = 0


NO_LIMITS: Final = Limits()
"""Whatever the machine has."""


@functools.cache
def available() -> Cgroups:
    """Return where this process may make control groups; looked for once."""
    return cgroups.find()


def ways(found: Cgroups) -> tuple[str, str]:
    """Say by what memory and CPU are bounded on this machine."""
    group = f"control groups v{found.version}"
    memory = group if found.memory else f"resident memory, looked at every {LOOK_S * 1000:.0f} ms"
    if found.cpu:
        return memory, group
    return memory, "the cores that a process may run on" if _has_affinity() else "nothing: it has no limit"


class Confinement:
    """Holds one process, and all that it starts, to limits.

    Args:
        limits: What it may use.
        name: Unique on this machine; names its control group.
        on_exceeded: Called once when memory is exceeded where nothing but looking bounds it, on a thread of
            its own: the process is to be ended then.
        groups: Where control groups are made; None for `available()`.
    """

    def __init__(
        self,
        limits: Limits,
        name: str,
        on_exceeded: Callable[[], None],
        groups: Cgroups | None = None,
    ) -> None:
        self._limits = limits
        self._on_exceeded = on_exceeded
        self._group: Group | None = None
        self._peak = 0
        self._exceeded = False
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        found = groups if groups is not None else available() if limits != NO_LIMITS else Cgroups()
        self._by_group = Limits(limits.memory if found.memory else 0, limits.cpu if found.cpu else 0)
        if self._by_group != NO_LIMITS:
            try:
                self._group = Group(found, name, self._by_group.memory, self._by_group.cpu)
            except OSError as error:
                self._do_without(error)

    def hold(self, pid: int) -> None:
        """Hold a process that has just been started."""
        if self._group is not None:
            try:
                self._group.add(pid)
            except OSError as error:
                self._group.remove()
                self._do_without(error)
        if self._limits.cpu and not self._by_group.cpu:
            _pin(pid, math.ceil(self._limits.cpu / 1000))
        if self._limits.memory and not self._by_group.memory:
            self._watcher = threading.Thread(target=self._watch, args=(pid,), name="memory", daemon=True)
            self._watcher.start()

    def exceeded(self) -> bool:
        """Say whether it took more memory than it may, and was ended for it."""
        return self._exceeded or (self._group is not None and self._group.kills() > 0)

    def peak(self) -> int:
        """Return the most memory it took, in bytes; 0 when nobody looked."""
        return max(self._peak, self._group.peak() if self._group is not None else 0)

    def close(self) -> None:
        """After the end of the process."""
        self._ended.set()
        if self._group is not None:
            self._group.remove()

    def _do_without(self, error: OSError) -> None:
        _log.warning("no-control-group", reason=str(error))
        self._group, self._by_group = None, NO_LIMITS

    def _watch(self, pid: int) -> None:
        while not self._ended.wait(LOOK_S):
            taken = usage.measure([pid])[pid]
            if not taken.processes:
                return
            self._peak = max(self._peak, taken.memory)
            if taken.memory > self._limits.memory:
                self._exceeded = True
                self._on_exceeded()
                return


def _has_affinity() -> bool:
    return hasattr(os, "sched_setaffinity")


def _pin(pid: int, cores: int) -> None:
    """Let a process run on so many of the cores that this one may use; which ones differs by its pid."""
    if not _has_affinity():
        return
    mine = sorted(os.sched_getaffinity(0))
    if cores >= len(mine):
        return
    first = pid % len(mine)
    try:
        os.sched_setaffinity(pid, {mine[(first + number) % len(mine)] for number in range(cores)})
    except ProcessLookupError:
        return

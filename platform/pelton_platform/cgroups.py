"""Control groups of Linux, version 2 or 1: where this process may make some, and what they bound and tell."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Final

MOUNT: Final = Path("/sys/fs/cgroup")
OWN: Final = Path("/proc/self/cgroup")
PREFIX: Final = "pelton-"
"""All groups of ours are called so, and no other group is ever removed."""

_PERIOD_US: Final = 100_000
_TRY: Final = "try"
_TRY_MEMORY: Final = 64 * 1024**2
_TRY_CPU: Final = 1_000


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where groups can be made.

    Attributes:
        version: 2 or 1; 0 where none can be made.
        memory: folder for groups that bound memory, None for none.
        cpu: folder for groups that bound CPU, None for none.
    """

    version: int = 0
    memory: Path | None = None
    cpu: Path | None = None


def find(mount: Path = MOUNT, own: Path = OWN) -> Cgroups:
    """Look where this process may make groups.

    Args:
        mount: Where control groups are mounted.
        own: What the kernel says of the groups of this process.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return Cgroups()
    places = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            places[controller] = path.lstrip("/")
    if (mount / "cgroup.controllers").exists():
        folder = _base_of_v2(mount, places.get("", ""))
        return Cgroups() if folder is None else Cgroups(2, folder, folder)
    memory = _base_of_v1(mount / "memory", places.get("memory", ""))
    cpu = _base_of_v1(mount / "cpu", places.get("cpu", ""))
    return Cgroups(1 if memory or cpu else 0, memory, cpu)


def _base_of_v2(mount: Path, place: str) -> Path | None:
    """The nearest folder from our own group upwards in which groups with both controllers can be made."""
    folder = mount / place
    while folder.is_relative_to(mount):
        try:
            enabled = set((folder / "cgroup.subtree_control").read_text().split())
        except OSError:
            enabled = set()
        if {"memory", "cpu"} <= enabled and _works(Cgroups(2, folder, folder), _TRY_MEMORY, _TRY_CPU):
            return folder
        if folder == mount:
            return None
        folder = folder.parent
    return None


def _base_of_v1(controller: Path, place: str) -> Path | None:
    for folder in dict.fromkeys((controller / place, controller)):
        is_memory = controller.name == "memory"
        tried = Cgroups(1, folder if is_memory else None, None if is_memory else folder)
        if _works(tried, _TRY_MEMORY * is_memory, _TRY_CPU * (not is_memory)):
            return folder
    return None


def _works(cgroups: Cgroups, memory: int, cpu: int) -> bool:
    """Whether a group with these limits can be made there: nothing but trying it tells."""
    try:
        Group(cgroups, f"{_TRY}-{os.getpid()}-{token_hex(3)}", memory, cpu).remove()
    except OSError:
        return False
    return True


class Group:
    """One group; processes in it share its limits.

    Args:
        cgroups: Where it is made.
        name: Its name, unique on this machine.
        memory: Bytes it may take, 0 for any.
        cpu: Thousandths of a core it may use, 0 for any.

    Raises:
        OSError: The kernel does not take it.
    """

    def __init__(self, cgroups: Cgroups, name: str, memory: int, cpu: int) -> None:
        self._version = cgroups.version
        self._memory = cgroups.memory / (PREFIX + name) if memory and cgroups.memory else None
        self._cpu = cgroups.cpu / (PREFIX + name) if cpu and cgroups.cpu else None
        try:
            for folder in self._folders():
                folder.mkdir(exist_ok=True)
            if self._memory is not None:
                self._bound_memory(self._memory, memory)
            if self._cpu is not None:
                self._bound_cpu(self._cpu, max(1_000, cpu * _PERIOD_US // 1000))
        except OSError:
            self.remove()
            raise

    def add(self, pid: int) -> None:
        """Put a process into it; what it starts from then on is in it too.

        Raises:
            OSError: The kernel does not take it.
        """
        for folder in self._folders():
            (folder / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """Return how many of its processes the kernel has ended for lack of memory."""
        if self._memory is None:
            return 0
        file = "memory.events" if self._version == 2 else "memory.oom_control"
        try:
            words = (self._memory / file).read_text().split()
        except OSError:
            return 0
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    def peak(self) -> int:
        """Return the most memory it ever took, in bytes; 0 when the kernel does not say."""
        if self._memory is None:
            return 0
        file = "memory.peak" if self._version == 2 else "memory.max_usage_in_bytes"
        try:
            return int((self._memory / file).read_text())
        except (OSError, ValueError):
            return 0

    def remove(self) -> None:
        """Remove it; its processes have ended, or it stays for the next `sweep`."""
        for folder in self._folders():
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _folders(self) -> list[Path]:
        return list(dict.fromkeys(folder for folder in (self._memory, self._cpu) if folder is not None))

    def _bound_memory(self, folder: Path, limit: int) -> None:
        if self._version == 2:
            (folder / "memory.max").write_text(str(limit))
            # An executor without one of its processes is of no use: all of it ends.
            for file, text in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                with contextlib.suppress(OSError):
                    (folder / file).write_text(text)
            return
        (folder / "memory.limit_in_bytes").write_text(str(limit))
        # Not there where the kernel does not count swap.
        with contextlib.suppress(OSError):
            (folder / "memory.memsw.limit_in_bytes").write_text(str(limit))

    def _bound_cpu(self, folder: Path, quota_us: int) -> None:
        if self._version == 2:
            (folder / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
            return
        (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (folder / "cpu.cfs_quota_us").write_text(str(quota_us))


def sweep(cgroups: Cgroups, start: str) -> None:
    """Remove empty groups of ours whose name begins so: their makers have died."""
    for base in {base for base in (cgroups.memory, cgroups.cpu) if base is not None}:
        for folder in base.glob(f"{PREFIX}{start}*"):
            with contextlib.suppress(OSError):
                folder.rmdir()

"""What trees of processes use of the machine: resident memory now, and CPU time since they began."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

_LINUX: Final = sys.platform == "linux"
_PROC: Final = Path("/proc")


class Usage(NamedTuple):
    """What a process and all that descend from it use.

    Attributes:
        memory: bytes resident; pages that several of them share count for each.
        cpu_s: CPU seconds, those of children that have ended too.
        processes: how many they are.
    """

    memory: int
    cpu_s: float
    processes: int


def measure(roots: Iterable[int]) -> dict[int, Usage]:
    """Look once at all processes of the machine, and add up those that descend from each root.

    Args:
        roots: Pids; one that has ended uses nothing.
    """
    seen = dict(_on_linux() if _LINUX else _elsewhere())
    children: dict[int, list[int]] = defaultdict(list)
    for pid, one in seen.items():
        children[one.parent].append(pid)
    found = {}
    for root in roots:
        memory, cpu_s, count, waiting = 0, 0.0, 0, [root]
        while waiting:
            pid = waiting.pop()
            if pid in seen:
                one = seen[pid]
                memory, cpu_s, count = memory + one.memory, cpu_s + one.cpu_s, count + 1
                waiting += children[pid]
        found[root] = Usage(memory, cpu_s, count)
    return found


class _Process(NamedTuple):
    parent: int
    memory: int
    cpu_s: float


def _on_linux() -> Iterable[tuple[int, _Process]]:
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for name in os.listdir(_PROC):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue
        # The second field is the program's name in brackets and may hold anything, brackets and blanks too.
        fields = stat[stat.rindex(b")") + 2 :].split()
        cpu = sum(map(int, fields[11:15]))
        yield int(name), _Process(int(fields[1]), int(fields[21]) * page, cpu / ticks)


def _elsewhere() -> Iterable[tuple[int, _Process]]:
    import psutil

    for process in psutil.process_iter(["ppid", "memory_info", "cpu_times"]):
        info = process.info
        if info["memory_info"] is not None and info["cpu_times"] is not None:
            cpu = info["cpu_times"]
            yield process.pid, _Process(info["ppid"], info["memory_info"].rss, cpu.user + cpu.system)

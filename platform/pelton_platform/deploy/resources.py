"""What a container asks of this machine, and what the machine has: more is capped, and said."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pelton.core.spec import ContainerSpec
from pelton_platform.confinement import Limits

_GPUS = Path("/proc/driver/nvidia/gpus")
_OWN_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class Machine:
    """What can be given out.

    Attributes:
        cores: Cores that processes may run on.
        memory: Bytes.
        gpus: GPUs that a driver shows.
    """

    cores: int
    memory: int
    gpus: int


@functools.cache
def this_machine() -> Machine:
    """Return what this machine has; looked for once."""
    import psutil

    memory = psutil.virtual_memory().total
    for file in _OWN_LIMITS:
        try:
            memory = min(memory, int(file.read_text()))
        except (OSError, ValueError):
            continue  # "max", or not there
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = len(list(_GPUS.iterdir())) if _GPUS.is_dir() else 0
    return Machine(cores, memory, gpus)


def limits_of(spec: ContainerSpec, machine: Machine) -> Limits:
    """Return what a process of a container may use here: what it asks for, or all there is."""
    return Limits(
        0 if spec.memory >= machine.memory else spec.memory,
        0 if spec.cpu >= machine.cores * 1000 else spec.cpu,
    )


class Asking(Protocol):
    """What asks for resources: a container as it is declared, or its spec."""

    @property
    def cpu(self) -> int:
        """Thousandths of a core."""

    @property
    def memory(self) -> int:
        """Bytes."""

    @property
    def gpu(self) -> str:
        """How many, or which."""


def shortcomings(spec: Asking, machine: Machine) -> tuple[str, ...]:
    """Say what a container asks for and does not get here, one clause each."""
    found = []
    if spec.cpu > machine.cores * 1000:
        found.append(f"asks for {spec.cpu / 1000:g} cores, and this machine has {machine.cores}")
    if spec.memory > machine.memory:
        found.append(
            f"asks for {spec.memory / 2**20:,.0f} MiB of memory, and this machine has "
            f"{machine.memory / 2**20:,.0f} MiB"
        )
    if spec.gpu and _gpus_asked(spec.gpu) > machine.gpus:
        has = f"shows {machine.gpus} of NVIDIA" if machine.gpus else "shows none of NVIDIA"
        found.append(f"asks for the GPU {spec.gpu!r}, and this machine {has}")
    return tuple(found)


def _gpus_asked(gpu: str) -> int:
    last = gpu.rpartition(":")[2]
    return int(last) if last.isdecimal() else 1

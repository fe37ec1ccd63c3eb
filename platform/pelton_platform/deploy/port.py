"""The port of a deployer: what the platform asks of whatever runs containers, and what it hears back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pelton.core.spec import ContainerSpec

STARTING = "starting"
READY = "ready"
DRAINING = "draining"
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class InstanceState:
    """One instance as the deployer sees it.

    Attributes:
        instance: Its id.
        version: Container version it runs.
        pid: Pid of its first process, 0 where there is none to see.
        state: `starting`, `ready`, `draining` or `failed`.
        reason: Why it is not ready, "" when all is well.
    """

    instance: str
    version: int
    pid: int
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What a deployer has made of one container.

    Attributes:
        container: Its name.
        version: Version applied last.
        wanted: Instances it should have.
        instances: Those it has.
        reason: Why it has fewer than wanted, "" when all is well.
        refused: Whether it cannot run at all until it is deployed again.
        notes: What is not as its image says, one sentence each.
    """

    container: str
    version: int
    wanted: int
    instances: tuple[InstanceState, ...]
    reason: str = ""
    refused: bool = False
    notes: tuple[str, ...] = ()


class DeployerPort(Protocol):
    """Runs containers. Every method may be called again with the same words and then changes nothing."""

    def apply(self, spec: ContainerSpec) -> None:
        """Make this the version of the container; instances of another one are replaced, new ones first."""

    def scale(self, container: str, count: int) -> None:
        """Set how many instances the container should have; unknown containers are ignored."""

    def remove(self, container: str) -> None:
        """Stop all instances of a container and forget it."""

    def observe(self) -> Sequence[ContainerState]:
        """Return what there is now."""

    def logs(self, container: str, lines: int) -> Iterator[str]:
        """Yield the last lines that the instances of a container wrote outside of calls, oldest first."""

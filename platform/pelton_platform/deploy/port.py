"""The port of a deployer: what the platform asks of whatever runs containers, and what it hears back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pelton.core.spec import ContainerSpec, InstanceStatus

STARTING = "starting"
READY = "ready"
DRAINING = "draining"
FAILED = "failed"

RUNNING = "running"
STOPPING = "stopping"
STOPPED = "stopped"
CRASH_LOOP = "crash-loop"
REFUSED = "refused"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class InstanceState:
    """One instance as the deployer sees it.

    Attributes:
        instance: Its id.
        version: Container version it runs.
        pid: Pid of its first process, 0 where there is none to see.
        state: `starting`, `ready`, `draining` or `failed`.
        reason: Why it is not ready, "" when all is well.
        port: TCP port of this machine at which its program is to listen, 0 for none.
        running: Attempts it runs.
        slots: Room for attempts.
        cpu: Cores it uses, on average of the last seconds.
        memory: Bytes resident, with all it started.
    """

    instance: str
    version: int
    pid: int
    state: str
    reason: str = ""
    port: int = 0
    running: int = 0
    slots: int = 0
    cpu: float = 0.0
    memory: int = 0


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
        notes: What is not as its image or its resources say, one sentence each.
        status: All of this in a word, see `status_of`.
    """

    container: str
    version: int
    wanted: int
    instances: tuple[InstanceState, ...]
    reason: str = ""
    refused: bool = False
    notes: tuple[str, ...] = ()
    status: str = UNKNOWN


def status_of(wanted: int, instances: Sequence[InstanceState], *, crashing: bool, refused: bool) -> str:
    """Say in a word how a container is.

    Args:
        wanted: Instances it should have.
        instances: Those it has.
        crashing: Whether it ended again and again lately, and none has been well since.
        refused: Whether it cannot run until it is deployed again.
    """
    ready = sum(one.state == READY for one in instances)
    if refused:
        return REFUSED
    if not wanted:
        return STOPPING if instances else STOPPED
    if crashing:
        return CRASH_LOOP
    return RUNNING if ready >= wanted else STARTING


class DeployerPort(Protocol):
    """Runs containers. Every method may be called again with the same words and then changes nothing."""

    def apply(self, spec: ContainerSpec) -> None:
        """Make this the version of the container; instances of another one are replaced, new ones first."""

    def scale(self, container: str, count: int, *, spare_busy: bool = False) -> None:
        """Set how many instances the container should have; unknown containers are ignored.

        Args:
            container: Its name.
            count: How many.
            spare_busy: Leave those alone that run attempts where fewer are needed.
        """

    def remove(self, container: str) -> None:
        """Stop all instances of a container and forget it."""

    def observe(self) -> Sequence[ContainerState]:
        """Return what there is now."""

    def logs(self, container: str, lines: int) -> Iterator[str]:
        """Yield the last lines that the instances of a container wrote outside of calls, oldest first."""

    def turn(self) -> bool:
        """Do what is due: start, stop, notice ends; True when something was done."""

    def heard(self, status: InstanceStatus) -> None:
        """Take in what an instance says of itself over Kafka."""

    def knows(self, instance: str) -> bool:
        """Say whether an instance is one of this deployer's that runs."""

    def stop_all(self, also: Callable[[], bool] = lambda: False) -> None:
        """Stop every instance and wait until they have ended.

        Args:
            also: Asked again and again; once it says True everything is ended at once.
        """

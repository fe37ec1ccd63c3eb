"""A deployed container in the hands of a program: what it does, what it prints, how many of it there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

from pelton.errors import DefinitionError, DeployError
from pelton.loading import active
from pelton.policies import MAX_INSTANCES, checked_count, checked_timeout, checked_words
from pelton.script import platform_part
from pelton.transport.config import ConnectionConfig, find_context

CONTROLS: Final = "pelton.controls"
"""Entry points that give hold of deployed containers; the platform brings one."""


@dataclass(frozen=True, slots=True)
class InstanceInfo:
    """One instance of a container.

    Attributes:
        instance: its id.
        version: container version it runs.
        state: "starting", "ready" or "draining".
        pid: pid of its first process.
        port: TCP port it was given, 0 for none.
        reason: why it is not ready, "" when all is well.
    """

    instance: str
    version: int
    state: str
    pid: int
    port: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """A deployed container as it is now.

    Attributes:
        name: its name.
        status: "running" (all wanted instances are ready), "starting", "stopping", "stopped" (no instance is
            wanted), "crash-loop" (it ends again and again), "refused" (it cannot run until it is deployed
            again), or "unknown" (nobody has deployed it).
        version: its version.
        wanted: instances there should be.
        instances: those there are.
        reason: why it is not running, or why there are so many instances.
        web_url: its page at the gateway, which also leads to the program's own where that has a port.
    """

    name: str
    status: str
    version: int
    wanted: int
    instances: tuple[InstanceInfo, ...]
    reason: str
    web_url: str


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command came to.

    Attributes:
        code: its exit code, negative for the signal that ended it.
        stdout: what it wrote.
        stderr: what it wrote to standard error.
    """

    code: int
    stdout: str
    stderr: str


class Control(Protocol):
    """What the platform does for a handle."""

    def info(self, name: str) -> ContainerInfo:
        """How a container is."""

    def logs(self, name: str, lines: int, follow: bool) -> Iterator[str]:
        """What it has printed, oldest first."""

    def execute(
        self, name: str, command: Sequence[str], instance: str | None, timeout_s: float
    ) -> ExecResult:
        """Runs a command beside an instance."""

    def scale(self, name: str, count: int | None) -> None:
        """Sets the number of instances, or leaves it to the platform again."""

    def wait(self, name: str, timeout_s: float) -> ContainerInfo:
        """Waits until the wanted instances are ready, or none is left where none is wanted."""


class Handle:
    """A deployed container, as `Container.run()` returns it.

    Nothing is asked of the platform before a method is called.

    Attributes:
        name: name of the container.
    """

    __slots__ = ("_config", "_control", "name")

    def __init__(self, name: str, config: ConnectionConfig | None = None) -> None:
        self.name: Final = name
        self._config = config
        self._control: Control | None = None

    @property
    def info(self) -> ContainerInfo:
        """How it is now: status, instances, `web_url`.

        Raises:
            PlatformNotRunning: there is no platform.
        """
        return self._platform().info(self.name)

    def logs(self, *, follow: bool = False, lines: int = 100) -> Iterator[str]:
        """What its instances have printed, oldest first.

        Args:
            follow: go on with what comes, for ever.
            lines: most lines of the past.
        """
        checked_count("logs", "lines", lines, low=0, high=1_000_000)
        return self._platform().logs(self.name, lines, follow)

    def exec(
        self,
        command: Sequence[str],
        *,
        instance: str | None = None,
        timeout: timedelta | float | None = 60.0,
    ) -> ExecResult:
        """Runs a command where an instance runs: with its files, environment and secrets.

        Args:
            command: program and arguments, e.g. `["python", "-V"]`; no shell is involved.
            instance: id of the instance; None for any that is ready.
            timeout: seconds or a `timedelta` it may take; None for any time.

        Raises:
            DeployError: no such instance runs, or the command cannot be started.
            TimeoutError: it took longer, and was ended.
        """
        words = checked_words("exec", "command", command)
        if not words:
            raise DefinitionError('exec: command is empty; give one like ["python", "-V"]')
        timeout_ms = checked_timeout("exec", timeout)
        return self._platform().execute(self.name, words, instance, timeout_ms / 1000)

    def scale(self, count: int | None) -> None:
        """Sets the number of instances until the next deploy.

        Args:
            count: so many, also beyond `min_instances` and `max_instances`; None leaves it to the platform.

        Raises:
            DeployError: the container is not deployed.
        """
        if count is not None:
            checked_count(f"container {self.name!r}", "count", count, low=0, high=MAX_INSTANCES)
        self._platform().scale(self.name, count)

    def stop(self) -> None:
        """Stops all instances until the next deploy; `wait()` returns when they have ended.

        Raises:
            DeployError: the container is not deployed.
        """
        self.scale(0)

    def wait(self, timeout: timedelta | float | None = 60.0) -> ContainerInfo:
        """Waits until what was asked for last is so: all wanted instances ready, after `stop()` none left.

        Args:
            timeout: seconds, or a `timedelta`; None for any time.

        Raises:
            NotReady: it took longer; the message says what it waits for.
            DeployError: it is refused, or ends again and again.
        """
        return self._platform().wait(self.name, checked_timeout("wait", timeout) / 1000)

    def __repr__(self) -> str:
        return f"Handle({self.name!r})"

    def _platform(self) -> Control:
        if active() is not None:
            raise DefinitionError(
                f"container {self.name!r} is used while its file is loaded for deploy; put that under "
                '`if __name__ == "__main__":`'
            )
        if self._control is None:
            made = platform_part(CONTROLS)
            if made is None:
                raise DeployError(
                    "this Python environment has no hold of containers: `pip install 'pelton[platform]'`"
                )
            self._control = made(self._config or find_context())
        return self._control

"""Deployers for the contract suite: made without Kafka, told by hand what instances would say."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable
from typing import Any

from pelton.core.spec import ContainerSpec, InstanceStatus
from pelton.protocol.signing import Key, Keyring
from pelton.transport.config import ConnectionConfig
from pelton_platform import process
from pelton_platform.deploy import bundles
from pelton_platform.deploy.home import HOME_VARIABLE, Home
from pelton_platform.deploy.instances import INSTANCE_VARIABLE, Surroundings
from pelton_platform.deploy.local import LocalDeployer
from pelton_platform.deploy.port import STARTING, ContainerState, DeployerPort
from pelton_platform.deploy.sources import Source
from support.local_platform import wait_for

KEYRING = Keyring([Key("0123456789abcdef", bytes(range(32)))], "test")
STAYS = "import time\nprint('up', flush=True)\nwhile True: time.sleep(0.05)\n"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + STAYS
NAME = "job"


def local_deployer(
    home: Home,
    drain_s: float = 5.0,
    on_end: Callable[[str, str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> LocalDeployer:
    """A deployer of a home folder, as after a restart."""
    # Nobody listens there: programs run all the same.
    config = ConnectionConfig("127.0.0.1:1", "test", key_file=home.key_file("test"))
    surroundings = Surroundings(home, config, {"FROM_SETTINGS": "yes"}, drain_s, "ERROR")
    return LocalDeployer(surroundings, KEYRING, on_end=on_end, clock=clock)


def program(home: Home, source: str, version: int = 1, **asks: Any) -> ContainerSpec:
    """The spec of a program, its bundle stored."""
    folder = home.root / f"source-{version}-{len(list(home.bundles.iterdir()))}"
    folder.mkdir()
    (folder / "main.py").write_text(textwrap.dedent(source))
    digest = bundles.store(Source("worker.py", folder), home.bundles, KEYRING).digest
    return ContainerSpec(NAME, version, (), digest, entrypoint=("python", "main.py"), **asks)


class DeployerRig:
    """One implementation of the port, driven by hand.

    Attributes:
        port: The implementation as the platform uses it.
        home: Where its bundles and instances are.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.port: DeployerPort = local_deployer(home)

    def restart(self) -> None:
        """Forget the deployer without an end, and take another one."""
        self.port = local_deployer(self.home)

    def turn(self) -> bool:
        """Let it do what is due."""
        return self.port.turn()

    def state(self) -> ContainerState | None:
        """What it says of the container."""
        return next((state for state in self.port.observe() if state.container == NAME), None)

    def pids(self) -> list[int]:
        """Pids of its instances."""
        state = self.state()
        return [] if state is None else [one.pid for one in state.instances]

    def until(self, condition: Callable[[ContainerState | None], object], what: str) -> None:
        """Let it work until the container is as it should be."""

        def look() -> object:
            self.turn()
            return condition(self.state())

        wait_for(look, what, 60, lambda: str(self.port.observe()))

    def until_instances(self, count: int) -> None:
        """Let it work until there are so many instances."""
        self.until(lambda state: len(() if state is None else state.instances) == count, f"{count} instances")

    def say_ready(self) -> None:
        """All instances that start say that they are ready, as they would over Kafka."""
        state = self.state()
        for one in () if state is None else state.instances:
            if one.state == STARTING:
                said = InstanceStatus(NAME, one.instance, "ready", "here", one.pid, one.version)
                self.port.heard(said)

    def printed(self, text: str) -> bool:
        """Whether an instance has printed a line."""
        return any(text in line for line in self.port.logs(NAME, 20))

    def stop(self, *, at_once: bool = True) -> None:
        """End everything and wait for it; unless at once, it gets its drain time."""
        self.port.stop_all(lambda: at_once)


def processes_of(home: Home) -> tuple[process.ProcessIdentity, ...]:
    """All live processes that were started for a home folder."""
    return process.processes_with_environment(HOME_VARIABLE, str(home.root))


def orphans(home: Home, known: Iterable[str]) -> list[int]:
    """Pids of processes of a home folder that belong to none of the known instances."""
    mine = {
        found.pid for name in known for found in process.processes_with_environment(INSTANCE_VARIABLE, name)
    }
    return [found.pid for found in processes_of(home) if found.pid not in mine]

"""Who runs a platform: the supervisor's state file, and what a dead supervisor left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelton.errors import PeltonError
from pelton_platform import process
from pelton_platform.deploy.home import HOME_VARIABLE, Home, HomeError, read_json, write_json

STARTING = "starting"
READY = "ready"
STOPPING = "stopping"


class AlreadyRunning(PeltonError):
    """A platform runs from this home folder already; the message says where.

    Attributes:
        state: What its state file says.
    """

    def __init__(self, state: PlatformState) -> None:
        super().__init__(
            f"a platform runs already: pid {state.supervisor.pid}, Kafka at {state.bootstrap_servers}, "
            f"namespace {state.namespace}, home {state.home}. `pelton down` stops it"
        )
        self.state = state


@dataclass(frozen=True, slots=True)
class PlatformState:
    """What the state file of a supervisor says.

    Attributes:
        supervisor: Its process.
        phase: `starting`, `ready` or `stopping`.
        home: The home folder.
        namespace: The namespace.
        bootstrap_servers: Kafka's address.
        port: Port of the embedded broker, 0 without one.
        broker_pid: Pid of the embedded broker, 0 without one.
        deployer_pid: Pid of the deployer, 0 when it does not run.
        cron_pid: Pid of the cron service, 0 when it does not run.
        gateway: Address of the gateway, `http://HOST:PORT`.
        gateway_pid: Pid of the gateway, 0 as long as nobody has asked it anything.
        version: Version of Pelton.
    """

    supervisor: process.ProcessIdentity
    phase: str
    home: str
    namespace: str
    bootstrap_servers: str
    port: int
    broker_pid: int = 0
    deployer_pid: int = 0
    gateway: str = ""
    gateway_pid: int = 0
    version: str = ""
    cron_pid: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the state file."""
        return {
            "supervisor": self.supervisor.to_json(),
            "phase": self.phase,
            "home": self.home,
            "namespace": self.namespace,
            "bootstrap_servers": self.bootstrap_servers,
            "port": self.port,
            "broker_pid": self.broker_pid,
            "deployer_pid": self.deployer_pid,
            "cron_pid": self.cron_pid,
            "gateway": self.gateway,
            "gateway_pid": self.gateway_pid,
            "version": self.version,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlatformState:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        try:
            rest = {name: data[name] for name in cls.__slots__ if name != "supervisor"}
            return cls(supervisor=process.ProcessIdentity.from_json(data["supervisor"]), **rest)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the state of a platform: {error}") from error

    @property
    def is_alive(self) -> bool:
        """Whether this very supervisor runs."""
        return process.is_alive(self.supervisor)


def read_state(home: Home) -> PlatformState | None:
    """Return the state that was written last, also by a supervisor that is gone; None when there is none."""
    try:
        data = read_json(home.supervisor_file)
        return None if data is None else PlatformState.from_json(data)
    except (HomeError, ValueError):
        return None


def running(home: Home) -> PlatformState | None:
    """Return the state of the platform that runs from this home now."""
    state = read_state(home)
    return state if state is not None and state.is_alive else None


def write_state(home: Home, state: PlatformState) -> None:
    """Write the state file."""
    write_json(home.supervisor_file, state.to_json())


def forget_state(home: Home) -> None:
    """Remove the files by which a platform is found."""
    for path in (home.context_file, home.deployer_file, home.deployer_config):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    state = read_state(home)
    if state is not None:
        # The port stays known: the next start takes the same one.
        write_json(home.run / "last.json", {"port": state.port})
    with contextlib.suppress(FileNotFoundError):
        home.supervisor_file.unlink()


def last_port(home: Home) -> int:
    """Return the broker's port of the last run, 0 if there was none."""
    state = read_state(home)
    if state is not None:
        return state.port
    try:
        return int((read_json(home.run / "last.json") or {}).get("port", 0))
    except (HomeError, ValueError):
        return 0


@dataclass(frozen=True, slots=True)
class Orphan:
    """A process that a platform of this home started and that outlived it.

    Attributes:
        identity: The process.
        what: Its command, for people.
    """

    identity: process.ProcessIdentity
    what: str


def find_orphans(home: Home) -> list[Orphan]:
    """Return the processes of this home, when no supervisor of it runs; none while one does.

    They are found by a variable that every process of a platform carries, so that no file has to survive.
    """
    if running(home) is not None:
        return []
    found = process.processes_with_environment(HOME_VARIABLE, str(home.root))
    orphans = {one.pid: Orphan(one, _command(one.pid)) for one in found}
    broker = _broker(home)
    if broker is not None and broker.pid not in orphans:
        orphans[broker.pid] = Orphan(broker, "the embedded Apache Kafka")
    orphans.pop(os.getpid(), None)
    return [orphans[pid] for pid in sorted(orphans)]


def end_orphans(orphans: list[Orphan], grace_s: float) -> None:
    """End processes that outlived their platform, the broker last: instances still say goodbye to it."""
    for orphan in sorted(orphans, key=lambda one: "java" in one.what or "Kafka" in one.what):
        group = _leads_a_group(orphan.identity)
        process.terminate(orphan.identity, grace_s, group=group)


def purge(home: Home) -> None:
    """Empty the home folder and remove it.

    Raises:
        HomeError: It is no home folder, or a platform runs from it.
    """
    if not home.root.exists():
        return
    if not home.is_ours:
        raise HomeError(f"{home.root} is no home folder of Pelton; nothing was removed")
    if running(home) is not None:
        raise HomeError(f"a platform runs from {home.root}; stop it with `pelton down` first")
    for parent, _, _ in os.walk(home.bundles):
        os.chmod(parent, 0o700)
    for item in home.root.iterdir():
        if item.name == "kafka":
            continue  # belongs to `pelton kafka up`
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()
    with contextlib.suppress(OSError):
        home.root.rmdir()


def _broker(home: Home) -> process.ProcessIdentity | None:
    try:
        owner = process.ProcessIdentity.from_json(json.loads((home.broker / "owner.json").read_text()))
    except (OSError, ValueError, AttributeError):
        return None
    return owner if process.is_alive(owner) else None


def _leads_a_group(identity: process.ProcessIdentity) -> bool:
    try:
        return os.getpgid(identity.pid) == identity.pid
    except ProcessLookupError:
        return False


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "a process of this platform"
    return " ".join(word if len(word) < 60 else word[:57] + "..." for word in words[:6]).strip()

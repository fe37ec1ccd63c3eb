"""Hold of deployed containers: how they are, what they print, how many there are; see `pelton.handle`."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pelton.errors import DeployError, NotReady
from pelton.handle import ContainerInfo, ExecResult, InstanceInfo
from pelton.protocol.signing import Keyring
from pelton.transport.config import ConnectionConfig, home_folder
from pelton.transport.kafka.producer import RecordProducer
from pelton_platform import process
from pelton_platform.deploy.home import Home, deploy_lock, read_json
from pelton_platform.deploy.logbook import LogTopic, selector
from pelton_platform.deploy.port import CRASH_LOOP, READY, REFUSED, RUNNING, STOPPED, UNKNOWN
from pelton_platform.deploy.publish import ACT_S
from pelton_platform.deploy.registry import Registry, RegistryWriter
from pelton_platform.deploy.scaler import BY_HAND

_DAY_MS: Final = 86_400_000
_LOOK_S: Final = 0.05
_READ_S: Final = 15.0
_WRITE_S: Final = 15.0


class ContainerControl:
    """Implements `pelton.handle.Control` for the platform of this machine.

    Args:
        config: How to reach it.

    Raises:
        DeployError: The platform is not on this machine.
    """

    def __init__(self, config: ConnectionConfig) -> None:
        self._config = config
        self._home = Home(config.home or home_folder())
        if not self._home.is_ours:
            raise DeployError(
                f"containers can be held only on the machine of the platform: {self._home.root} is not the "
                "home folder of one. PELTON_HOME names it"
            )

    def info(self, name: str) -> ContainerInfo:
        """Return how a container is, by what the deployer wrote last."""
        state, scaling = self._state(name)
        if not state:
            return ContainerInfo(name, UNKNOWN, 0, 0, (), "it is not deployed", self.web_url(name))
        instances = tuple(
            InstanceInfo(
                one["instance"], one["version"], one["state"], one["pid"], one["port"], one["reason"]
            )
            for one in state["instances"]
        )
        said = state["reason"] or next((one.reason for one in instances if one.reason), "")
        return ContainerInfo(
            name,
            state["status"],
            state["version"],
            state["wanted"],
            instances,
            said or scaling.get("reason", ""),
            self.web_url(name),
        )

    def web_url(self, name: str) -> str:
        """Return the address of a container's page at the gateway; "" where none runs."""
        gateway = (read_json(self._home.context_file) or {}).get("gateway", "")
        return f"{gateway}/containers/{name}" if gateway else ""

    def logs(self, name: str, lines: int, follow: bool) -> Iterator[str]:
        """Yield what a container has printed in the last day, and what comes."""
        wanted = selector(name)
        with LogTopic(self._config) as topic:
            past = topic.read_past(_DAY_MS)
            found = sorted((line for line in past.lines if wanted(line)), key=lambda line: line.at_ms)
            yield from (line.text for line in found[-lines:] if lines)
            if follow:
                yield from (line.text for line in topic.follow(past.ends) if wanted(line))

    def execute(
        self, name: str, command: Sequence[str], instance: str | None, timeout_s: float
    ) -> ExecResult:
        """Run a command where an instance runs, and return what it came to.

        Raises:
            DeployError: There is no such instance.
            TimeoutError: It took longer, and was ended with all it started.
        """
        child = process.spawn(
            self.command(name, command, instance),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            die_with_parent=True,
        )
        try:
            out, err = child.communicate(timeout=timeout_s or None)
        except subprocess.TimeoutExpired:
            process.terminate_child(child, 0.0)
            child.communicate()
            raise TimeoutError(f"{command[0]} took longer than {timeout_s:g} s and was ended") from None
        except BaseException:
            process.terminate_child(child, 0.0)
            raise
        return ExecResult(child.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    def command(self, name: str, command: Sequence[str], instance: str | None = None) -> list[str]:
        """Return what runs a command where an instance runs.

        Raises:
            DeployError: There is no such instance.
        """
        state, _ = self._state(name)
        live = [
            one["instance"]
            for one in state.get("instances", ())
            if (one["instance"] == instance if instance else one["state"] == READY)
        ]
        if not live:
            raise DeployError(
                f"container {name!r} has no instance {instance!r}; `pelton ps` lists them"
                if instance
                else f"container {name!r} has no ready instance: {self.info(name).reason}"
            )
        file = self._home.instances / live[-1] / "instance.json"
        return [sys.executable, "-m", "pelton_platform.deploy.entering", str(file), *command]

    def scale(self, name: str, count: int | None) -> None:
        """Set the number of instances, and wait until the deployer has taken it up.

        Raises:
            DeployError: The container is not deployed, or the deployer does not act.
            TransportError: Kafka did not take it.
        """
        keyring = Keyring.load(self._config.key_file or self._home.key_file(self._config.namespace))
        producer = RecordProducer(self._config)
        registry = Registry(self._config, keyring)
        try:
            with deploy_lock(self._home):
                registry.wait_end(_READ_S, refresh=True)
                spec = registry.snapshot()[1].get(name)
                if spec is None:
                    raise DeployError(f"there is no container {name!r}; `pelton ps` lists them")
                writer = RegistryWriter(self._config.namespace, producer, keyring)
                writer.write_specs({}, {name: replace(spec, fixed_instances=count)}, _WRITE_S)
        finally:
            registry.close()
            producer.close()

        def taken_up(state: Mapping[str, Any], scaling: Mapping[str, Any]) -> bool:
            if count is None:
                return bool(scaling.get("reason") != BY_HAND)
            return bool(scaling.get("reason") == BY_HAND and state.get("wanted") == count)

        if not self._until(name, taken_up, ACT_S):
            raise DeployError(
                f"the deployer has not taken up the new number of instances within {ACT_S:.0f} s; it is in "
                "the registry. Look at `pelton doctor`"
            )

    def wait(self, name: str, timeout_s: float) -> ContainerInfo:
        """Wait until the wanted instances are ready, or none is left where none is wanted.

        Raises:
            DeployError: It is refused, ends again and again, or is not deployed.
            NotReady: It took longer.
        """

        def is_over(state: Mapping[str, Any], _: Mapping[str, Any]) -> bool:
            return not state or state["status"] in (RUNNING, STOPPED, CRASH_LOOP, REFUSED)

        done = self._until(name, is_over, timeout_s or float("inf"))
        info = self.info(name)
        if not done:
            raise NotReady(
                f"container {name!r} is {info.status} after {timeout_s:g} s: {info.reason}", [info.reason]
            )
        if info.status not in (RUNNING, STOPPED):
            raise DeployError(f"container {name!r} does not run ({info.status}): {info.reason}")
        return info

    def _state(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the deployer says of a container, and why it has so many instances."""
        data = read_json(self._home.deployer_file) or {}
        return data.get("containers", {}).get(name) or {}, data.get("scaling", {}).get(name) or {}

    def _until(
        self, name: str, condition: Callable[[dict[str, Any], dict[str, Any]], bool], seconds: float
    ) -> bool:
        deadline, pause = time.monotonic() + seconds, threading.Event()
        while not condition(*self._state(name)):
            if time.monotonic() >= deadline:
                return False
            pause.wait(_LOOK_S)
        return True

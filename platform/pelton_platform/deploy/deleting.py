"""Deleting functions and containers: their specs, their instances, and the topics of functions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pelton.core.spec import ContainerSpec, FunctionSpec
from pelton.errors import DeployError
from pelton.protocol.signing import Keyring
from pelton.protocol.topics import Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.producer import RecordProducer
from pelton_platform.deploy.backlog import Backlog
from pelton_platform.deploy.home import Home, deploy_lock, read_json
from pelton_platform.deploy.registry import Registry, RegistryWriter

_READ_S = 15.0
_WRITE_S = 15.0
_GONE_S = 90.0
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a deletion takes away.

    Attributes:
        functions: Functions by name.
        containers: Containers that go with them, by name.
        smaller: Containers that go on without some of their functions.
        waiting: Calls without an end of each function.
    """

    functions: dict[str, FunctionSpec]
    containers: dict[str, ContainerSpec]
    smaller: dict[str, ContainerSpec]
    waiting: dict[str, int]


def plan_deletion(
    names: Iterable[str], functions: dict[str, FunctionSpec], containers: dict[str, ContainerSpec]
) -> Deletion:
    """Find out what goes with functions and containers of these names.

    A container goes when none of its functions is left; deleting a container deletes its functions.

    Raises:
        DeployError: A name is of neither.
    """
    unknown = sorted(name for name in names if name not in functions and name not in containers)
    if unknown:
        raise DeployError(
            f"neither a function nor a container is named {', '.join(unknown)}; `pelton functions` and "
            "`pelton ps` list them"
        )
    gone = {name: spec for name, spec in containers.items() if name in names and name not in functions}
    chosen = {name: spec for name, spec in functions.items() if name in names or spec.container in gone}
    smaller: dict[str, ContainerSpec] = {}
    for name, spec in containers.items():
        left = tuple(one for one in spec.functions if one not in chosen)
        if name in gone or left == spec.functions:
            continue
        if left or spec.entrypoint:
            # No digest: the next deploy of its own file counts as a change.
            smaller[name] = replace(spec, functions=left, version=spec.version + 1, digest="")
        else:
            gone[name] = spec
    return Deletion(chosen, gone, smaller, {})


class Deleter:
    """Deletes what is deployed on one platform; a context manager.

    Args:
        config: How to reach Kafka.
        home: The home folder of the platform.
    """

    def __init__(self, config: ConnectionConfig, home: Home) -> None:
        self._home = home
        self._topics = Topics(config.namespace)
        keyring = Keyring.load(config.key_file or home.key_file(config.namespace))
        self._admin = Admin(config)
        self._producer = RecordProducer(config)
        self._registry = Registry(config, keyring)
        self._writer = RegistryWriter(config.namespace, self._producer, keyring)

    def __enter__(self) -> Deleter:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End its connections."""
        self._registry.close()
        self._producer.close()
        self._admin.close()

    def look(self, names: Iterable[str]) -> Deletion:
        """Return what would go, and what still waits for it.

        Raises:
            DeployError: A name is of nothing that is deployed.
        """
        self._registry.wait_end(_READ_S, refresh=True)
        functions, containers, _ = self._registry.snapshot()
        found = plan_deletion(list(names), dict(functions), dict(containers))
        waiting = Backlog(self._admin, self._topics).look(found.functions) if found.functions else {}
        return replace(found, waiting={name: count for name, count in waiting.items() if count})

    def delete(self, deletion: Deletion, *, keep_calls: bool, tell: Callable[[str], None]) -> list[str]:
        """Delete it, wait until its instances have ended, then delete topics and groups.

        Args:
            deletion: What `look` returned.
            keep_calls: Leave the topics: waiting calls go on when the function is deployed again.
            tell: Gets lines for people.

        Returns:
            The topics that were deleted.

        Raises:
            DeployError: Instances do not end; topics were left.
            TransportError: Kafka did not take it; delete again.
        """
        with deploy_lock(self._home):
            self._writer.write_specs(
                {},
                deletion.smaller,
                _WRITE_S,
                removed=sorted(deletion.containers),
                removed_functions=sorted(deletion.functions),
            )
        self._await_end(deletion, tell)
        if keep_calls or not deletion.functions:
            return []
        topics = [
            plan.name
            for spec in deletion.functions.values()
            for plan in self._topics.topic_plans_for_function(spec, 1)
        ]
        self._admin.delete_topics(topics)
        self._admin.delete_groups([self._topics.group(name) for name in deletion.functions])
        return sorted(topics)

    def _await_end(self, deletion: Deletion, tell: Callable[[str], None]) -> None:
        began, told, pause = time.monotonic(), False, threading.Event()
        while True:
            data = (read_json(self._home.deployer_file) or {}).get("containers", {})
            left = [name for name in deletion.containers if data.get(name, {}).get("instances")]
            left += [
                name
                for name, spec in deletion.smaller.items()
                if any(one["version"] < spec.version for one in data.get(name, {}).get("instances", ()))
            ]
            if not left:
                return
            waited = time.monotonic() - began
            if waited > _GONE_S:
                raise DeployError(
                    f"instances of {', '.join(left)} have not ended within {_GONE_S:.0f} s; the specs are "
                    "deleted and the topics are left: look at `pelton ps`, then delete again"
                )
            if waited > 1.0 and not told:
                told = True
                tell(f"waiting until instances of {', '.join(left)} have finished what runs")
            pause.wait(_LOOK_S)

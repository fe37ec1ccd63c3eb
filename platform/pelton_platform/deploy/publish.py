"""A deploy: from a file to specs in the registry, and what became of them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pelton.container import Container
from pelton.core.compatibility import incompatibility
from pelton.core.offsets import initial_metadata
from pelton.core.spec import ContainerSpec, FunctionSpec
from pelton.definitions import container_spec, function_spec
from pelton.errors import DeployError
from pelton.loading import Collected
from pelton.protocol.signing import Keyring
from pelton.protocol.topics import Topics
from pelton.secret import SecretSource, captured
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.producer import RecordProducer
from pelton_platform.deploy import bundles
from pelton_platform.deploy.backlog import Backlog, input_places
from pelton_platform.deploy.bundles import Bundle
from pelton_platform.deploy.environments import Environments
from pelton_platform.deploy.home import Home, deploy_lock, read_json
from pelton_platform.deploy.instances import bundles_of_live
from pelton_platform.deploy.interpreters import find as find_python
from pelton_platform.deploy.interpreters import this_python
from pelton_platform.deploy.registry import Registry, RegistryWriter
from pelton_platform.deploy.resources import shortcomings, this_machine
from pelton_platform.deploy.secret_store import SecretStore
from pelton_platform.deploy.sources import Source

CREATED = "created"
CHANGED = "changed"
UNCHANGED = "unchanged"

_READ_S = 15.0
_WRITE_S = 15.0
_LOOK_S = 0.02
_COMMITTED_S = 2.0

ACT_S = 20.0
"""How long the deployer may take to take up what was deployed."""

READY_S = 60.0
"""How long an instance that should run may take to be ready."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Change:
    """What a deploy does to one function or container.

    Attributes:
        kind: `function` or `container`.
        name: Its name.
        version: The version after the deploy.
        change: `created`, `changed` or `unchanged`.
    """

    kind: str
    name: str
    version: int
    change: str


@dataclass(slots=True)
class Outcome:
    """What a deploy did.

    Attributes:
        file: The file, or what the program is called.
        bundle: Digest of its source snapshot.
        changes: Functions, then containers.
        topics: Topics that were created.
        warnings: What the user should know, one sentence each.
        images: Of each container the environment its image becomes: `cached`, `built` or `to build`.
        states: What the deployer made of each container, as in its state file.
        dry_run: Whether nothing was written.
    """

    file: str
    bundle: str = ""
    changes: list[Change] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False

    @property
    def changed(self) -> bool:
        """Whether anything is new."""
        return any(change.change != UNCHANGED for change in self.changes)


@dataclass(frozen=True, slots=True)
class Plan:
    """The specs after a deploy, and what is new in them."""

    functions: dict[str, FunctionSpec]
    containers: dict[str, ContainerSpec]
    removed: tuple[str, ...]
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]

    def of(self, kind: str) -> set[str]:
        """Names of this kind that are not unchanged."""
        return {one.name for one in self.changes if one.kind == kind and one.change != UNCHANGED}


class Publisher:
    """Deploys files to one platform; a context manager.

    Args:
        config: How to reach Kafka.
        home: The home folder of the platform.
        limit_bytes: Largest source folder.
        tell: Gets lines about what takes long, such as what builds of images write.

    Raises:
        TransportError: Kafka cannot be reached.
        SignatureError: The key of the namespace is missing or damaged.
    """

    def __init__(
        self, config: ConnectionConfig, home: Home, limit_bytes: int, *, tell: Progress = lambda line: None
    ) -> None:
        self._home = home
        self._tell = tell
        self._environments = Environments(home)
        self._secrets = SecretStore(home)
        self._limit_bytes = limit_bytes
        self._topics = Topics(config.namespace)
        self._keyring = Keyring.load(config.key_file or home.key_file(config.namespace))
        self._clock = BrokerClock()
        self._admin = Admin(config)
        self._producer = RecordProducer(config, clock=self._clock)
        try:
            self._registry = Registry(config, self._keyring)
        except BaseException:
            self._producer.close(0.0)
            self._admin.close()
            raise
        self._writer = RegistryWriter(config.namespace, self._producer, self._keyring)

    def __enter__(self) -> Publisher:
        """Return the publisher."""
        return self

    def __exit__(self, *_: object) -> None:
        """End its connections."""
        self._registry.close()
        self._producer.close()
        self._admin.close()

    def deploy(
        self,
        source: Source,
        collected: Collected,
        *,
        dry_run: bool = False,
        strict_python: bool = False,
        strict_resources: bool = False,
        force: bool = False,
    ) -> Outcome:
        """Deploy what a file or a program defines.

        Args:
            source: Its files, of which a snapshot is taken, and its code.
            collected: What it defines.
            dry_run: Check and compare, but build and write nothing.
            strict_python: Refuse images whose Python this machine does not have.
            strict_resources: Refuse containers that ask for more than this machine has.
            force: Take signatures that do not fit calls which wait; those fail.

        Raises:
            DeployError: It is refused; nothing was changed.
            TransportError: Kafka did not take it; deploy again.
        """
        outcome = Outcome(source.name, dry_run=dry_run)
        values = self._check(collected, outcome)
        for container in collected.containers:
            _check_resources(container, outcome, strict=strict_resources)
        for container in collected.containers:
            self._prepare_image(container, source, outcome, strict_python=strict_python)
        with deploy_lock(self._home):
            bundle = bundles.store(source, self._home.bundles, self._keyring, self._limit_bytes)
            outcome.bundle = bundle.digest
            self._registry.wait_end(_READ_S, refresh=True)
            fresh_secrets = self._secrets.changed(values)
            code = {} if dry_run else self._store_code(source)
            plan = self._plan(source, collected, bundle, fresh_secrets, code, force=force)
            outcome.changes = list(plan.changes)
            outcome.warnings += plan.warnings
            if dry_run:
                if bundle.new:
                    bundles.remove(bundle.digest, self._home.bundles)
            elif outcome.changed or plan.removed:
                self._secrets.keep(values, _stored_names(collected))
                self._write(plan, outcome)
        return outcome

    # --- checks ---

    def _check(self, collected: Collected, outcome: Outcome) -> dict[str, dict[str, str]]:
        """Refuse what cannot run here; return the values of secrets by container."""
        if not collected.functions and not collected.containers:
            raise DeployError(f"{outcome.file} defines nothing to deploy")
        for container in collected.not_run:
            outcome.warnings.append(
                f"container {container.name!r} is defined and not deployed: its `.run()` was not reached"
            )
        values = {
            container.name: captured(f"container {container.name!r}", container.secrets)
            for container in collected.containers
        }
        stored = self._secrets.resolve(
            {
                container.name: [one.ref for one in container.secrets if one.source is SecretSource.STORE]
                for container in collected.containers
            }
        )
        return {name: mine | stored[name] for name, mine in values.items()}

    def _prepare_image(
        self, container: Container, source: Source, outcome: Outcome, *, strict_python: bool
    ) -> None:
        """Build the image of a container, unless that was done before; what runs now goes on meanwhile."""
        what, image = f"container {container.name!r}", container.image.spec(source.folder)
        python = find_python(image.python)
        if strict_python and image.python is not None and not python.is_asked(image.python):
            raise DeployError(
                f"{what} asks for Python {image.python}, which this machine does not have (the nearest is "
                f"{python.name}): install it, or deploy without --strict-python"
            )
        pickled = [function for function in source.code if python.version[:2] != sys.version_info[:2]]
        if pickled:
            raise DeployError(
                f"{what} asks for Python {image.python}, and {', '.join(pickled)} of this program travels "
                f"as code of Python {this_python().name}: define it in a module, or run it with that one"
            )
        environment = self._environments.find(image)
        outcome.images[container.name] = (
            "cached" if environment else "to build" if outcome.dry_run else "built"
        )
        if environment is None and not outcome.dry_run:
            self._environments.keep_files(image, source.folder)
            environment = self._environments.build(image, what, self._tell)
        outcome.warnings += [f"{what}: {note}" for note in (environment.notes if environment else ())]

    def _store_code(self, source: Source) -> dict[str, str]:
        """Keep the code of functions without a module; returns the digests by function."""
        return {
            name: bundles.store_code(name, code, self._home.bundles, self._keyring, self._limit_bytes)
            for name, code in source.code.items()
        }

    # --- comparing ---

    def _plan(
        self,
        source: Source,
        collected: Collected,
        bundle: Bundle,
        fresh_secrets: set[str],
        code: Mapping[str, str],
        *,
        force: bool = False,
    ) -> Plan:
        known_functions, known_containers, _ = self._registry.snapshot()
        now_ms = self._clock.now_ms()
        changes: list[Change] = []
        functions: dict[str, FunctionSpec] = {}
        for function in collected.functions:
            old = known_functions.get(function.name)
            new = function_spec(
                function,
                version=1 if old is None else old.version + 1,
                bundle=bundle.digest,
                partitions=None if old is None else max(old.partitions, function.container.max_instances),
                deployed_ms=now_ms,
                code=code.get(function.name, ""),
            )
            if old is not None:
                self._check_successor(old, new, force=force)
            functions[new.name] = _settle("function", old, new, changes)
        moved = {one.name for one in changes if one.kind == "function" and one.change != UNCHANGED}
        containers: dict[str, ContainerSpec] = {}
        for container in collected.containers:
            hosted = [spec.name for spec in functions.values() if spec.container == container.name]
            before = known_containers.get(container.name)
            spec = container_spec(
                container,
                functions=hosted,
                version=1 if before is None else before.version + 1,
                bundle=bundle.digest,
                folder=source.folder,
                deployed_ms=now_ms,
            )
            # A bundle that had to be stored again was missing or damaged: the deployer may have refused it.
            anew = bundle.new or container.name in fresh_secrets or bool(moved.intersection(hosted))
            settled: ContainerSpec = _settle("container", before, spec, changes, anew=anew)
            if settled is before and before.fixed_instances is not None:
                # A deploy takes the number of instances back that was set by hand.
                settled = replace(before, fixed_instances=None)
                changes[-1] = Change("container", before.name, before.version, CHANGED)
            containers[spec.name] = settled
        removed, warnings = self._leave_others(functions, containers, known_containers, changes)
        return Plan(functions, containers, tuple(removed), tuple(changes), tuple(warnings))

    def _check_successor(self, old: FunctionSpec, new: FunctionSpec, *, force: bool) -> None:
        """Refuse a version of a function by which calls would be lost, or come out of order."""
        if new.partitions > old.partitions and new.ordering == "key":
            raise DeployError(
                f"function {new.name!r} has {old.partitions} partitions since it was created, and its "
                f"container may have {new.partitions} instances, of which the others would get no calls; "
                'more partitions would bring calls of one key out of order, and it has ordering="key": lower '
                "max_instances, or give the function another name"
            )
        reason = incompatibility(old, new)
        if not reason or force:
            return
        waiting = self._unfinished(old)
        if waiting:
            raise DeployError(
                f"{waiting} calls of function {new.name!r} have no end yet, and its new signature does not "
                f"fit them: {reason}. Let them end first, or deploy with --force, and those that do not fail"
            )

    def _unfinished(self, spec: FunctionSpec) -> int:
        """Count the calls of a function that have no end; those that have just ended are committed soon."""
        backlog, pause = Backlog(self._admin, self._topics), threading.Event()
        deadline = time.monotonic() + _COMMITTED_S
        while (waiting := backlog.look({spec.name: spec}).get(spec.name, 0)) and time.monotonic() < deadline:
            pause.wait(_LOOK_S)
        return waiting

    def _leave_others(
        self,
        functions: Mapping[str, FunctionSpec],
        containers: dict[str, ContainerSpec],
        known: Mapping[str, ContainerSpec],
        changes: list[Change],
    ) -> tuple[list[str], list[str]]:
        """Take moved functions out of the containers they were in, and name those that nobody hosts now."""
        removed: list[str] = []
        warnings: list[str] = []
        for before in known.values():
            now = containers.get(before.name)
            gone = [name for name in before.functions if now is not None and name not in now.functions]
            warnings += [
                f"function {name!r} is not in container {before.name!r} any more; its waiting calls stay "
                "until it is deployed again"
                for name in gone
                if name not in functions
            ]
            moved = [name for name in before.functions if now is None and name in functions]
            if not moved:
                continue
            left = tuple(name for name in before.functions if name not in moved)
            if not left:
                removed.append(before.name)
                warnings.append(f"container {before.name!r} hosts nothing any more and was removed")
                continue
            # No digest: the next deploy of that container's own file counts as a change.
            containers[before.name] = replace(before, functions=left, version=before.version + 1, digest="")
            changes.append(Change("container", before.name, before.version + 1, CHANGED))
        return removed, warnings

    # --- writing ---

    def _write(self, plan: Plan, outcome: Outcome) -> None:
        functions = {name: plan.functions[name] for name in sorted(plan.of("function"))}
        containers = {name: plan.containers[name] for name in sorted(plan.of("container"))}
        known, _, _ = self._registry.snapshot()
        brokers = len(self._admin.brokers())
        self._admin.grow_topics(
            {
                self._topics.invocations(name): spec.partitions
                for name, spec in functions.items()
                if name in known and known[name].partitions < spec.partitions
            }
        )
        wanted = [
            topic
            for spec in functions.values()
            for topic in self._topics.topic_plans_for_function(spec, brokers)
        ]
        outcome.topics = sorted(self._admin.create_topics(wanted))
        for name, spec in functions.items():
            if name not in known:
                self._commit_nothing_ran(spec)
        self._writer.write_specs(functions, containers, _WRITE_S, removed=plan.removed)
        self._prune(plan, known)

    def _prune(self, plan: Plan, known: Mapping[str, FunctionSpec]) -> None:
        """Remove snapshots of versions that nothing names any more."""
        functions = {**known, **plan.functions}
        containers = {**self._registry.snapshot()[1], **plan.containers}
        used = {spec.bundle for spec in containers.values()} | bundles_of_live(self._home)
        used.update(digest for spec in functions.values() for digest in (spec.bundle, spec.code))
        bundles.prune(self._home.bundles, used, self._home.pycache)

    def _commit_nothing_ran(self, spec: FunctionSpec) -> None:
        """Commit that nothing of a new function may have run: its first records are no suspects."""
        group = self._topics.group(spec.name)
        places = input_places(self._topics, spec)
        committed = self._admin.committed(group, places)
        fresh = [place for place in places if place not in committed]
        starts = self._admin.watermarks(fresh)
        self._admin.commit_for_idle_group(
            group, {place: (starts[place][0], initial_metadata()) for place in fresh}
        )


def _check_resources(container: Container, outcome: Outcome, *, strict: bool) -> None:
    """Warn of what a container asks for and this machine does not have, or refuse it."""
    short = shortcomings(container, this_machine())
    if strict and short:
        raise DeployError(
            f"container {container.name!r} {'; '.join(short)}: ask for less, or deploy without "
            "--strict-resources, and it gets what there is"
        )
    outcome.warnings += [f"container {container.name!r} {one}: it gets what there is" for one in short]


def _stored_names(collected: Collected) -> dict[str, dict[str, str]]:
    """The names of the stored secrets of containers, by container and variable."""
    return {
        container.name: {
            secret.env: secret.name for secret in container.secrets if secret.source is SecretSource.STORE
        }
        for container in collected.containers
    }


def _settle(kind: str, old: Any, new: Any, changes: list[Change], *, anew: bool = False) -> Any:
    """The old spec when the new one says the same, else the new one; takes note of which."""
    if old is not None and old.digest == new.digest and not anew:
        changes.append(Change(kind, old.name, old.version, UNCHANGED))
        return old
    changes.append(Change(kind, new.name, new.version, CREATED if old is None else CHANGED))
    return new


def await_deployer(
    home: Home, versions: Mapping[str, int], *, act_s: float, ready_s: float, tell: Progress
) -> dict[str, Any]:
    """Wait until the deployer has taken up containers, and until those that should run do.

    Args:
        home: Where the deployer writes what it made of them.
        versions: Container versions to wait for.
        act_s: How long the deployer may take to take them up.
        ready_s: How long an instance that should run may take to be ready.
        tell: Gets a line for people when the waiting takes long.

    Returns:
        What the deployer says of each container.

    Raises:
        DeployError: The deployer does not act, or refuses a container.
    """
    began = time.monotonic()
    pause = threading.Event()
    told = False
    while True:
        data = (read_json(home.deployer_file) or {}).get("containers", {})
        states = {name: data.get(name) for name in versions}
        taken = all(state and state["version"] >= versions[name] for name, state in states.items())
        waited = time.monotonic() - began
        if taken:
            _refuse(states)
            if all(_is_settled(state) for state in states.values()) or waited > ready_s:
                return states
        elif waited > act_s:
            raise DeployError(
                f"the deployer has not taken up {', '.join(versions)} within {act_s:.0f} s; the specs are in "
                "the registry. Look at `pelton doctor` and at the deployer's log"
            )
        if waited > 2.0 and not told:
            told = True
            tell("waiting for instances to be ready" if taken else "waiting for the deployer")
        pause.wait(_LOOK_S)


def failure(state: Mapping[str, Any]) -> str:
    """Say why a container that should run has no ready instance; "" when it has one, or needs none."""
    if not state["wanted"] or any(one["state"] == "ready" for one in state["instances"]):
        return ""
    return str(state["reason"] or next((one["reason"] for one in state["instances"]), ""))


def _refuse(states: Mapping[str, Any]) -> None:
    for name, state in states.items():
        if state["refused"]:
            raise DeployError(f"the deployer refuses container {name!r}: {state['reason']}")


def _is_settled(state: Mapping[str, Any]) -> bool:
    """Whether nothing more is to be expected soon: enough are ready, or they crash."""
    own = [one for one in state["instances"] if one["version"] == state["version"]]
    # What still serves calls with the code from before would answer the next one.
    older = [one for one in state["instances"] if one not in own and one["state"] != "draining"]
    ready = [one for one in own if one["state"] == "ready"]
    return (len(ready) >= min(1, state["wanted"]) and not older) or bool(state["reason"])

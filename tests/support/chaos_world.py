"""A namespace under fault: functions that keep ledgers, instances that die, freeze, wake and are replaced."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pelton.core.offsets import initial_metadata
from pelton.core.spec import ContainerSpec, FunctionKind, FunctionSpec, ParameterSpec
from pelton.errors import TransportError
from pelton.protocol.codec import encode_container_spec, encode_function_spec
from pelton.protocol.topics import Control, TopicPlan, spec_key
from pelton_platform import process
from support.chaos_groups import partitions_held
from support.chaos_ledgers import SOURCE, ExecutedLedger, Execution
from support.freezing import freeze
from support.worker_instance import CONTAINER, Platform, Worker, wait_until

TESTS = Path(__file__).resolve().parent.parent

KINDS: Mapping[str, tuple[FunctionKind, tuple[str, ...]]] = {
    "quick": (FunctionKind.SYNC, ("number", "hold_ms", "boom")),
    "flow": (FunctionKind.GENERATOR, ("number", "chunks", "hold_ms")),
    "deadly": (FunctionKind.SYNC, ("number",)),
}
"""The functions of the ledgers' code and their parameters."""


@dataclass(slots=True)
class Hit:
    """One fault that was done.

    Attributes:
        kind: "executor", "instance", "freeze", "broker kill", "broker restart".
        target: which instance, "" for the broker.
        pids: executors that were in it.
        in_flight: executions that had begun and not ended, looked at while the target stood still.
        at_ns: monotonic time when it was done.
        over_ns: when a frozen one was woken, or the broker was back; else `at_ns`.
    """

    kind: str
    target: str = ""
    pids: frozenset[int] = frozenset()
    in_flight: list[Execution] = field(default_factory=list)
    at_ns: int = 0
    over_ns: int = 0


class World(Platform):
    """Functions with ledgers in a namespace of their own, and the instances that serve them.

    Args:
        bootstrap_servers: the broker.
        folder: for everything that is written.
        bug: seeded bug that instances are started with, "" for none; see `chaos_bugs`.
    """

    def __init__(self, bootstrap_servers: str, folder: Path, bug: str = "") -> None:
        super().__init__(bootstrap_servers, folder)
        self.bug = bug
        self.ledger_folder = folder / "executed"
        self.ledger_folder.mkdir()
        self.ledger = ExecutedLedger(self.ledger_folder)
        self.hits: list[Hit] = []
        self.slots = 0
        self._members: dict[str, frozenset[str]] = {}
        self._before: dict[str, frozenset[str]] = {}

    # ---- deploying and starting ----

    def deploy_ledgers(
        self,
        *names: str,
        slots: int = 8,
        partitions: int = 8,
        max_attempts: int = 3,
        prepare: Callable[[list[TopicPlan]], None] | None = None,
    ) -> None:
        """Writes the specs of functions of the ledgers' code; `prepare` makes their topics in its own way."""
        self.slots = slots
        bundle = uuid.uuid4().hex
        home = self.folder / "bundles" / bundle
        home.mkdir(parents=True)
        (home / "ledgered.py").write_text(SOURCE)
        for name in names:
            kind, parameters = KINDS[name]
            spec = FunctionSpec(
                name=name,
                version=1,
                container=CONTAINER,
                kind=kind,
                parameters=tuple(
                    ParameterSpec(each, "POSITIONAL_OR_KEYWORD", place == 0)
                    for place, each in enumerate(parameters)
                ),
                module="ledgered",
                qualname=name,
                bundle=bundle,
                partitions=partitions,
                max_attempts=max_attempts,
            )
            self.specs[name] = spec
            plans = list(self.topics.topic_plans_for_function(spec, 1))
            (prepare or self.admin.create_topics)(plans)
            self.admin.commit_for_idle_group(
                self.topics.group(name),
                {place: (0, initial_metadata()) for place in self.places(name).values()},
            )
            sealed = self.keyring.seal("function-spec", encode_function_spec(spec))
            self.send(self.topics.control(Control.FUNCTIONS), sealed, spec_key(name))
        container = ContainerSpec(
            name=CONTAINER,
            version=1,
            functions=names,
            bundle=bundle,
            max_instances=8,
            max_concurrent_requests=slots,
        )
        sealed = self.keyring.seal("container-spec", encode_container_spec(container))
        self.send(self.topics.control(Control.CONTAINERS), sealed, spec_key(CONTAINER))

    def start(self, *, env: dict[str, str] | None = None, drain_s: float | None = None) -> Worker:
        """Starts an instance, with the bug of this world; does not wait for it."""
        name = f"w{len(self.workers)}-{secrets.token_hex(2)}"
        path = self.folder / f"{name}.json"
        path.touch(mode=0o600)
        path.write_text(
            json.dumps(
                {
                    "namespace": self.namespace,
                    "bootstrap_servers": self.config.bootstrap_servers,
                    "security": {},
                    "key_file": str(self.key_file),
                    "container": CONTAINER,
                    "instance": name,
                    "bundles": str(self.folder / "bundles"),
                    "env": {"LEDGER": str(self.ledger_folder), **(env or {})},
                    "log_level": "info",
                }
            )
        )
        environ = dict(os.environ)
        if drain_s is not None:
            environ["PELTON_DRAIN_SECONDS"] = str(drain_s)
        program = ["pelton_platform.coordinator"]
        if self.bug:
            program = ["support.chaos_bugs", self.bug]
            environ["PYTHONPATH"] = str(TESTS)
        log_path = self.folder / f"{name}.log"
        with log_path.open("wb") as log:
            child = process.spawn(
                [sys.executable, "-m", *program, "--instance", str(path)],
                stdout=log,
                stderr=log,
                env=environ,
                die_with_parent=True,
            )
        worker = Worker(name, child, path.with_name(path.name + ".counters.json"), log_path)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """Ends every process it started, frozen ones too."""
        for worker in self.workers:
            if worker.child.poll() is None:
                for pid in self.executors(worker):
                    _signal(pid, signal.SIGCONT)
        super().close()

    # ---- what is alive ----

    @property
    def alive(self) -> list[Worker]:
        """Instances whose process runs, frozen ones included."""
        return [worker for worker in self.workers if worker.child.poll() is None]

    def executors(self, worker: Worker) -> list[int]:
        """Pids of the executors of an instance: its children."""
        try:
            return [child.pid for child in psutil.Process(worker.child.pid).children()]
        except psutil.NoSuchProcess:
            return []

    def in_flight(self, pids: list[int]) -> list[Execution]:
        """Executions that these executors have begun and not ended."""
        self.ledger.poll()
        return [each for pid in pids for each in self.ledger.open(pid)]

    def is_settled(self, count: int) -> bool:
        """Whether each function's group has so many members, and they hold all partitions it shares out."""
        groups = {self.topics.group(name): spec.partitions for name, spec in self.specs.items()}
        held = partitions_held(self.config.bootstrap_servers, list(groups))
        if not all(
            len(held.get(group, ())) == count and sum(held[group].values()) == n
            for group, n in groups.items()
        ):
            return False
        members = {group: frozenset(held[group]) for group in groups}
        if any(members[group] == self._before.get(group) for group in groups):
            return False  # the group has not noticed yet that one of them is dead
        self._members = members
        return True

    def wait_settled(self, count: int, seconds: float = 90.0) -> None:
        """Waits until `count` members hold all partitions."""
        wait_until(lambda: self.is_settled(count), seconds, f"groups of {count} members")

    def mend(self, count: int) -> None:
        """Brings the living instances to `count`, as a deployer would, and waits until they are members.

        Instances that end by themselves while the broker is away are replaced, too.
        """

        def mended() -> bool:
            for _ in range(count - len(self.alive)):
                self.start()
            return self.is_settled(count)

        wait_until(mended, 90.0, f"groups of {count} members")

    def counters(self) -> Counter[str]:
        """What all instances counted, as they last wrote it down."""
        total: Counter[str] = Counter()
        for worker in self.workers:
            total.update(worker.counters)
        return total

    def wait_counted(self) -> None:
        """Waits until each living instance has written down what it counted; it does so every second."""
        now = time.time()

        def written() -> bool:
            paths = [worker.counters_path for worker in self.alive]
            return all(path.exists() and path.stat().st_mtime > now for path in paths)

        wait_until(written, 20, "counters written")

    # ---- faults ----

    def stop_executor(self, worker: Worker, pid: int) -> Hit:
        """One executor stands still and was looked at: `kill` it, or let it `go_on`."""
        freeze(pid)
        return Hit("executor", worker.name, frozenset((pid,)), self.in_flight([pid]), time.monotonic_ns())

    def stop_instance(self, worker: Worker) -> Hit:
        """An instance and its executors stand still and were looked at: `kill` it, or let it `go_on`."""
        freeze(worker.child.pid)
        pids = self.executors(worker)
        for pid in pids:
            freeze(pid)
        in_flight = self.in_flight(pids)
        return Hit("instance", worker.name, frozenset(pids), in_flight, time.monotonic_ns())

    def go_on(self, worker: Worker, hit: Hit) -> None:
        """What stands still goes on, as if nothing had been."""
        if hit.kind != "executor":
            worker.thaw()
        for pid in hit.pids:
            _signal(pid, signal.SIGCONT)

    def kill(self, worker: Worker, hit: Hit) -> Hit:
        """SIGKILL to what stands still; the executors of an instance die with it."""
        hit.at_ns = hit.over_ns = time.monotonic_ns()
        if hit.kind == "executor":
            for pid in hit.pids:
                _signal(pid, signal.SIGKILL)
        else:
            worker.kill()
            # A child that was stopped before it asked to die with its parent goes on, looks, and ends.
            for pid in hit.pids:
                _signal(pid, signal.SIGCONT)
            self._before = self._members
        self.hits.append(hit)
        return hit

    def kill_executor(self, worker: Worker, pid: int) -> Hit:
        """SIGKILL to one executor, looked at while it stands still."""
        return self.kill(worker, self.stop_executor(worker, pid))

    def kill_instance(self, worker: Worker) -> Hit:
        """SIGKILL to an instance, looked at while all of it stands still."""
        return self.kill(worker, self.stop_instance(worker))

    def keep_frozen(self, hit: Hit, *, executors: bool) -> Hit:
        """An instance that stands still stays so; its executors go on unless they are named too."""
        hit.kind = "freeze"
        if not executors:
            for pid in hit.pids:
                _signal(pid, signal.SIGCONT)
        self.hits.append(hit)
        return hit

    def wake(self, worker: Worker, hit: Hit) -> None:
        """SIGCONT to all of an instance that was kept frozen.

        Executors follow when the instance has heard that it is out: what they end then it may not use.
        """
        before = worker.counters.get("dropped_runs", 0)
        worker.thaw()
        hit.over_ns = time.monotonic_ns()
        try:
            if hit.in_flight:
                wait_until(
                    lambda: worker.counters.get("dropped_runs", 0) > before, 15, "its runs are dropped"
                )
        finally:
            for pid in hit.pids:
                _signal(pid, signal.SIGCONT)

    def bounce_broker(self, kind: str, bounce: Callable[[], None]) -> None:
        """Does something to the broker and notes from when to when."""
        hit = Hit(kind, at_ns=time.monotonic_ns())
        bounce()
        hit.over_ns = time.monotonic_ns()
        self.hits.append(hit)

    # ---- for the checker ----

    def inputs_done(self) -> bool:
        """Whether every input record of every function is committed as finished."""
        try:
            return all(self._is_done(function) for function in self.specs)
        except TransportError:
            return False

    def _is_done(self, function: str) -> bool:
        places = self.places(function)
        ends, committed = self.admin.ends(list(places.values())), self.committed(function)
        return all(
            partition in committed and committed[partition][0] == ends[place]
            for partition, place in places.items()
        )


def _signal(pid: int, number: signal.Signals) -> None:
    """To a process of ours, which may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


@contextmanager
def world_on(bootstrap_servers: str, folder: Path, bug: str = "") -> Iterator[World]:
    """A world, ended with the block whatever happens in it."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(bootstrap_servers, folder, bug)
    try:
        yield world
    finally:
        world.close()

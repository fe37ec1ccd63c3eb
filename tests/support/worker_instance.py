"""Functions deployed by writing their specs, instances that serve them, a caller of raw records."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pelton.core.call import (
    CallId,
    DeadLetter,
    InputHeaders,
    InputPartition,
    InputTopic,
    Invocation,
    Result,
    mint_call_id,
    reply_partition,
)
from pelton.core.fold import Fold
from pelton.core.offsets import CommitMeta, decode_metadata, initial_metadata
from pelton.core.spec import (
    RESULTS_PARTITIONS,
    ContainerSpec,
    FunctionKind,
    FunctionSpec,
    InstanceStatus,
    ParameterSpec,
)
from pelton.protocol.codec import (
    decode_dead_letter,
    decode_instance_status,
    decode_log,
    decode_result,
    encode_container_spec,
    encode_function_spec,
    encode_invocation,
)
from pelton.protocol.headers import decode_result_id, encode_input
from pelton.protocol.payload import decode, encode_arguments
from pelton.protocol.signing import Keyring
from pelton.protocol.topics import Control, Topics, instance_key, spec_key
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.kafka.ranges import RangeReader
from pelton.transport.log import Headers, KafkaFailure, LogRecord
from support.freezing import freeze

CONTAINER = "box"


def wait_until(condition: Callable[[], bool], seconds: float = 30.0, what: str = "the condition") -> None:
    """Wait for a condition, looking every 20 ms."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not become true in {seconds} s"
        time.sleep(0.02)


def new_call() -> tuple[CallId, int]:
    """An id on a random reply partition, and the time in it."""
    now = time.time_ns() // 1_000_000
    return mint_call_id(now, secrets.randbelow(RESULTS_PARTITIONS), secrets.token_bytes(8)), now


@dataclass
class Worker:
    """A running instance of the container.

    Attributes:
        name: its id.
        child: its process.
        counters_path: where it counts.
        log_path: what it says.
    """

    name: str
    child: subprocess.Popen[bytes]
    counters_path: Path
    log_path: Path

    @property
    def counters(self) -> dict[str, int]:
        """What it counted by the last time it wrote it down."""
        try:
            found: dict[str, int] = json.loads(self.counters_path.read_text())
        except FileNotFoundError:
            return {}
        return found

    @property
    def log(self) -> str:
        """All it said."""
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL."""
        self.child.kill()
        self.child.wait(10)

    def freeze(self) -> None:
        """SIGSTOP."""
        freeze(self.child.pid)

    def thaw(self) -> None:
        """SIGCONT."""
        self.child.send_signal(signal.SIGCONT)

    def end(self, timeout: float = 45.0) -> int:
        """SIGTERM, and its exit code."""
        self.child.terminate()
        return self.child.wait(timeout)


@dataclass
class History:
    """What the log holds of one call: the fold of its records.

    Attributes:
        results: its records in order.
        chunks: the chunks every reader sees, decoded.
        outcome: the record that ended it.
    """

    results: list[Result]
    chunks: list[Any] = field(default_factory=list)
    outcome: Result | None = None

    @property
    def value(self) -> Any:
        """The value it ended with."""
        assert self.outcome is not None, f"no outcome among {[result.kind.name for result in self.results]}"
        assert self.outcome.failure is None, self.outcome.failure
        return decode(self.outcome.items[0]) if self.outcome.items else None


class Platform:
    """A namespace on a broker with functions deployed in it by writing specs.

    Args:
        bootstrap_servers: the broker.
        folder: for bundles, keys and instance files.
        store, store_options: object store of large payloads.

    Attributes:
        program: module and arguments that instances are started with from now on.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        folder: Path,
        store: str = "",
        store_options: Mapping[str, str] | None = None,
    ) -> None:
        self.namespace = "n" + uuid.uuid4().hex[:8]
        self.folder = folder
        self.topics = Topics(self.namespace)
        self.key_file = folder / "namespace.key"
        self.keyring = Keyring.create(self.key_file, self.namespace)
        self.config = ConnectionConfig(
            bootstrap_servers,
            self.namespace,
            key_file=self.key_file,
            store=store,
            store_options=store_options or {},
        )
        self.admin = Admin(self.config)
        self.producer = RecordProducer(self.config)
        self.ranges = RangeReader(self.config)
        self.admin.create_topics(self.topics.control_topic_plans(len(self.admin.brokers())))
        self.workers: list[Worker] = []
        self.specs: dict[str, FunctionSpec] = {}
        self.journal = folder / "journal"
        self.program = ["pelton_platform.coordinator"]

    def close(self) -> None:
        """Ends everything."""
        for worker in self.workers:
            if worker.child.poll() is None:
                worker.thaw()
                worker.child.kill()
            worker.child.wait(10)
        self.ranges.close()
        self.producer.close(1.0)
        self.admin.close()

    # ---- deploying ----

    def deploy(
        self,
        source: str,
        functions: dict[str, FunctionKind],
        *,
        slots: int = 4,
        partitions: int = 4,
        parameters: tuple[ParameterSpec, ...] = (),
        **settings: Any,
    ) -> None:
        """Makes the topics and writes the specs of functions whose code is `source`."""
        bundle = uuid.uuid4().hex
        home = self.folder / "bundles" / bundle
        home.mkdir(parents=True)
        (home / "worker.py").write_text(source)
        for name, kind in functions.items():
            spec = FunctionSpec(
                name=name,
                version=1,
                container=CONTAINER,
                kind=kind,
                parameters=parameters,
                module="worker",
                qualname=name,
                bundle=bundle,
                partitions=partitions,
                **settings,
            )
            self.specs[name] = spec
            self.admin.create_topics(self.topics.topic_plans_for_function(spec, 1))
            self.admin.commit_for_idle_group(
                self.topics.group(name),
                {place: (0, initial_metadata()) for place in self.places(name).values()},
            )
            sealed = self.keyring.seal("function-spec", encode_function_spec(spec))
            self.send(self.topics.control(Control.FUNCTIONS), sealed, spec_key(name))
        container = ContainerSpec(
            name=CONTAINER,
            version=1,
            functions=tuple(functions),
            bundle=bundle,
            max_instances=4,
            max_concurrent_requests=slots,
        )
        sealed = self.keyring.seal("container-spec", encode_container_spec(container))
        self.send(self.topics.control(Control.CONTAINERS), sealed, spec_key(CONTAINER))

    def places(self, function: str) -> dict[InputPartition, tuple[str, int]]:
        """All input partitions of a function, with the names of their topics."""
        counts = {InputTopic.INVOCATIONS: self.specs[function].partitions, InputTopic.RETRIES: 4}
        return {
            InputPartition(topic, number): (self.topics.input(function, topic), number)
            for topic, count in counts.items()
            for number in range(count)
        }

    # ---- instances ----

    def start(self, *, env: dict[str, str] | None = None, drain_s: float | None = None) -> Worker:
        """Starts an instance; does not wait for it."""
        name = f"w{len(self.workers)}-{secrets.token_hex(2)}"
        path = self.folder / f"{name}.json"
        file = {
            "namespace": self.namespace,
            "bootstrap_servers": self.config.bootstrap_servers,
            "security": {},
            "key_file": str(self.key_file),
            "store": self.config.store,
            "store_options": dict(self.config.store_options),
            "container": CONTAINER,
            "instance": name,
            "bundles": str(self.folder / "bundles"),
            "env": {"JOURNAL": str(self.journal), "INSTANCE": name, **(env or {})},
            "log_level": "info",
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(file))
        paths = filter(None, (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")))
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        if drain_s is not None:
            environ["PELTON_DRAIN_SECONDS"] = str(drain_s)
        log_path = self.folder / f"{name}.log"
        with log_path.open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", *self.program, "--instance", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
            )
        worker = Worker(name, child, path.with_name(path.name + ".counters.json"), log_path)
        self.workers.append(worker)
        return worker

    def start_ready(self, **settings: Any) -> Worker:
        """Starts an instance and waits until it takes calls."""
        worker = self.start(**settings)
        self.wait_ready(worker)
        return worker

    def wait_ready(self, worker: Worker) -> None:
        """Waits until an instance takes calls."""

        def ready() -> bool:
            assert worker.child.poll() is None, worker.log
            status = self.status(worker)
            return status is not None and status.state == "ready"

        wait_until(ready, 30, f"{worker.name} ready")

    def status(self, worker: Worker) -> InstanceStatus | None:
        """What an instance last said of itself; None before, or when it took it back."""
        key = instance_key(CONTAINER, worker.name)
        found = [
            record.value for record in self.read(self.topics.control(Control.INSTANCES)) if record.key == key
        ]
        return decode_instance_status(found[-1]) if found and found[-1] is not None else None

    def owners(self, function: str) -> list[str]:
        """Members of the function's group that own partitions, when no rebalance is going on."""
        members = self.admin.group_members(self.topics.group(function))
        owned = [member for member in members if member.partitions]
        whole = sum(len(member.partitions) for member in owned) == self.specs[function].partitions
        return [member.member_id for member in owned] if whole else []

    # ---- calling and reading ----

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        *,
        partition: int | None = None,
        headers: Headers | None = None,
    ) -> tuple[int, int]:
        """Appends a record; partition and offset it got."""
        done = threading.Event()
        answers: list[tuple[KafkaFailure | None, int, int]] = []

        def report(failure: KafkaFailure | None, partition: int, offset: int, at_ms: int) -> None:
            answers.append((failure, partition, offset))
            done.set()

        self.producer.send(topic, value, key=key, partition=partition, headers=headers, on_report=report)
        assert done.wait(35)
        failure, where, offset = answers[0]
        assert failure is None, failure
        return where, offset

    def call(self, function: str, *args: Any, partition: int | None = None, **kwargs: Any) -> CallId:
        """Submits a call and waits until it is accepted."""
        call_id = mint_call_id(
            time.time_ns() // 1_000_000, secrets.randbelow(RESULTS_PARTITIONS), secrets.token_bytes(8)
        )
        body = encode_invocation(
            Invocation(
                call_id, function, encode_arguments(args, kwargs), submitted_ms=time.time_ns() // 1_000_000
            )
        )
        headers = encode_input(InputHeaders(call_id, function))
        self.send(self.topics.invocations(function), body, call_id, partition=partition, headers=headers)
        return call_id

    def submit(
        self, function: str, arguments: Sequence[tuple[Any, ...]], partition: int | None = None
    ) -> list[CallId]:
        """Submits many calls, not one after the other."""
        ids = []
        failures: list[KafkaFailure] = []

        def report(failure: KafkaFailure | None, partition: int, offset: int, at_ms: int) -> None:
            if failure is not None:
                failures.append(failure)

        for args in arguments:
            call_id, now = new_call()
            ids.append(call_id)
            body = Invocation(call_id, function, encode_arguments(args, {}), submitted_ms=now)
            self.producer.send(
                self.topics.invocations(function),
                encode_invocation(body),
                key=call_id,
                partition=partition,
                headers=encode_input(InputHeaders(call_id, function)),
                on_report=report,
            )
        assert self.producer.flush(60) == 0
        assert not failures
        return ids

    def read(self, topic: str) -> list[LogRecord]:
        """All records of a topic that are there now."""
        count = self.admin.topics()[topic]
        marks = self.admin.watermarks([(topic, number) for number in range(count)])
        return [record for batch in self.ranges.read(dict(marks)) for record in batch]

    def history(self, function: str, call_id: CallId) -> History:
        """What the log holds of a call."""
        place = (self.topics.results(function), reply_partition(call_id))
        marks = self.admin.watermarks([place])
        history = History([])
        fold = Fold()
        for batch in self.ranges.read(dict(marks)):
            for record in batch:
                if decode_result_id(record.headers) == call_id:
                    result = decode_result(record.value)
                    history.results.append(result)
                    restarts = fold.restarts
                    fresh = fold.feed(result)
                    if fold.restarts > restarts:
                        history.chunks.clear()
                    history.chunks.extend(map(decode, fresh))
        history.outcome = fold.outcome
        return history

    def outcomes(self, function: str) -> dict[CallId, History]:
        """The histories of all calls of a function, folded."""
        folds: dict[CallId, Fold] = {}
        histories: dict[CallId, History] = {}
        for record in self.read(self.topics.results(function)):
            result = decode_result(record.value)
            history = histories.setdefault(result.call_id, History([]))
            history.results.append(result)
            fold = folds.setdefault(result.call_id, Fold())
            history.chunks.extend(decode(chunk) for chunk in fold.feed(result))
            history.outcome = fold.outcome
        return histories

    def wait(self, function: str, call_id: CallId, seconds: float = 30.0) -> History:
        """Waits for the outcome of a call."""
        deadline = time.monotonic() + seconds
        while True:
            history = self.history(function, call_id)
            if history.outcome is not None:
                return history
            if time.monotonic() > deadline:
                raise AssertionError(f"no outcome in {seconds} s: {history.results}\n{self.logs()}")
            time.sleep(0.05)

    def wait_all(self, function: str, ids: Sequence[CallId], seconds: float = 60.0) -> dict[CallId, History]:
        """Waits for the outcomes of many calls."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.outcomes(function)
            missing = [each for each in ids if each not in found or found[each].outcome is None]
            if not missing:
                return found
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {worker.name}\n{worker.log[-3000:]}" for worker in self.workers)
                raise AssertionError(
                    f"{len(missing)} of {len(ids)} have no outcome after {seconds} s\n{logs}"
                )
            time.sleep(0.1)

    def logs(self) -> str:
        """The ends of what the instances said."""
        return "\n".join(f"--- {worker.name}\n{worker.log[-3000:]}" for worker in self.workers)

    def dead_letters(self, function: str) -> list[DeadLetter]:
        """All dead letters of a function."""
        return [decode_dead_letter(record.value) for record in self.read(self.topics.dead_letters(function))]

    def lines(self) -> list[Any]:
        """All lines of output."""
        records = self.read(self.topics.control(Control.LOGS))
        return [decode_log(record.value) for record in records if record.value is not None]

    def committed(self, function: str) -> dict[InputPartition, tuple[int, CommitMeta | None]]:
        """Committed offsets and what their metadata says."""
        places = self.places(function)
        found = self.admin.committed(self.topics.group(function), list(places.values()))
        return {
            partition: (found[place][0], decode_metadata(found[place][1]))
            for partition, place in places.items()
            if place in found
        }

    def all_done(self, function: str) -> bool:
        """Whether every record of the input topics is committed as finished."""
        places = self.places(function)
        ends = self.admin.ends(list(places.values()))
        committed = self.committed(function)
        return all(committed[p][0] == ends[place] for p, place in places.items())

    def ran(self, pattern: str = "") -> list[str]:
        """Lines that user code appended to the journal, those with `pattern` in them."""
        try:
            lines = self.journal.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line for line in lines if pattern in line]


@contextmanager
def platform_on(bootstrap_servers: str, folder: Path) -> Iterator[Platform]:
    """A namespace of its own, ended with the block."""
    platform = Platform(bootstrap_servers, folder)
    try:
        yield platform
    finally:
        platform.close()

"""Specs: the immutable, versioned descriptions of functions and containers that the registry holds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pelton.core.retry import RetrySpec

DEFAULT_PARTITIONS = 8
RETRIES_PARTITIONS = 4
RESULTS_PARTITIONS = 8


class FunctionKind(StrEnum):
    """How the user's function is called."""

    SYNC = "sync"
    ASYNC = "async"
    GENERATOR = "generator"
    ASYNC_GENERATOR = "async-generator"

    @property
    def streams(self) -> bool:
        """Whether a call yields chunks."""
        return self in (FunctionKind.GENERATOR, FunctionKind.ASYNC_GENERATOR)


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One parameter of the signature; enough to bind arguments in Python's words without the code.

    Attributes:
        name: its name.
        kind: name of `inspect.Parameter.kind`, e.g. "POSITIONAL_OR_KEYWORD".
        required: whether it has no default.
    """

    name: str
    kind: str
    required: bool


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """What the registry knows of a function (key `NAME/spec` of `control.functions`).

    Attributes:
        name: function name.
        version: rises by one with every deploy that changes it.
        container: name of the container that hosts it.
        kind: how it is called.
        parameters: its signature.
        module: module (relative to the bundle root) to load, e.g. "worker".
        qualname: qualified name in that module.
        bundle: SHA-256 hex of the source bundle.
        partitions: partitions of the invocations topic.
        max_attempts: attempts granted on retriable failures.
        timeout_ms: limit for one attempt; 0 for none.
        on_stream_failure: "fail" or "restart".
        max_waiting: calls that may wait for it; 0 for any number.
        retry: how attempts follow each other; None without a policy: only when what ran it was lost.
        description: first paragraph of the docstring, or as given.
        tags: free words.
        deployed_ms: broker time of the deploy.
        code: SHA-256 hex of the code of a function that has no module, else "".
        ordering: "none", or "key": calls with one key start in order.
        digest: SHA-256 hex over what defines it (not version or time): equal digests mean nothing changed.
    """

    name: str
    version: int
    container: str
    kind: FunctionKind
    parameters: tuple[ParameterSpec, ...]
    module: str
    qualname: str
    bundle: str
    partitions: int = DEFAULT_PARTITIONS
    max_attempts: int = 3
    timeout_ms: int = 0
    on_stream_failure: str = "fail"
    description: str = ""
    tags: tuple[str, ...] = ()
    deployed_ms: int = 0
    digest: str = ""
    code: str = ""
    ordering: str = "none"
    retry: RetrySpec | None = None
    max_waiting: int = 0


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What an image asks for: steps in order, each (kind, arguments), and the hash over them."""

    python: str | None = None
    steps: tuple[tuple[str, tuple[str, ...]], ...] = ()
    digest: str = ""


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A secret by name; `env` is the variable it is given in. The value is never in a spec."""

    name: str
    env: str


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """How a deployer asks an instance of a program whether it is well.

    Attributes:
        kind: "http", "tcp" or "exec".
        port: TCP port; 0 for the one the instance was given.
        path: of an http probe, e.g. "/healthz"; answers from 200 to 399 are well.
        command: of an exec probe; exit code 0 is well.
        period_ms: time between two probes.
        timeout_ms: how long one may take.
        failures: so many failures in a row count.
    """

    kind: str
    port: int = 0
    path: str = ""
    command: tuple[str, ...] = ()
    period_ms: int = 2_000
    timeout_ms: int = 1_000
    failures: int = 3


@dataclass(frozen=True, slots=True)
class LagSpec:
    """A topic by whose unread records a program is scaled.

    Attributes:
        topic: its name.
        group: the consumer group that reads it.
        per_instance: unread records for each instance.
    """

    topic: str
    group: str
    per_instance: int


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What the registry knows of a container (key `NAME/spec` of `control.containers`).

    Attributes:
        name: container name.
        version: rises with every deploy that changes it or a function in it.
        functions: names of the functions it hosts; empty for a plain program.
        bundle: SHA-256 hex of the source bundle.
        image: what its environment needs.
        cpu: cores in thousandths; 0 for unset.
        memory: bytes; 0 for unset.
        gpu: what was asked, "" for none.
        env: variables for executors and programs.
        secrets: references, never values.
        min_instances, max_instances: scaling bounds.
        max_concurrent_requests: slots of one executor.
        entrypoint: command of a plain program; empty for functions.
        deployed_ms, digest: as in FunctionSpec.
        port: TCP port that a program listens on; 0 for none.
        readiness: when it answers, an instance of a program is ready; None: when it has started.
        liveness: when it fails, an instance of a program is started again; None for never.
        lag: by what a program is scaled; None for the CPU it uses.
        fixed_instances: number of instances that was set by hand, until the next deploy; None for none.
    """

    name: str
    version: int
    functions: tuple[str, ...]
    bundle: str
    image: ImageSpec = ImageSpec()
    cpu: int = 0
    memory: int = 0
    gpu: str = ""
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[SecretRef, ...] = ()
    min_instances: int = 0
    max_instances: int = 1
    max_concurrent_requests: int = 1
    entrypoint: tuple[str, ...] = ()
    deployed_ms: int = 0
    digest: str = ""
    port: int = 0
    readiness: ProbeSpec | None = None
    liveness: ProbeSpec | None = None
    lag: LagSpec | None = None
    fixed_instances: int | None = None

    @property
    def least_instances(self) -> int:
        """Never fewer: a program always runs where nothing would start it again."""
        return max(self.min_instances, int(bool(self.entrypoint) and self.lag is None))


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """What an instance says of itself every 2 s and on change (key `CONTAINER/INSTANCE`).

    A deployer writes one too, with container "" (key `deployer/ID`).

    Attributes:
        container: name of the container, "" for a deployer.
        instance: id of the instance, unique.
        state: "starting", "ready", "draining", "failed".
        host: host name.
        pid: pid of the coordinator (or of the plain program).
        version: container version it runs.
        functions: functions it serves.
        slots: room for attempts, all executors together.
        running: attempts running now.
        executors: pids of its executors.
        started_ms: broker time of its start.
        seen_ms: broker time of this status; older than 10 s means gone.
        reason: why it failed or waits, "" when all is well.
    """

    container: str
    instance: str
    state: str
    host: str
    pid: int
    version: int
    functions: tuple[str, ...] = ()
    slots: int = 0
    running: int = 0
    executors: tuple[int, ...] = ()
    started_ms: int = 0
    seen_ms: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line of output of user code (topic `control.logs`, key: call id or container name).

    Attributes:
        at_ms: broker time.
        function: function name, "" for a plain program.
        container, instance: who wrote it.
        pid: pid of the executor or program.
        call_id: the call, None outside of one.
        attempt: attempt number, 0 outside of a call.
        source: "stdout", "stderr", "log".
        level: level name for "log", "" otherwise.
        logger: logger name for "log".
        text: the message.
        fields: structured fields as (key, text) pairs.
        dropped: lines dropped just before this one.
    """

    at_ms: int
    function: str
    container: str
    instance: str
    pid: int
    call_id: bytes | None
    attempt: int
    source: str
    text: str
    level: str = ""
    logger: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    dropped: int = 0

"""A transport without a broker whose answers the test gives, and a directory the test fills."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from pelton.core.call import CallId, Failure, Invocation, Result, ResultKind, Token
from pelton.core.spec import (
    ContainerSpec,
    FunctionKind,
    FunctionSpec,
    ImageSpec,
    InstanceStatus,
    ParameterSpec,
)
from pelton.errors import FunctionNotFound
from pelton.protocol import payload
from pelton.transport.ports import AttachState, OnAccepted, OnResults

FIRST = Token(1, 100, 0, 0, 1)
"""The token of a first execution."""


class ScriptedDirectory:
    """What the test says is deployed."""

    def __init__(self) -> None:
        self.known_functions: dict[str, FunctionSpec] = {}
        self.known_containers: dict[str, ContainerSpec] = {}
        self.known_instances: list[InstanceStatus] = []
        self.waits: list[float] = []
        self._changed = threading.Condition()

    def function(self, name: str) -> FunctionSpec | None:
        """The spec of this name."""
        return self.known_functions.get(name)

    def functions(self) -> Sequence[FunctionSpec]:
        """All functions."""
        return list(self.known_functions.values())

    def container(self, name: str) -> ContainerSpec | None:
        """The container of this name."""
        return self.known_containers.get(name)

    def containers(self) -> Sequence[ContainerSpec]:
        """All containers."""
        return list(self.known_containers.values())

    def instances(self, container: str | None = None) -> Sequence[InstanceStatus]:
        """Instances of a container; "" for deployers."""
        return [entry for entry in self.known_instances if container in (None, entry.container)]

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Waits for changes made with `change`."""
        self.waits.append(timeout_s)
        with self._changed:
            return self._changed.wait_for(ready, timeout_s)

    def change(self, *entries: FunctionSpec | ContainerSpec | InstanceStatus) -> None:
        """Puts specs and statuses in."""
        with self._changed:
            for entry in entries:
                if isinstance(entry, FunctionSpec):
                    self.known_functions[entry.name] = entry
                elif isinstance(entry, ContainerSpec):
                    self.known_containers[entry.name] = entry
                else:
                    self.known_instances.append(entry)
            self._changed.notify_all()


class ScriptedTransport:
    """Keeps what is sent; the test answers."""

    def __init__(self) -> None:
        self.scripted = ScriptedDirectory()
        self.sent: dict[CallId, Invocation] = {}
        self.accepting: dict[CallId, OnAccepted] = {}
        self.reading: dict[CallId, list[OnResults]] = {}
        self.forgotten: list[CallId] = []
        self.paused_at: dict[CallId, int] = {}
        self.stretch = 1000
        self.resume_error: Exception | None = None
        self.cancelled: dict[CallId, str] = {}
        self.on_cancel: Callable[[OnAccepted], None] = lambda on_accepted: on_accepted(None)
        self.prepared: list[str] = []
        self.soon: list[FunctionSpec] = []
        self.history: dict[CallId, list[Result]] = {}
        self.attach_states: dict[CallId, AttachState] = {}
        self.on_submit: Callable[[Invocation], None] | None = None
        self.ahead_ms = 0
        self.closed_with: float | None = None
        self.unacknowledged = 0

    @property
    def directory(self) -> ScriptedDirectory:
        """What is deployed."""
        return self.scripted

    def now_ms(self) -> int:
        """Wall clock plus what the test added."""
        return time.time_ns() // 1_000_000 + self.ahead_ms

    @property
    def payloads(self) -> None:
        """Nothing is kept."""

    @property
    def config(self) -> None:
        """As `ports.Transport.config`."""

    def prepare(self, function: str) -> int:
        """Always partition 3; a function that was announced with `soon` is known from now on."""
        self.prepared.append(function)
        self.scripted.change(*(spec for spec in self.soon if spec.name == function))
        if self.scripted.function(function) is None:
            raise FunctionNotFound(f"{function!r} is not deployed")
        return 3

    def submit(
        self, invocation: Invocation, spec: FunctionSpec, on_accepted: OnAccepted, on_results: OnResults
    ) -> None:
        """Keeps the call."""
        self.sent[invocation.call_id] = invocation
        self.accepting[invocation.call_id] = on_accepted
        self.reading[invocation.call_id] = [on_results]
        if self.on_submit is not None:
            self.on_submit(invocation)

    def attach(self, function: str, call_id: CallId, on_results: OnResults, timeout_s: float) -> AttachState:
        """Replays `history`."""
        state = self.attach_states.get(call_id, AttachState.PENDING)
        if state in (AttachState.PENDING, AttachState.FINISHED):
            self.reading.setdefault(call_id, []).append(on_results)
            if known := self.history.get(call_id):
                on_results(known)
        return state

    def cancel(self, call_id: CallId, reason: str, on_accepted: OnAccepted) -> None:
        """Keeps the request; it is accepted unless the test says otherwise."""
        self.cancelled[call_id] = reason
        self.on_cancel(on_accepted)

    def pause(self, call_id: CallId, on_results: OnResults) -> None:
        """Delivers nothing until `resume`."""
        self.paused_at[call_id] = len(self.history.get(call_id, ()))
        self.reading[call_id] = [each for each in self.reading.get(call_id, ()) if each != on_results]

    def resume(self, call_id: CallId, on_results: OnResults, timeout_s: float) -> bool:
        """Delivers the next `stretch` records that were held back."""
        if self.resume_error is not None:
            raise self.resume_error
        at = self.paused_at.pop(call_id, None)
        if at is None:
            return True
        known = self.history.get(call_id, [])
        on_results(known[at : at + self.stretch])
        if at + self.stretch < len(known):
            self.paused_at[call_id] = at + self.stretch
            return False
        self.reading.setdefault(call_id, []).append(on_results)
        return True

    def forget(self, call_id: CallId, on_results: OnResults | None = None) -> None:
        """Delivers nothing more."""
        self.forgotten.append(call_id)
        readers = self.reading.pop(call_id, [])
        if left := [reader for reader in readers if on_results is not None and reader != on_results]:
            self.reading[call_id] = left

    def close(self, timeout_s: float) -> int:
        """Says how many sends are left."""
        self.closed_with = timeout_s
        return self.unacknowledged

    @property
    def last(self) -> Invocation:
        """The call sent last."""
        return list(self.sent.values())[-1]

    def accept(self, call_id: CallId, error: Exception | None = None) -> None:
        """Kafka answers."""
        self.accepting[call_id](error)

    def deliver(self, call_id: CallId, *results: Result) -> None:
        """Results are read; what nobody wants any more is dropped."""
        self.history.setdefault(call_id, []).extend(results)
        for reading in list(self.reading.get(call_id, ())):
            reading(results)

    def answer(self, call_id: CallId, value: object) -> None:
        """The call ends well."""
        self.deliver(call_id, outcome(call_id, value=value))

    def arguments(self, call_id: CallId) -> tuple[tuple[object, ...], dict[str, object]]:
        """What it was called with."""
        return payload.decode_arguments(self.sent[call_id].arguments)


def outcome(
    call_id: CallId, *, value: object = None, failure: Failure | None = None, first: int = 0
) -> Result:
    """The outcome of a call; `first` is the number of chunks before it."""
    items = () if failure is not None else (payload.encode(value),)
    return Result(call_id, FIRST, ResultKind.OUTCOME, first=first, items=items, failure=failure, attempts=1)


def chunk(call_id: CallId, first: int, *values: object) -> Result:
    """A record with chunks."""
    return Result(
        call_id, FIRST, ResultKind.CHUNK, first=first, items=tuple(payload.encode(value) for value in values)
    )


def spec_of(name: str, kind: FunctionKind = FunctionKind.SYNC, parameters: str = "x") -> FunctionSpec:
    """A spec with these positional parameters."""
    return FunctionSpec(
        name=name,
        version=1,
        container=name,
        kind=kind,
        parameters=tuple(
            ParameterSpec(parameter, "POSITIONAL_OR_KEYWORD", True) for parameter in parameters.split()
        ),
        module="worker",
        qualname=name,
        bundle="0" * 64,
    )


def container_of(spec: FunctionSpec, min_instances: int = 0) -> ContainerSpec:
    """The container of a function."""
    return ContainerSpec(
        spec.container, spec.version, (spec.name,), spec.bundle, ImageSpec(), min_instances=min_instances
    )


def status_of(spec: FunctionSpec, state: str = "ready", reason: str = "") -> InstanceStatus:
    """A live instance that serves a function."""
    return InstanceStatus(
        container=spec.container,
        instance=f"{spec.container}-1",
        state=state,
        host="here",
        pid=1,
        version=spec.version,
        functions=(spec.name,) if state == "ready" else (),
        slots=2,
        running=2,
        reason=reason,
    )


def deployer() -> InstanceStatus:
    """A live deployer."""
    return replace(status_of(spec_of("x")), container="", instance="deployer-1", functions=())

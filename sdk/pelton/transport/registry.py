"""What is deployed, in memory: the directory that every transport fills in its own way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from pelton.core.spec import ContainerSpec, FunctionSpec, InstanceStatus

INSTANCE_SEEN_MS: Final = 10_000
"""An instance that has not written its status for longer is gone."""

OnSpec = Callable[[str, str, FunctionSpec | ContainerSpec | None], None]
"""Told what changed: "function" or "container", its name, its spec or None when it is gone."""

_LOOK_AGAIN_S: Final = 0.5  # instances go without a word: `wait` looks again at least this often


class Registry:
    """Implements `ports.Directory` over three mappings.

    Args:
        now_ms: tells broker time, by which instances count as live.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._changed = threading.Condition()
        self._functions: dict[str, FunctionSpec] = {}
        self._containers: dict[str, ContainerSpec] = {}
        self._instances: dict[bytes, InstanceStatus] = {}
        self._listeners: tuple[OnSpec, ...] = ()

    def listen(self, listener: OnSpec) -> None:
        """Tells `listener` of every function and container there is, and of each change from now on.

        It is called with the lock of the registry held, on whatever thread brings the change: it must be
        quick and must not ask the registry anything.
        """
        with self._changed:
            self._listeners += (listener,)
            for container in self._containers.values():
                listener("container", container.name, container)
            for function in self._functions.values():
                listener("function", function.name, function)

    def unlisten(self, listener: OnSpec) -> None:
        """Tells it no more. Idempotent."""
        with self._changed:
            self._listeners = tuple(known for known in self._listeners if known != listener)

    def function(self, name: str) -> FunctionSpec | None:
        """The latest verified spec, or None."""
        return self._functions.get(name)

    def functions(self) -> Sequence[FunctionSpec]:
        """All functions, by name."""
        with self._changed:
            return sorted(self._functions.values(), key=lambda spec: spec.name)

    def container(self, name: str) -> ContainerSpec | None:
        """The container spec, or None."""
        return self._containers.get(name)

    def containers(self) -> Sequence[ContainerSpec]:
        """All containers, by name."""
        with self._changed:
            return sorted(self._containers.values(), key=lambda spec: spec.name)

    def instances(self, container: str | None = None) -> Sequence[InstanceStatus]:
        """Live instances; `container=""` lists live deployers, None all."""
        oldest_ms = self._now_ms() - INSTANCE_SEEN_MS
        with self._changed:
            live = [
                status
                for status in self._instances.values()
                if status.seen_ms >= oldest_ms and (container is None or status.container == container)
            ]
        return sorted(live, key=lambda status: (status.container, status.started_ms, status.instance))

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until `ready()` holds, checking it on every change; False when time ran out."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not ready():
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(min(left_s, _LOOK_AGAIN_S))
            return True

    def await_change(self, timeout_s: float) -> None:
        """Waits until something changed, or time ran out."""
        with self._changed:
            self._changed.wait(timeout_s)

    def put_function(self, name: str, spec: FunctionSpec | None) -> None:
        """Takes a spec in, or takes the function out with None."""
        with self._changed:
            if spec is None:
                self._functions.pop(name, None)
            else:
                self._functions[name] = spec
            for listener in self._listeners:
                listener("function", name, spec)
            self._changed.notify_all()

    def put_container(self, name: str, spec: ContainerSpec | None) -> None:
        """Takes a spec in, or takes the container out with None."""
        with self._changed:
            if spec is None:
                self._containers.pop(name, None)
            else:
                self._containers[name] = spec
            for listener in self._listeners:
                listener("container", name, spec)
            self._changed.notify_all()

    def put_instance(self, key: bytes, status: InstanceStatus | None) -> None:
        """Takes a status in, or takes the instance out with None."""
        with self._changed:
            if status is None:
                self._instances.pop(key, None)
            else:
                self._instances[key] = status
            self._changed.notify_all()

"""Containers: image, environment and scaling bounds that host functions or a plain program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pelton.core.spec import ProbeSpec
from pelton.errors import DefinitionError
from pelton.handle import Handle
from pelton.image import Image
from pelton.lag import KafkaLag
from pelton.loading import active, caller_frame
from pelton.policies import (
    MAX_CONCURRENT_REQUESTS,
    MAX_INSTANCES,
    checked_bounds,
    checked_count,
    checked_cpu,
    checked_env,
    checked_gpu,
    checked_memory,
    checked_name,
    checked_port,
    checked_words,
)
from pelton.probe import Probe
from pelton.script import run as deploy_at_once
from pelton.secret import Secret, checked_secrets

_LISTENS_PERIOD_MS: Final = 500
_DEFAULT_IMAGE: Final = Image()


class Container:
    """Image, environment and scaling bounds; hosts functions, or runs a plain program.

    Functions name it with `container=`. With `entrypoint` it is a plain program, started in the folder of its
    source snapshot, and `run()` says that it is to be deployed.

    Args:
        image: what its environment needs; None for what the platform has.
        name: its name.
        cpu: cores that each executor, or each instance of a program, may use: 2, 0.5, "500m"; None for all.
        memory: that each executor, or each instance of a program, may use: bytes, "512Mi", "8Gi"; what takes
            more is ended. None for all there is.
        gpu: how many GPUs, or which: 1, "A100", "A100:2".
        env: variables for the user code, str to str.
        secrets: `Secret`s, each arriving in a variable.
        min_instances: instances kept alive; 0 stops them all when nothing waits. A plain program has one.
        max_instances: most instances at a time. Plain programs are scaled by `scale_on`.
        max_concurrent_requests: attempts one instance runs at a time, per function.
        entrypoint: command of a plain program, e.g. `["python", "consumer.py"]`.
        port: TCP port that a plain program listens on. Each instance gets one in its variable `PORT`: this
            one where it is free. The gateway leads to it.
        readiness: `Probe` that says when an instance of a program is ready; None: when it listens on its
            port, and without one, when it has started.
        liveness: `Probe` that says when an instance of a program is to be started again; None for never.
        scale_on: `KafkaLag` by which a program is scaled; None: by the CPU it uses, above 70 %.

    Raises:
        DefinitionError: a value is wrong; the message names it and the fix.
    """

    __slots__ = (
        "__weakref__",
        "cpu",
        "entrypoint",
        "env",
        "gpu",
        "image",
        "lag",
        "liveness",
        "max_concurrent_requests",
        "max_instances",
        "memory",
        "min_instances",
        "module",
        "name",
        "port",
        "readiness",
        "secrets",
    )

    def __init__(
        self,
        *,
        image: Image | None = None,
        name: str,
        cpu: float | str | None = None,
        memory: int | str | None = None,
        gpu: str | int | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] | None = None,
        min_instances: int | None = None,
        max_instances: int | None = None,
        max_concurrent_requests: int | None = None,
        entrypoint: Sequence[str] | None = None,
        port: int | None = None,
        readiness: Probe | None = None,
        liveness: Probe | None = None,
        scale_on: KafkaLag | None = None,
    ) -> None:
        self.name: Final = checked_name("container", name)
        owner = f"container {self.name!r}"
        self.cpu: Final = checked_cpu(owner, cpu)
        self.memory: Final = checked_memory(owner, memory)
        self.gpu: Final = checked_gpu(owner, gpu)
        self.port: Final = checked_port(owner, port)
        if image is not None and not isinstance(image, Image):
            raise DefinitionError(f"{owner}: image is an Image, e.g. Image.debian_slim(), not {image!r}")
        self.image: Final = image or _DEFAULT_IMAGE
        self.env: Final = checked_env(owner, env)
        self.secrets: Final = checked_secrets(owner, secrets)
        self.entrypoint: Final = (
            self.image.command if entrypoint is None else checked_words(owner, "entrypoint", entrypoint)
        )
        if entrypoint is not None and not self.entrypoint:
            raise DefinitionError(f'{owner}: entrypoint is empty; give a command like ["python", "main.py"]')
        if self.entrypoint and max_concurrent_requests is not None:
            raise DefinitionError(
                f"{owner}: max_concurrent_requests bounds the calls of functions, and a program with an "
                "entrypoint hosts none; leave it out"
            )
        if not self.entrypoint:
            _refuse_of_functions(owner, port=port, readiness=readiness, liveness=liveness, scale_on=scale_on)
        self.readiness: Final = _probe(owner, "readiness", readiness, self.port)
        self.liveness: Final = _probe(owner, "liveness", liveness, self.port)
        if scale_on is not None and not isinstance(scale_on, KafkaLag):
            raise DefinitionError(
                f'{owner}: scale_on is a KafkaLag, e.g. KafkaLag("orders", "readers"), not {scale_on!r}'
            )
        self.lag: Final = None if scale_on is None else scale_on.spec
        self.min_instances: Final = _count(owner, "min_instances", min_instances, bool(self.entrypoint), 0)
        self.max_instances: Final = _count(
            owner, "max_instances", max_instances, max(1, self.min_instances), 1
        )
        self.max_concurrent_requests: Final = checked_count(
            owner,
            "max_concurrent_requests",
            1 if max_concurrent_requests is None else max_concurrent_requests,
            low=1,
            high=MAX_CONCURRENT_REQUESTS,
        )
        checked_bounds(owner, self.min_instances, self.max_instances)
        if entrypoint is not None and not self.min_instances and self.lag is None:
            raise DefinitionError(
                f"{owner}: nothing would start an instance of a program with min_instances=0 again; give it "
                "scale_on=KafkaLag(...), or min_instances=1"
            )
        if both := sorted({name for name, _ in self.env} & {secret.env for secret in self.secrets}):
            raise DefinitionError(f"{owner}: {', '.join(both)} is given by env and by a secret; drop one")
        frame = caller_frame()
        self.module: Final = "" if frame is None else str(frame.f_globals.get("__name__", ""))
        if (load := active()) is not None:
            load.defined.append(self)

    def run(self) -> Handle:
        """Deploys this container and returns a `Handle` of it.

        Under `pelton deploy FILE` it is deployed with everything else the file defines; in a script, a
        notebook or the REPL at once, with everything that was defined there so far. At the top of a module
        that is only imported it deploys nothing: importing never does.

        Raises:
            DeployError: it was refused, or this process deploys nothing: a test, a child of another process.
            PlatformNotRunning: there is no platform.
        """
        frame = caller_frame(0)
        module = "" if frame is None else str(frame.f_globals.get("__name__", ""))
        load = active()
        if load is not None and module == load.module:
            if self not in load.run:
                load.run.append(self)
            return Handle(self.name)
        if module != "__main__" and frame is not None and frame.f_code.co_name == "<module>":
            return Handle(self.name)
        return Handle(self.name, deploy_at_once(self))

    def __repr__(self) -> str:
        return f"Container(name={self.name!r})"


def _probe(owner: str, keyword: str, probe: object, port: int) -> ProbeSpec | None:
    """What the registry is told of a probe; with a port a program is ready when it listens there."""
    if probe is None:
        return ProbeSpec("tcp", period_ms=_LISTENS_PERIOD_MS) if port and keyword == "readiness" else None
    if not isinstance(probe, Probe):
        raise DefinitionError(f"{owner}: {keyword} is a Probe, e.g. Probe.http(), not {probe!r}")
    if probe.spec.kind != "exec" and not probe.spec.port and not port:
        raise DefinitionError(f"{owner}: {keyword} asks at a port; give port= to the container or the probe")
    return probe.spec


def _refuse_of_functions(owner: str, **given: object) -> None:
    """Refuses what only programs have, where functions are hosted."""
    if wrong := [keyword for keyword, value in given.items() if value is not None]:
        raise DefinitionError(
            f"{owner}: {', '.join(wrong)}= is for programs, and this one has no entrypoint; leave it out"
        )


def _count(owner: str, keyword: str, value: object, default: int, low: int) -> int:
    if value is None:
        return int(default)
    return checked_count(owner, keyword, value, low=low, high=MAX_INSTANCES)

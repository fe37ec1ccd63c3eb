"""Declarations to specs: what the registry is told of functions and containers, and the digests over it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from pelton.container import Container
from pelton.core.spec import DEFAULT_PARTITIONS, ContainerSpec, FunctionSpec
from pelton.decorators import Function, found_in
from pelton.errors import DefinitionError
from pelton.runtime.pickled import MAIN

S = TypeVar("S", FunctionSpec, ContainerSpec)

NO_POLICY_ATTEMPTS: Final = 3
"""Attempts of a call whose function has no retry policy; they are for lost executors and instances."""

_NOT_DEFINING: Final = frozenset({"version", "deployed_ms", "digest", "fixed_instances"})
"""Fields of a spec that change although nothing was changed."""


def default_partitions(container: Container) -> int:
    """Partitions of the invocations topic: at least one for each instance."""
    return max(DEFAULT_PARTITIONS, container.max_instances)


def function_spec(
    function: Function[..., Any, Any, Any],
    *,
    version: int,
    bundle: str,
    module: str | None = None,
    partitions: int | None = None,
    deployed_ms: int = 0,
    code: str = "",
) -> FunctionSpec:
    """The spec of a function.

    Args:
        function: the declaration.
        version: spec version, from 1.
        bundle: SHA-256 hex of the source bundle.
        module: module to load, relative to the root of the bundle; None for the one it is defined in.
        partitions: of the invocations topic; None for the default. A topic that exists keeps what it has.
        deployed_ms: broker time of the deploy.
        code: SHA-256 hex of its code; "" for a function of a module.

    Raises:
        DefinitionError: an executor could not find the function by module and name.
    """
    check_reachable(function)
    parts = function.spec_parts
    policy = parts.retry_policy
    return _with_digest(
        FunctionSpec(
            name=parts.name,
            version=version,
            container=function.container.name,
            kind=parts.kind,
            parameters=parts.parameters,
            module=parts.module if module is None else module,
            qualname=parts.qualname,
            bundle=bundle,
            partitions=default_partitions(function.container) if partitions is None else partitions,
            timeout_ms=parts.timeout_ms,
            on_stream_failure=parts.on_stream_failure,
            ordering=parts.ordering,
            max_attempts=NO_POLICY_ATTEMPTS if policy is None else policy.max_retries + 1,
            retry=None if policy is None else policy.spec,
            description=parts.description,
            tags=parts.tags,
            deployed_ms=deployed_ms,
            code=code,
        )
    )


def container_spec(
    container: Container,
    *,
    functions: Sequence[str],
    version: int,
    bundle: str,
    folder: Path | None = None,
    deployed_ms: int = 0,
) -> ContainerSpec:
    """The spec of a container.

    Args:
        container: the declaration.
        functions: names of the functions it hosts; empty for a plain program.
        version: from 1.
        bundle: SHA-256 hex of the source bundle.
        folder: the folder that is deployed, from which local files of the image are read.
        deployed_ms: broker time of the deploy.

    Raises:
        DefinitionError: it hosts nothing and has no entrypoint, or a local file of its image is not there.
    """
    if not functions and not container.entrypoint:
        raise DefinitionError(
            f"container {container.name!r} hosts no function and has no entrypoint; give a function "
            f'container=, or the container entrypoint=["python", "main.py"]'
        )
    return _with_digest(
        ContainerSpec(
            name=container.name,
            version=version,
            functions=tuple(sorted(functions)),
            bundle=bundle,
            image=container.image.spec(folder),
            env=container.env,
            secrets=tuple(secret.ref for secret in container.secrets),
            min_instances=container.min_instances,
            max_instances=container.max_instances,
            max_concurrent_requests=container.max_concurrent_requests,
            entrypoint=container.entrypoint,
            deployed_ms=deployed_ms,
            cpu=container.cpu,
            memory=container.memory,
            gpu=container.gpu,
            port=container.port,
            readiness=container.readiness,
            liveness=container.liveness,
            lag=container.lag,
        )
    )


def check_reachable(function: Function[..., Any, Any, Any]) -> None:
    """Makes sure that module and name lead back to the function, as they must in an executor.

    Functions of `__main__` travel as code and need neither.

    Raises:
        DefinitionError: they do not.
    """
    if function.module == MAIN:
        return
    label = f"function {function.name!r} ({function.module}.{function.qualname})"
    if "<locals>" in function.qualname:
        raise DefinitionError(f"{label} is defined inside another function; move it to the top of the module")
    module = sys.modules.get(function.module)
    found = found_in(module, function.qualname)
    if module is not None and found is not function and found is not function.fn:
        raise DefinitionError(
            f"{label}: the name {function.qualname!r} of the module is something else, so executors would "
            "not find it; keep the function under its own name"
        )


def _with_digest(spec: S) -> S:
    """The spec with the digest over what defines it."""
    fields = {name: value for name, value in asdict(spec).items() if name not in _NOT_DEFINING}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return replace(spec, digest=hashlib.sha256(text.encode()).hexdigest())

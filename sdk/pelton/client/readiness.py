"""Whether a function can answer calls, and in words why it cannot yet."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from pelton.core.spec import FunctionSpec, InstanceStatus
from pelton.errors import FunctionNotFound, NotReady
from pelton.transport.ports import Directory

READY: Final = "ready"
"""State of an instance that takes calls."""

FAILED: Final = "failed"
"""State of an instance that could not start."""

QUIET_SECONDS: Final = 5.0
"""A wait says what it waits for after this long."""


def close_names(directory: Directory, name: str) -> list[str]:
    """Names of deployed functions that look like this one, the closest first."""
    return difflib.get_close_matches(name, [spec.name for spec in directory.functions()], n=3, cutoff=0.6)


def not_found(directory: Directory, name: str) -> FunctionNotFound:
    """The error for a name that is not in the registry."""
    return FunctionNotFound(
        f"{_unknown(directory, name)} Nothing was sent; deploy it with `pelton deploy FILE`."
    )


def missing(directory: Directory, name: str, version: int | None = None) -> list[str]:
    """What is missing before the function can answer, one sentence each; empty when it is ready.

    Args:
        directory: what is deployed.
        name: the function.
        version: the spec version it must have at least, None for any.
    """
    spec = directory.function(name)
    if spec is None:
        return [_unknown(directory, name)]
    if version is not None and spec.version < version:
        return [f"Function {name!r} is deployed in version {spec.version}, not yet in version {version}."]
    return unserved(directory, spec)


def unserved(directory: Directory, spec: FunctionSpec) -> list[str]:
    """Why nobody would answer a call of this function, one sentence each; empty when somebody would."""
    container = directory.container(spec.container)
    if container is None:
        return [f"Container {spec.container!r} of function {spec.name!r} is not in the registry."]
    instances = [entry for entry in directory.instances(spec.container) if entry.version >= container.version]
    serving = [entry for entry in instances if entry.state == READY and spec.name in entry.functions]
    deployers = directory.instances("")
    if serving or (container.min_instances == 0 and deployers and not _failures(instances)):
        return []
    reasons = [] if deployers else ["No deployer is alive to start instances; start one with `pelton up`."]
    if not instances:
        reasons.append(f"No instance of container {spec.container!r} is alive.")
    for entry in instances:
        why = f": {entry.reason}" if entry.reason else ""
        if entry.state != READY or why:
            reasons.append(f"Instance {entry.instance} is {entry.state}{why}.")
        elif spec.name not in entry.functions:
            reasons.append(f"Instance {entry.instance} does not serve {spec.name!r} yet.")
    return reasons


def wait_ready(directory: Directory, name: str, version: int | None, timeout_s: float) -> None:
    """Blocks until the function can answer calls; after 5 s says on stderr what is missing.

    Raises:
        NotReady: time ran out; carries the reasons.
    """
    end = time.monotonic() + timeout_s

    def ready() -> bool:
        return not missing(directory, name, version)

    if directory.wait(ready, min(QUIET_SECONDS, timeout_s)):
        return
    remaining = end - time.monotonic()
    if remaining > 0:
        reasons = missing(directory, name, version)
        sys.stderr.write(f"pelton: waiting for function {name!r}: {' '.join(reasons)}\n")
        if directory.wait(ready, remaining):
            return
    reasons = missing(directory, name, version)
    if reasons:
        limit = f"{timedelta(seconds=round(timeout_s))}" if timeout_s >= 60 else f"{timeout_s:g} s"
        raise NotReady(f"Function {name!r} was not ready within {limit}: {' '.join(reasons)}", reasons)


def _failures(instances: Sequence[InstanceStatus]) -> bool:
    return bool(instances) and all(entry.state == FAILED for entry in instances)


def _unknown(directory: Directory, name: str) -> str:
    near = close_names(directory, name)
    if near:
        return f"Function {name!r} is not deployed; deployed ones with a close name: {', '.join(near)}."
    count = len(directory.functions())
    return f"Function {name!r} is not deployed; {count or 'no'} other{'s are' if count != 1 else ' is'}."

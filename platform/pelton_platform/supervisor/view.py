"""What became of containers, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each container whose state differs.

    Args:
        before: Containers by name, as in the deployer's state file, at the last look.
        now: The same now.
    """
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if new is None:
            yield f"{name}: removed"
            continue
        line = describe(new)
        if old is None or describe(old) != line:
            yield f"{name}: {line}"


def describe(state: Mapping[str, Any]) -> str:
    """Return the state of one container in a line."""
    if state["refused"]:
        return f"version {state['version']} is refused: {state['reason']}"
    counts: dict[str, int] = {}
    for instance in state["instances"]:
        counts[instance["state"]] = counts.get(instance["state"], 0) + 1
    parts = [f"{counts[phase]} {phase}" for phase in ("ready", "starting", "draining") if phase in counts]
    text = f"version {state['version']}, {', '.join(parts) or 'no instance'}"
    return f"{text}; {state['reason']}" if state["reason"] else text

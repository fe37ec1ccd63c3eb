"""The commands `pelton functions`, `pelton ps` and `pelton version`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pelton_platform.cli.connecting import open_registry
from pelton_platform.cli.console import Json, age, print_json, print_table

if TYPE_CHECKING:
    from pelton.core.spec import InstanceStatus
    from pelton.transport.config import ConnectionConfig

GONE_AFTER_MS = 10_000
"""Instances write their status every 2 s: one that is silent for longer than this is gone."""


def functions(as_json: Json = False) -> None:
    """List the deployed functions.

    With their containers, and how many calls of each have no end yet.
    """
    from pelton.protocol.topics import Topics
    from pelton.transport.kafka.admin import Admin
    from pelton_platform.deploy.backlog import Backlog

    with open_registry() as (config, registry):
        found, containers, _ = registry.snapshot()
        refused = dict(registry.refused)
        admin = Admin(config)
        try:
            unfinished = Backlog(admin, Topics(config.namespace)).look(found) if found else {}
        finally:
            admin.close()
    rows = [found[name] for name in sorted(found)]
    if as_json:
        print_json(
            [
                {
                    **asdict(spec),
                    "kind": str(spec.kind),
                    "unfinished": unfinished.get(spec.name),
                    "min_instances": getattr(containers.get(spec.container), "min_instances", None),
                    "max_instances": getattr(containers.get(spec.container), "max_instances", None),
                    "refused": refused.get(f"functions/{spec.name}", ""),
                }
                for spec in rows
            ]
        )
        return
    print_table(
        ("FUNCTION", "VERSION", "KIND", "CONTAINER", "UNFINISHED", "DESCRIPTION"),
        (
            (
                spec.name,
                spec.version,
                spec.kind,
                spec.container,
                unfinished.get(spec.name, "?"),
                spec.description.split("\n")[0][:60],
            )
            for spec in rows
        ),
        empty="no function is deployed; deploy a file with `pelton deploy FILE`",
    )


def ps(
    watch: Annotated[
        bool,
        typer.Option("--watch", "-w", help="Show how containers are scaled and why, until Ctrl-C."),
    ] = False,
    as_json: Json = False,
) -> None:
    """List instances, and why they fail.

    With what they run, the pids of their executors, and what is not as their image says. `--watch` shows
    containers instead: instances, slots, backlog, rates, and the last decision with its reason.
    """
    from pelton.transport.kafka.probe import broker_now_ms

    if watch:
        _watch(as_json)

    with open_registry() as (config, registry):
        now_ms = broker_now_ms(config)
        _, containers, statuses = registry.snapshot()
    notes, reasons = _said_by_deployer(config)
    live = [
        status for status in statuses.values() if status.container and now_ms - status.seen_ms < GONE_AFTER_MS
    ]
    # An instance that starts again has nothing to say of how the one before it ended.
    live = [replace(one, reason=one.reason or reasons.get(one.container, "")) for one in live]
    live.sort(key=lambda status: (status.container, status.started_ms, status.instance))
    serving = {status.container for status in live}
    resting = [name for name in sorted(containers) if name not in serving]
    if as_json:
        found = [
            *(asdict(status) for status in live),
            *(_resting(name, containers, reasons) for name in resting),
        ]
        print_json([{**row, "notes": notes.get(row["container"], [])} for row in found])
        return
    rows: list[tuple[Any, ...]] = [_row(status, now_ms) for status in live]
    rows += [
        (name, "-", containers[name].version, "no instance", "", "", "", "", reasons.get(name, ""))
        for name in resting
    ]
    rows = [(*row[:-1], "; ".join([row[-1], *notes.get(row[0], [])]).strip("; ")) for row in rows]
    print_table(
        ("CONTAINER", "INSTANCE", "VERSION", "STATE", "RUNNING", "PID", "EXECUTORS", "AGE", "REASON"),
        sorted(rows, key=lambda row: str(row[0])),
        empty="no container is deployed; deploy a file with `pelton deploy FILE`",
    )


def _watch(as_json: bool) -> NoReturn:
    from pelton.errors import DeployError
    from pelton.transport.config import find_context
    from pelton_platform.cli import watching
    from pelton_platform.deploy.home import Home

    home = find_context().home
    if home is None:
        raise DeployError("--watch needs the home folder of the platform: PELTON_HOME names it")
    watching.watch(Home(home), as_json)


def _said_by_deployer(config: ConnectionConfig) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What is not as containers ask for, and why some do not run, where the platform is on this machine."""
    from pelton_platform.deploy.home import Home, read_json

    if config.home is None:
        return {}, {}
    containers = (read_json(Home(config.home).deployer_file) or {}).get("containers", {})
    notes = {name: list(state["notes"]) for name, state in containers.items() if state["notes"]}
    return notes, {name: state["reason"] for name, state in containers.items() if state["reason"]}


def version(as_json: Json = False) -> None:
    """Print the version of Pelton and of Python."""
    import platform
    from importlib import metadata

    ours = metadata.version("pelton")
    if as_json:
        print_json({"pelton": ours, "python": platform.python_version()})
    else:
        typer.echo(f"pelton {ours} (Python {platform.python_version()})")


def _row(status: InstanceStatus, now_ms: int) -> tuple[Any, ...]:
    return (
        status.container,
        status.instance if status.pid else "-",
        status.version,
        status.state,
        f"{status.running}/{status.slots}" if status.slots else "",
        status.pid or "",
        ",".join(map(str, status.executors)),
        age(now_ms - status.started_ms) if status.started_ms else "",
        status.reason,
    )


def _resting(name: str, containers: dict[str, Any], reasons: dict[str, str]) -> dict[str, Any]:
    return {
        "container": name,
        "version": containers[name].version,
        "state": "no instance",
        "instance": None,
        "reason": reasons.get(name, ""),
    }

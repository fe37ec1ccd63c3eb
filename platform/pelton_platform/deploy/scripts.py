"""Deploying what a running script, notebook or REPL defines: the platform's side of `pelton.script`."""

from __future__ import annotations

import sys
from types import ModuleType

from pelton import hooks
from pelton.errors import DeployError
from pelton.loading import Collected
from pelton.runtime.pickled import dump
from pelton.transport.config import ConnectionConfig, home_folder
from pelton_platform.deploy.home import Home
from pelton_platform.deploy.publish import (
    ACT_S,
    READY_S,
    UNCHANGED,
    Outcome,
    Publisher,
    await_deployer,
    failure,
)
from pelton_platform.deploy.sources import of_program
from pelton_platform.settings import load_settings


def deploy(collected: Collected, config: ConnectionConfig, main: ModuleType) -> None:
    """Deploy what this process defines; see `pelton.script.Deployer`."""
    code = {
        function.name: dump(function.name, function.fn, hooks.of_main()) for function in collected.functions
    }
    source = of_program(main, code, whole=any(container.entrypoint for container in collected.containers))
    home = Home(config.home or home_folder())
    if not home.is_ours:
        raise DeployError(
            f"{source.name} can be deployed only from the machine of the platform: {home.root} is not the "
            "home folder of one. PELTON_HOME names it"
        )
    limit = load_settings().bundle_limit_mib * 1024 * 1024
    with Publisher(config, home, limit, tell=_tell) as publisher:
        outcome = publisher.deploy(source, collected)
    for warning in outcome.warnings:
        _tell(f"warning: {warning}")
    _tell_changes(outcome)
    versions = {change.name: change.version for change in outcome.changes if change.kind == "container"}
    states = await_deployer(home, versions, act_s=ACT_S, ready_s=READY_S, tell=_tell)
    for name, state in states.items():
        if why := failure(state):
            raise DeployError(f"container {name!r} does not run: {why}")


def _tell_changes(outcome: Outcome) -> None:
    changed = [
        f"{change.name} version {change.version}"
        for change in outcome.changes
        if change.kind == "function" and change.change != UNCHANGED
    ]
    changed += [
        f"container {change.name} version {change.version}"
        for change in outcome.changes
        if change.kind == "container"
        and change.change != UNCHANGED
        and not any(one.name == change.name for one in outcome.changes if one.kind == "function")
    ]
    if changed:
        _tell(f"deployed {', '.join(changed)}")


def _tell(line: str) -> None:
    sys.stderr.write(f"pelton: {line}\n")
    sys.stderr.flush()

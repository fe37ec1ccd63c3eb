"""The command `pelton deploy`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelton_platform.cli.console import EXIT_FAILED, Json, print_json, tell, warn

if TYPE_CHECKING:
    from pelton_platform.deploy.home import Home
    from pelton_platform.deploy.publish import Outcome


def deploy(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE|FOLDER]...",
            help="Python files that define functions or containers, or folders with such files.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and compare only; nothing is written.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until instances that should run are ready.")
    ] = True,
    strict_python: Annotated[
        bool,
        typer.Option("--strict-python", help="Refuse images whose Python this machine does not have."),
    ] = False,
    strict_resources: Annotated[
        bool,
        typer.Option(
            "--strict-resources",
            help="Refuse containers that ask for more CPU, memory or GPUs than there are.",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also when a new signature does not fit calls that wait: those fail."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Deploy the functions and containers of files.

    Of a folder those are taken that its pelton.toml lists under `deploy`, else all that define something;
    without a word those of the nearest pelton.toml. All are loaded before the first one is deployed. A file
    that has not changed changes nothing. The exit code is 1 when one is refused, and when a container that
    should run does not.
    """
    from pelton.transport.config import find_context, home_folder
    from pelton_platform.deploy.home import Home
    from pelton_platform.deploy.projects import load_all
    from pelton_platform.deploy.publish import READY_S, Publisher, failure
    from pelton_platform.deploy.sources import of_file
    from pelton_platform.settings import load_settings

    config = find_context()
    home = Home(config.home or home_folder())
    loaded = load_all(files or [])
    limit = load_settings().bundle_limit_mib * 1024 * 1024
    outcomes = []
    with Publisher(config, home, limit, tell=tell) as publisher:
        for one in loaded:
            with one.in_place():
                outcome = publisher.deploy(
                    of_file(one.file),
                    one.collected,
                    dry_run=dry_run,
                    strict_python=strict_python,
                    strict_resources=strict_resources,
                    force=force,
                )
            for warning in outcome.warnings:
                warn(warning)
            outcomes.append(outcome)
    for outcome in outcomes:
        if not dry_run:
            outcome.states = _await(home, outcome, READY_S if wait else 0.0)
        if not as_json:
            _show(outcome)
    if as_json:
        reports = [{**asdict(outcome), "changed": outcome.changed} for outcome in outcomes]
        single = files is not None and len(files) == 1 and not files[0].is_dir()
        print_json(reports[0] if single else {"files": reports})
    if wait and any(failure(state) for outcome in outcomes for state in outcome.states.values()):
        raise typer.Exit(EXIT_FAILED)


def _await(home: Home, outcome: Outcome, ready_s: float) -> dict[str, Any]:
    from pelton_platform.deploy.publish import ACT_S, await_deployer

    versions = {change.name: change.version for change in outcome.changes if change.kind == "container"}
    return await_deployer(home, versions, act_s=ACT_S, ready_s=ready_s, tell=tell)


def _show(outcome: Outcome) -> None:
    from pelton_platform.supervisor.view import describe

    for change in outcome.changes:
        typer.echo(f"{change.kind} {change.name} version {change.version}: {change.change}")
    for name, state in sorted(outcome.states.items()):
        tell(f"{name}: {describe(state)}")
    if outcome.dry_run:
        tell("dry run: nothing was written")
    elif not outcome.changed:
        tell("nothing has changed")
    else:
        functions = [change.name for change in outcome.changes if change.kind == "function"]
        if functions:
            tell(f"next: pelton call {functions[0]} ...")

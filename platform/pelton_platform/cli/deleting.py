"""The command `pelton delete`."""

from __future__ import annotations

from typing import Annotated

import typer

from pelton_platform.cli.console import Json, print_json, tell


def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Functions and containers.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also when calls wait: they are lost with their topics.")
    ] = False,
    keep_calls: Annotated[
        bool,
        typer.Option(
            "--keep-calls", help="Leave the topics: calls go on when the function is deployed again."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go and what still waits; delete nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete functions and containers: their instances, and the topics of functions.

    A container goes with its last function, and functions go with their container. What still waits is
    shown, and refuses the deletion unless it is forced or the calls are kept.
    """
    from pelton.errors import DeployError
    from pelton.transport.config import find_context, home_folder
    from pelton_platform.deploy.deleting import Deleter
    from pelton_platform.deploy.home import Home

    config = find_context()
    with Deleter(config, Home(config.home or home_folder())) as deleter:
        found = deleter.look(names)
        report = {
            "functions": sorted(found.functions),
            "containers": sorted(found.containers),
            "waiting": found.waiting,
            "dry_run": dry_run,
        }
        if found.waiting and not as_json:
            for name, count in sorted(found.waiting.items()):
                tell(f"{count} calls of {name} have no end yet")
        if found.waiting and not (force or keep_calls or dry_run):
            waiting = ", ".join(f"{name} ({count})" for name, count in sorted(found.waiting.items()))
            raise DeployError(
                f"calls still wait: {waiting}. Nothing was deleted; --keep-calls leaves them for the next "
                "deploy, --force loses them"
            )
        topics = [] if dry_run else deleter.delete(found, keep_calls=keep_calls, tell=tell)
    if as_json:
        print_json({**report, "topics": topics})
        return
    verb = "would delete" if dry_run else "deleted"
    for kind in ("functions", "containers"):
        for name in report[kind]:  # type: ignore[attr-defined]
            typer.echo(f"{verb} {kind[:-1]} {name}")
    if topics:
        tell(f"deleted {len(topics)} topics")

"""The command `pelton doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from pelton_platform.cli.console import EXIT_FAILED, Json, print_json

_MARKS = {
    "ok": ("ok", "green"),
    "warning": ("warn", "yellow"),
    "failed": ("FAIL", "red"),
    "skipped": ("-", None),
}


def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="End processes that an earlier platform left behind.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine and the platform.

    Python, Java, jars, home, disk, payloads, port, orphans, broker round trip, clocks.
    The exit code is 1 when a check fails.
    """
    from pelton_platform.settings import load_settings
    from pelton_platform.supervisor.checks import run_checks

    findings = run_checks(load_settings(), fix=fix)
    if as_json:
        print_json([{"check": one.check, "state": one.state, "text": one.text} for one in findings])
    else:
        for one in findings:
            mark, color = _MARKS[one.state]
            typer.secho(f"{mark:<5}", fg=color, nl=False)
            typer.echo(f"{one.check:<13} {one.text}")
    if any(one.state == "failed" for one in findings):
        raise typer.Exit(EXIT_FAILED)

"""The commands `pelton kafka up|down|status`: an embedded Apache Kafka of its own, without the platform."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pelton_platform.embedded.detached import Status

app = typer.Typer(
    name="kafka",
    help="Run an embedded Apache Kafka in the background, without the platform.",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def state_home() -> Path:
    """Return the folder of Pelton's state: PELTON_HOME, else `~/.pelton`."""
    return Path(os.environ.get("PELTON_HOME") or "~/.pelton").expanduser()


@app.command("up")
def up_command(
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port on loopback; 0 takes the port of the last run, or a free one."
        ),
    ] = 0,
    data_dir: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder to keep records in; below PELTON_HOME unless told."),
    ] = None,
    temporary: Annotated[bool, typer.Option("--temporary", help="Delete the records on `down`.")] = False,
    as_json: Json = False,
) -> None:
    """Start a broker, fetching Apache Kafka on the first run; one that runs already is left alone."""
    from pelton_platform.embedded.detached import up

    with _errors_told():
        flags = os.environ.get("PELTON_JAVA_FLAGS", "").split()
        _show(up(state_home(), port, data_dir=data_dir, temporary=temporary, java_flags=flags), as_json)


@app.command("down")
def down_command(as_json: Json = False) -> None:
    """Stop the broker; its records stay unless they were temporary."""
    from pelton_platform.embedded.detached import down

    with _errors_told():
        _show(down(state_home()), as_json)


@app.command("status")
def status_command(as_json: Json = False) -> None:
    """Say whether the broker runs, and where; exit code 1 if it does not."""
    from pelton_platform.embedded.detached import status

    with _errors_told():
        found = status(state_home())
        _show(found, as_json)
    if not found.running:
        raise typer.Exit(1)


@contextmanager
def _errors_told() -> Iterator[None]:
    from pelton_platform.embedded import EmbeddedKafkaError

    try:
        yield
    except EmbeddedKafkaError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _show(found: Status, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_json()))
        return
    if found.running:
        print(f"Apache Kafka runs at {found.bootstrap_servers} (pid {found.pid})")
    else:
        print("Apache Kafka does not run here; start it with: pelton kafka up")
    if found.data_dir is not None:
        kept = "deleted by `pelton kafka down`" if found.temporary else "kept"
        print(f"  records: {found.data_dir} ({kept})")
    if found.log is not None:
        print(f"  log:     {found.log}")

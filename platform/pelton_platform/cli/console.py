"""How commands speak: results on standard output, everything else on standard error, JSON when asked."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

_DURATION = re.compile(r"(\d+)(s|m|h|d)")
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

EXIT_FAILED = 1
EXIT_ALREADY_RUNNING = 3


def tell(line: str) -> None:
    """Write a line of progress for people to standard error."""
    typer.echo(line, err=True)


def warn(line: str) -> None:
    """Write a warning to standard error."""
    typer.secho("warning: ", fg="yellow", err=True, nl=False)
    typer.echo(line, err=True)


def complain(line: str) -> None:
    """Write an error to standard error."""
    typer.secho("error: ", fg="red", err=True, nl=False)
    typer.echo(line, err=True)


def print_json(data: Any) -> None:
    """Write one JSON value to standard output; values JSON does not know are written as text."""
    typer.echo(json.dumps(data, default=str, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Write rows as a table to standard output; `empty` to standard error when there are none."""
    texts = [[str(cell) for cell in row] for row in rows]
    if not texts:
        tell(empty)
        return
    if not sys.stdout.isatty():
        _print_plain(columns, texts)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in texts:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)


def _print_plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[index]) for row in (columns, *rows)) for index in range(len(columns))]
    for row in (columns, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def duration_ms(option: str, text: str) -> int:
    """Return a length of time as people write it, `10m`, `2h`, `1d`, in milliseconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{option} is a number and a unit: 10m, 2h, 1d")
    return int(match[1]) * _UNITS_MS[match[2]]


def age(milliseconds: int) -> str:
    """Return a length of time as people say it: `4s`, `3m`, `2h`, `5d`."""
    seconds = max(0, milliseconds // 1000)
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"

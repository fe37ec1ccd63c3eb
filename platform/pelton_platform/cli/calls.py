"""The commands `pelton calls ls|show|result`: waiting, running and finished calls, read from the topics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelton_platform.cli.connecting import open_registry
from pelton_platform.cli.console import EXIT_FAILED, Json, age, complain, print_json, print_table, tell

if TYPE_CHECKING:
    from pelton.core.spec import FunctionSpec
    from pelton_platform.deploy.callbook import CallBook, CallEntry

app = typer.Typer(name="calls", help="Look at waiting, running and finished calls.", no_args_is_help=True)

_DURATION = re.compile(r"(\d+)(s|m|h|d)")
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

MOST_RESULTS = 5_000
MOST_OPEN = 1_000
"""Records read per partition: a list stays quick with a million calls waiting."""

CallIdArgument = Annotated[str, typer.Argument(metavar="CALL", help="Id of the call.")]
FunctionOption = Annotated[str | None, typer.Option("--function", help="Look only at this function.")]


@app.command("ls")
def list_calls(
    function: FunctionOption = None,
    state: Annotated[
        str | None, typer.Option(help="Only waiting, running, succeeded or failed ones.")
    ] = None,
    since: Annotated[str, typer.Option(help="How far back finished calls are shown: 10m, 2h, 1d.")] = "1h",
    limit: Annotated[int, typer.Option(min=1, help="Most calls to show, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List calls, newest first: those that wait or run, and those that finished lately.

    Of a long backlog the oldest and the newest calls are read; `pelton functions` counts them all.
    """
    from pelton.transport.config import find_context
    from pelton.transport.kafka.probe import broker_now_ms
    from pelton_platform.deploy.callbook import overview

    match = _DURATION.fullmatch(since)
    if match is None:
        raise typer.BadParameter("--since is a number and a unit: 10m, 2h, 1d")
    now_ms = broker_now_ms(find_context())
    since_ms = now_ms - int(match[1]) * _UNITS_MS[match[2]]
    entries: list[CallEntry] = []
    with _book(function) as (book, specs):
        for spec in specs:
            # Results first: a call that ends meanwhile is then still found among the waiting ones.
            seen = book.results(spec, since_ms, most=max(MOST_RESULTS, limit))
            entries += overview(book.open_calls(spec, most=max(MOST_OPEN, limit)), seen)
    entries = [entry for entry in entries if state is None or entry.state == state]
    entries.sort(key=lambda entry: entry.submitted_ms, reverse=True)
    shown = entries[:limit]
    if as_json:
        print_json([_plain(entry) for entry in shown])
        return
    print_table(
        ("CALL", "FUNCTION", "STATE", "ATTEMPT", "AGE", "WORKER"),
        (
            (
                _id(entry),
                entry.function,
                entry.state,
                entry.attempt,
                age(now_ms - entry.submitted_ms),
                entry.worker,
            )
            for entry in shown
        ),
        empty="no calls",
    )
    if len(entries) > limit:
        tell(f"{len(entries) - limit} more; show them with --limit")


@app.command("show")
def show_call(call: CallIdArgument, function: FunctionOption = None, as_json: Json = False) -> None:
    """Show what is known of one call."""
    entry = _find(call, function)
    data = _plain(entry)
    if as_json:
        print_json(data)
        return
    for name, value in data.items():
        if value not in ("", None, 0):
            typer.echo(f"{name:<12} {value}")


@app.command("result")
def show_result(call: CallIdArgument, function: FunctionOption = None, as_json: Json = False) -> None:
    """Print the value of a finished call; exit code 1 when it failed or has not finished."""
    from pelton.client.failures import error_of
    from pelton.protocol import payload
    from pelton_platform.cli.calling import _text

    entry = _find(call, function)
    chunks = [payload.decode(chunk) for chunk in entry.chunks]
    outcome = entry.outcome
    if outcome is None or outcome.failure is not None:
        if as_json:
            print_json({**_plain(entry), "chunks": chunks})
        if outcome is None:
            complain(f"call {call} is {entry.state}; it has no result yet")
        elif outcome.failure is not None:
            complain(f"{error_of(outcome.failure, call)} ({outcome.failure.code})")
        raise typer.Exit(EXIT_FAILED)
    value = payload.decode(outcome.items[0]) if outcome.items else None
    if as_json:
        print_json({"call_id": call, "value": chunks or value, "stream": bool(chunks)})
        return
    for chunk in chunks or [value]:
        typer.echo(_text(chunk))


@contextmanager
def _book(function: str | None) -> Iterator[tuple[CallBook, list[FunctionSpec]]]:
    from pelton.errors import FunctionNotFound
    from pelton_platform.deploy.callbook import CallBook

    with open_registry() as (config, registry):
        found, _, _ = registry.snapshot()
        if function is not None and function not in found:
            raise FunctionNotFound(f"function {function!r} is not deployed; see `pelton functions`")
        specs = [found[name] for name in sorted(found) if function in (None, name)]
        book = CallBook(config)
        try:
            yield book, specs
        finally:
            book.close()


def _find(call: str, function: str | None) -> CallEntry:
    from pelton.core.call import parse_call_id
    from pelton.errors import CallNotFound

    try:
        call_id = parse_call_id(call)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with _book(function) as (book, specs):
        entry = book.find(specs, call_id)
    if entry is None:
        raise CallNotFound(f"nothing is known of call {call}: it never was, or its results have expired")
    return entry


def _id(entry: CallEntry) -> str:
    from pelton.core.call import call_id_text

    return call_id_text(entry.call_id)


def _plain(entry: CallEntry) -> dict[str, Any]:
    outcome = entry.outcome
    failure = outcome.failure if outcome is not None else None
    return {
        "call_id": _id(entry),
        "function": entry.function,
        "state": entry.state,
        "attempt": entry.attempt,
        "submitted": _instant(entry.submitted_ms),
        "ended": _instant(entry.ended_ms),
        "worker": entry.worker,
        "waits_in": entry.place,
        "chunks": outcome.first if outcome is not None else len(entry.chunks),
        "error": f"{failure.type}: {failure.message}" if failure is not None else None,
        "code": failure.code if failure is not None else None,
    }


def _instant(at_ms: int) -> str | None:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds") if at_ms else None

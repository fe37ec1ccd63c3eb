"""The commands `pelton calls ls|show|result`: waiting, running and finished calls, read from the topics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelton_platform.cli.connecting import not_deployed, open_registry
from pelton_platform.cli.console import (
    EXIT_FAILED,
    Json,
    age,
    complain,
    duration_ms,
    print_json,
    print_table,
    tell,
)

if TYPE_CHECKING:
    from pelton.core.spec import FunctionSpec
    from pelton_platform.deploy.callbook import CallBook, CallEntry

app = typer.Typer(name="calls", help="Look at waiting, running and finished calls.", no_args_is_help=True)

MOST_RESULTS = 5_000
MOST_OPEN = 1_000
"""Records read per partition: a list stays quick with a million calls waiting."""

CallIdArgument = Annotated[str, typer.Argument(metavar="CALL", help="Id of the call.")]
FunctionOption = Annotated[str | None, typer.Option("--function", help="Look only at this function.")]


@app.command("ls")
def list_calls(
    function: FunctionOption = None,
    state: Annotated[
        str | None, typer.Option(help="Only waiting, running, succeeded, failed or cancelled ones.")
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

    back_ms = duration_ms("--since", since)
    now_ms = broker_now_ms(find_context())
    since_ms = now_ms - back_ms
    entries: list[CallEntry] = []
    with open_book(function) as (book, specs):
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
    """Show what is known of one call, and the tree of the calls that belong together with it."""
    entry, family = _find_family(call, function)
    data = _plain(entry)
    if as_json:
        print_json({**data, "tree": [_plain(each) for each in family]})
        return
    for name, value in data.items():
        if value not in ("", None, 0):
            typer.echo(f"{name:<12} {value}")
    if len(family) > 1:
        typer.echo("")
        for line in _tree(family, entry):
            typer.echo(line)


def _tree(family: list[CallEntry], shown: CallEntry) -> Iterator[str]:
    """The calls as a tree, one line each; the call that was asked for is marked."""
    known = {entry.call_id for entry in family}
    children: dict[bytes | None, list[CallEntry]] = {}
    for entry in family:
        parent = next((each for each in reversed(entry.ancestry) if each in known), None)
        children.setdefault(parent, []).append(entry)

    def draw(parent: bytes | None, indent: str) -> Iterator[str]:
        below = children.get(parent, [])
        for number, entry in enumerate(below, 1):
            last = number == len(below)
            branch = "" if parent is None else "└─ " if last else "├─ "
            mark = "  <- this call" if entry is shown else ""
            yield f"{indent}{branch}{entry.function}  {entry.state}  {_id(entry)}{mark}"
            yield from draw(entry.call_id, indent if parent is None else indent + ("   " if last else "│  "))

    yield from draw(None, "")


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
def open_book(function: str | None) -> Iterator[tuple[CallBook, list[FunctionSpec]]]:
    """Give a book of calls, and the functions to look at: the named one, else all."""
    from pelton_platform.deploy.callbook import CallBook

    with open_registry() as (config, registry):
        found, _, _ = registry.snapshot()
        if function is not None and function not in found:
            raise not_deployed(function)
        specs = [found[name] for name in sorted(found) if function in (None, name)]
        book = CallBook(config)
        try:
            yield book, specs
        finally:
            book.close()


def _find(call: str, function: str | None) -> CallEntry:
    call_id = parsed_id(call)
    with open_book(function) as (book, specs):
        return _known(book.find(specs, call_id), call)


def _find_family(call: str, function: str | None) -> tuple[CallEntry, list[CallEntry]]:
    """A call and all that have the same root, whichever functions they are of."""
    call_id = parsed_id(call)
    with open_book(None) as (book, specs):
        own = [spec for spec in specs if function in (None, spec.name)]
        if not own and function is not None:
            raise not_deployed(function)
        entry = _known(book.find(own, call_id), call)
        return entry, book.family(specs, entry)


def parsed_id(call: str) -> bytes:
    """Return the id that a word of the command line says."""
    from pelton.core.call import parse_call_id

    try:
        return parse_call_id(call)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _known(entry: CallEntry | None, call: str) -> CallEntry:
    from pelton.errors import CallNotFound

    if entry is None:
        raise CallNotFound(f"nothing is known of call {call}: it never was, or its results have expired")
    return entry


def _id(entry: CallEntry) -> str:
    from pelton.core.call import call_id_text

    return call_id_text(entry.call_id)


def _plain(entry: CallEntry) -> dict[str, Any]:
    from pelton.core.call import call_id_text

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
        "parent": call_id_text(entry.ancestry[-1]) if entry.ancestry else None,
        "waits_in": entry.place,
        "chunks": outcome.first if outcome is not None else len(entry.chunks),
        "error": f"{failure.type}: {failure.message}" if failure is not None else None,
        "code": failure.code if failure is not None else None,
    }


def _instant(at_ms: int) -> str | None:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds") if at_ms else None

"""The commands `pelton dlq ls|show|replay|purge|export`: calls that were given up."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelton_platform.cli.calls import parsed_id
from pelton_platform.cli.connecting import keyring_of, not_deployed, open_registry
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
    from pelton.transport.config import ConnectionConfig
    from pelton_platform.deploy.dead_letters import DeadLetterBox, Found, Wanted

app = typer.Typer(name="dlq", help="Look at dead letters, and send their calls again.", no_args_is_help=True)

Function = Annotated[
    str | None, typer.Argument(metavar="FUNCTION", help="Only those of this function; all without.")
]
Since = Annotated[str | None, typer.Option(help="Given up at most so long ago: 10m, 2h, 1d.")]
Until = Annotated[str | None, typer.Option(help="Given up at least so long ago.")]
Type = Annotated[str | None, typer.Option("--type", help="Exception type, e.g. ValueError.")]
Code = Annotated[str | None, typer.Option(help="gRPC status name, e.g. UNAVAILABLE.")]
Calls = Annotated[list[str] | None, typer.Option("--call", help="Id of a call; may be given again.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


@app.command("ls")
def list_letters(
    function: Function = None,
    since: Since = None,
    until: Until = None,
    type_: Type = None,
    code: Code = None,
    everything: Annotated[bool, typer.Option("--all", help="Also replayed and superseded ones.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most to show, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first, with the reason of each.

    A call whose outcome is another one than its dead letter tells was run again and ended after all: its
    dead letter is superseded, and is not replayed.
    """
    from pelton.core.call import call_id_text
    from pelton_platform.deploy.dead_letters import DEAD, plain

    with _box() as (box, specs, now_ms, _):
        wanted = _wanted(now_ms, since, until, type_, code, None)
        found = list(_letters(box, _chosen(specs, function), wanted))
    found = [each for each in found if everything or each.state == DEAD]
    found.sort(key=lambda each: each.letter.given_up_ms, reverse=True)
    shown = found[:limit]
    if as_json:
        print_json([plain(each) for each in shown])
        return
    print_table(
        ("CALL", "FUNCTION", "STATE", "CODE", "ATTEMPTS", "AGE", "REASON"),
        (
            (
                call_id_text(each.letter.call_id) if each.letter.call_id else f"@{each.offset}",
                each.letter.function,
                each.state,
                each.letter.reason.code,
                each.letter.reason.attempt or "-",
                age(now_ms - each.letter.given_up_ms),
                _reason(each),
            )
            for each in shown
        ),
        empty="no dead letters",
    )
    if len(found) > limit:
        tell(f"{len(found) - limit} more; show them with --limit")


@app.command("show")
def show_letter(
    call: Annotated[str, typer.Argument(metavar="CALL", help="Id of the call.")], as_json: Json = False
) -> None:
    """Show a dead letter whole: reason, earlier failures, where the record lay."""
    from pelton.errors import CallNotFound
    from pelton_platform.deploy.dead_letters import Wanted, plain

    call_id = parsed_id(call)
    with _box() as (box, specs, _, _):
        found = list(_letters(box, specs, Wanted(calls=frozenset((call_id,)))))
    if not found:
        raise CallNotFound(f"call {call} has no dead letter: it was not given up, or more than 30 days ago")
    data: dict[str, Any] = dict(plain(found[-1]))
    if as_json:
        print_json(data)
        return
    for name in ("call_id", "function", "state", "replayed_as", "origin"):
        if data[name]:
            typer.echo(f"{name:<12} {data[name]}")
    for failure in [*data["history"], data["reason"]]:
        words = f"{failure['type']}: {failure['message']} ({failure['code']})"
        typer.echo(f"attempt {failure['attempt']:<4} {words}")
    if data["reason"]["traceback"]:
        typer.echo(data["reason"]["traceback"].rstrip())


@app.command("replay")
def replay(
    function: Function = None,
    since: Since = None,
    until: Until = None,
    type_: Type = None,
    code: Code = None,
    calls: Calls = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Send the calls of dead letters again, under new ids; those that were replayed or superseded are left.

    Exit code 1 if one that was chosen could not be sent.
    """
    from pelton.client import session
    from pelton.core.call import CallId, call_id_text
    from pelton_platform.deploy.dead_letters import DEAD

    rows: list[dict[str, Any]] = []

    def told(found: Found, new: CallId | None, reason: str) -> None:
        old = found.letter.call_id
        rows.append(
            {
                "call_id": call_id_text(old) if old else None,
                "function": found.letter.function,
                "replayed_as": call_id_text(new) if new else None,
                "error": reason or None,
            }
        )
        if not as_json:
            if new:
                typer.echo(f"{call_id_text(old) if old else '-'}  ->  {call_id_text(new)}")
            elif reason:
                complain(f"{call_id_text(old) if old else f'@{found.offset}'}: {reason}")

    with _box() as (box, specs, now_ms, config):
        wanted = _wanted(now_ms, since, until, type_, code, calls)
        chosen = _chosen(specs, function)
        by_name = {spec.name: list(box.letters(spec, wanted)) for spec in chosen}
        dead = {name: [each for each in found if each.state == DEAD] for name, found in by_name.items()}
        total = sum(map(len, dead.values()))
        if dry_run or not total:
            skipped = sum(map(len, by_name.values())) - total
            _say_plan("would be sent again", dead, skipped, as_json)
            return
        tell(f"sending {total} calls again")
        keyring = keyring_of(config)
        connection = session.current()
        try:
            for spec in chosen:
                box.replay(spec, dead[spec.name], connection, keyring, told)
        finally:
            session.close()
    if as_json:
        print_json(rows)
    if any(row["error"] for row in rows):
        raise typer.Exit(EXIT_FAILED)


@app.command("purge")
def purge(
    function: Function = None,
    since: Since = None,
    until: Until = None,
    type_: Type = None,
    code: Code = None,
    calls: Calls = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Forget dead letters for good; `pelton dlq export` keeps a copy."""
    from pelton_platform.deploy.dead_letters import PURGED

    with _box() as (box, specs, now_ms, _):
        wanted = _wanted(now_ms, since, until, type_, code, calls)
        found = {
            spec.name: [each for each in box.letters(spec, wanted) if each.state != PURGED]
            for spec in _chosen(specs, function)
        }
        total = sum(map(len, found.values()))
        if dry_run or not total:
            _say_plan("would be forgotten", found, 0, as_json)
            return
        if not yes and not as_json and sys.stdin.isatty():
            typer.confirm(f"Forget {total} dead letters?", abort=True, err=True)
        purged = sum(box.purge(spec, found[spec.name]) for spec in specs if found.get(spec.name))
    if as_json:
        print_json({"purged": purged})
    else:
        typer.echo(f"{purged} dead letters forgotten")


@app.command("export")
def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; - for standard output.")],
    function: Annotated[str | None, typer.Option("--function", help="Only those of this function.")] = None,
    since: Since = None,
    until: Until = None,
    type_: Type = None,
    code: Code = None,
) -> None:
    """Write dead letters as JSON, one a line, with the records they were; bodies are Base64."""
    from pelton_platform.deploy.dead_letters import plain

    with _box() as (box, specs, now_ms, _):
        wanted = _wanted(now_ms, since, until, type_, code, None)
        lines = [
            json.dumps(plain(each), ensure_ascii=False)
            for each in _letters(box, _chosen(specs, function), wanted)
        ]
    text = "".join(line + "\n" for line in lines)
    if file == "-":
        sys.stdout.write(text)
    else:
        Path(file).write_text(text, encoding="utf-8")
    tell(f"{len(lines)} dead letters written")


@contextmanager
def _box() -> Iterator[tuple[DeadLetterBox, list[FunctionSpec], int, ConnectionConfig]]:
    """The dead letters of the platform, its functions, the time there, the connection."""
    from pelton.transport.kafka.probe import broker_now_ms
    from pelton_platform.deploy.dead_letters import DeadLetterBox

    with open_registry() as (config, registry):
        functions, _, _ = registry.snapshot()
        box = DeadLetterBox(config)
        try:
            yield box, [functions[name] for name in sorted(functions)], broker_now_ms(config), config
        finally:
            box.close()


def _chosen(specs: list[FunctionSpec], function: str | None) -> list[FunctionSpec]:
    found = [spec for spec in specs if function in (None, spec.name)]
    if function is not None and not found:
        raise not_deployed(function)
    return found


def _letters(box: DeadLetterBox, specs: list[FunctionSpec], wanted: Wanted) -> Iterator[Found]:
    for spec in specs:
        yield from box.letters(spec, wanted)


def _wanted(
    now_ms: int,
    since: str | None,
    until: str | None,
    type_: str | None,
    code: str | None,
    calls: list[str] | None,
) -> Wanted:
    from pelton_platform.deploy.dead_letters import Wanted

    return Wanted(
        since_ms=_before(now_ms, "--since", since),
        until_ms=_before(now_ms, "--until", until),
        type=type_,
        code=code,
        calls=frozenset(map(parsed_id, calls)) if calls else None,
    )


def _before(now_ms: int, option: str, text: str | None) -> int | None:
    return None if text is None else now_ms - duration_ms(option, text)


def _say_plan(what: str, found: dict[str, list[Found]], skipped: int, as_json: bool) -> None:
    counts = {name: len(letters) for name, letters in found.items() if letters}
    if as_json:
        print_json({"dry_run": True, "functions": counts, "skipped": skipped})
        return
    for name, count in counts.items():
        typer.echo(f"{name}: {count} {what}")
    if not counts:
        tell("no dead letters to do that with")
    if skipped:
        tell(f"{skipped} were replayed, purged or superseded")


def _reason(found: Found) -> str:
    reason = found.letter.reason
    text = f"{reason.type.rpartition('.')[2]}: {reason.message}".splitlines()[0]
    return text if len(text) <= 90 else text[:89] + "…"

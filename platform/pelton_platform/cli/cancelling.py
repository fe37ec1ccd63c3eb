"""The command `pelton cancel`: asks for the end of calls, and says what became of them."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelton_platform.cli.calls import FunctionOption, open_book, parsed_id
from pelton_platform.cli.console import EXIT_FAILED, Json, complain, print_json, tell

if TYPE_CHECKING:
    from pelton.client.connection import Connection
    from pelton_platform.deploy.callbook import CallEntry

ACCEPT_S = 30.0
"""Kafka acknowledges a request within this time, or it is told that it did not."""


def cancel(
    calls: Annotated[list[str], typer.Argument(metavar="CALL", help="Ids of calls.")],
    function: FunctionOption = None,
    reason: Annotated[str, typer.Option(help="Why; callers are told.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait for the calls to end.")] = True,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for all of them.")] = 15.0,
    as_json: Json = False,
) -> None:
    """Cancel calls, and all calls that they made.

    A call that waits never starts; one that runs is told, and loses its executor if it goes on for 5 s. Exit
    code 1 if one of the calls is not known; what is known is cancelled all the same.
    """
    from pelton.client import session

    ids = {text: parsed_id(text) for text in dict.fromkeys(calls)}
    with open_book(function) as (book, specs):
        found = {text: book.find(specs, call_id) for text, call_id in ids.items()}
    connection = session.current()
    try:
        text = f"pelton cancel: {reason}" if reason else "by `pelton cancel`"
        asked = [entry for entry in found.values() if entry is not None and entry.outcome is None]
        refused = _ask(connection, asked, text)
        if wait:
            _follow(connection, [entry for entry in asked if entry.call_id not in refused], timeout)
    finally:
        session.close()
    rows = [_row(text, entry, refused) for text, entry in found.items()]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            _say(row, wait)
    if any(row["error"] for row in rows):
        raise typer.Exit(EXIT_FAILED)


def _ask(connection: Connection, entries: list[CallEntry], reason: str) -> dict[bytes, str]:
    """Asks for the end of calls and waits for Kafka's answers; returns why some were not accepted."""
    import threading

    answered = threading.Semaphore(0)
    refused: dict[bytes, str] = {}

    def accepted(call_id: bytes, error: Exception | None) -> None:
        if error is not None:
            refused[call_id] = str(error)
        answered.release()

    for entry in entries:
        connection.transport.cancel(entry.call_id, reason, partial(accepted, entry.call_id))
    for entry in entries:
        if not answered.acquire(timeout=ACCEPT_S):
            refused[entry.call_id] = f"Kafka did not answer within {ACCEPT_S:g} s"
    return refused


def _follow(connection: Connection, entries: list[CallEntry], timeout_s: float) -> None:
    """Waits for the ends of calls and notes them."""
    import threading

    from pelton_platform.deploy.callbook import state_of

    deadline = time.monotonic() + timeout_s
    for entry in entries:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        call = connection.attach(entry.function, entry.call_id, max(1.0, left))
        ended = threading.Event()
        call.at_end(ended.set)
        if ended.wait(max(0.0, deadline - time.monotonic())):
            entry.outcome = call.fold.outcome
            entry.state = entry.state if call.fold.outcome is None else state_of(call.fold.outcome)


def _row(text: str, entry: CallEntry | None, refused: dict[bytes, str]) -> dict[str, Any]:
    if entry is None:
        why = "nothing is known of it: it never was, or its results have expired"
        return {"call_id": text, "function": None, "state": "unknown", "error": why}
    return {
        "call_id": text,
        "function": entry.function,
        "state": entry.state,
        "error": refused.get(entry.call_id),
    }


def _say(row: dict[str, Any], waited: bool) -> None:
    call, state = row["call_id"], row["state"]
    if row["error"]:
        complain(f"call {call}: {row['error']}")
    elif state == "cancelled":
        typer.echo(f"{call}  cancelled")
    elif state in ("succeeded", "failed"):
        typer.echo(f"{call}  {state}")
        tell(f"call {call} of {row['function']} had ended before it could be cancelled")
    else:
        typer.echo(f"{call}  {state}")
        if waited:
            tell(f"call {call} of {row['function']} has not ended yet; the request stays in force")

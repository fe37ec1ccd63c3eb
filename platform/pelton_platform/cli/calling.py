"""The command `pelton call`: a call from the command line, its value or its chunks as they come."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from pelton_platform.cli.console import EXIT_FAILED, Json, complain, print_json, tell

_KEYWORD = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def call(
    name: Annotated[str, typer.Argument(help="Name of the function.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Each one JSON, or text where it is no JSON; key=value gives a keyword."),
    ] = None,
    as_json: Json = False,
    show_logs: Annotated[
        bool, typer.Option("--logs", help="Also print what the call logs, to standard error.")
    ] = False,
    submit: Annotated[
        bool, typer.Option("--submit", help="Print the id of the call when it is accepted, and do not wait.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds to wait for the result; then detach.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Ordering key: calls with one key start in order. A function's choice.")
    ] = None,
) -> None:
    """Call a function and print its value, or its chunks; Ctrl-C cancels the call.

    With --json each chunk, and at last the outcome, is one JSON object on a line of its own.
    """
    from pelton.client import session
    from pelton.references import function_ref

    positional, keywords = parse_arguments(arguments or [])
    function = function_ref(name) if key is None else function_ref(name).options(key=key)
    connection = session.current()
    try:
        if submit:
            future = function.async_call(*positional, **keywords)
            future.accepted.result(timeout)
            print_json({"call_id": future.call_id}) if as_json else typer.echo(future.call_id)
            return
        follower = None
        if show_logs:
            from pelton_platform.cli.logs import follow_call

            follower = follow_call()
        streams = connection.spec(name).kind.streams
        run = _run_stream if streams else _run_value
        try:
            run(function, positional, keywords, follower, as_json, timeout)
        except TypeError as error:
            # Arguments are held against the signature before anything is sent.
            complain(f"{error}. Nothing was sent")
            raise typer.Exit(EXIT_FAILED) from None
        finally:
            if follower is not None:
                follower.finish()
    finally:
        session.close()


def parse_arguments(words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Turn words of the command line into arguments.

    Args:
        words: Each is JSON or, where it is no JSON, text; `key=value` gives the keyword `key`.

    Returns:
        Positional arguments and keywords.

    Raises:
        typer.BadParameter: A keyword is given twice, or a positional argument follows one.
    """
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for word in words:
        match = _KEYWORD.fullmatch(word)
        if match is None:
            if keywords:
                raise typer.BadParameter(f"{word!r} comes after a keyword: give positional arguments first")
            positional.append(parse_value(word))
        elif match[1] in keywords:
            raise typer.BadParameter(f"{match[1]} is given twice")
        else:
            keywords[match[1]] = parse_value(match[2])
    return positional, keywords


def parse_value(word: str) -> Any:
    """Return the value of a word: what it means as JSON, else the word itself."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def _run_value(
    function: Any,
    positional: list[Any],
    keywords: dict[str, Any],
    follower: Any,
    as_json: bool,
    timeout: float | None,
) -> None:
    from pelton.errors import CallFailed

    future = function.async_call(*positional, **keywords)
    if follower is not None:
        follower.follow(future.call_id)
    try:
        value = future.result(timeout)
    except KeyboardInterrupt:
        future.leave(aloud=True)
        raise
    except CallFailed as error:
        _fail(error, as_json)
    except TimeoutError:
        complain(f"no result after {timeout:g} s; the call goes on: pelton calls result {future.call_id}")
        raise typer.Exit(EXIT_FAILED) from None
    else:
        if as_json:
            print_json({"call_id": future.call_id, "value": value})
        else:
            typer.echo(_text(value))


def _run_stream(
    function: Any,
    positional: list[Any],
    keywords: dict[str, Any],
    follower: Any,
    as_json: bool,
    timeout: float | None,
) -> None:
    from pelton.errors import CallFailed

    if timeout is not None:
        raise typer.BadParameter("--timeout is for functions that return one value")
    count = 0
    with function(*positional, **keywords) as stream:
        if follower is not None:
            follower.follow(stream.call_id)
        try:
            for chunk in stream:
                print_json({"chunk": count, "value": chunk}) if as_json else typer.echo(_text(chunk))
                count += 1
        except CallFailed as error:
            _fail(error, as_json)
    if as_json:
        print_json({"call_id": stream.call_id, "chunks": count})


def _fail(error: Any, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "call_id": error.call_id,
                "error": {
                    "type": error.type,
                    "message": error.message,
                    "code": error.code,
                    "traceback": error.traceback,
                    "attempt": error.attempt,
                },
            }
        )
    else:
        if error.traceback:
            tell(error.traceback.rstrip())
        tries = f", attempt {error.attempt}" if error.attempt > 1 else ""
        complain(f"{error} ({error.code}, call {error.call_id}{tries})")
    raise typer.Exit(EXIT_FAILED)


def _text(value: Any) -> str:
    """Return text as it is, and other values as JSON where they have one, else as Python writes them."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return repr(value)

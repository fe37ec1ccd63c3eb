"""The command `pelton logs`: what functions, calls and programs have printed and logged."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelton_platform.cli.console import Json, duration_ms, print_json, tell

if TYPE_CHECKING:
    from pelton.core.spec import LogRecord as LogLine
    from pelton.transport.config import ConnectionConfig

_LAST_LINES_S = 2.0


def logs(
    name: Annotated[str, typer.Argument(help="A function, a container, or the id of a call.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    since: Annotated[str, typer.Option(help="How far back: 30s, 10m, 2h, 1d.")] = "1h",
    tail: Annotated[int, typer.Option(min=0, help="Most lines of the past to print.")] = 200,
    as_json: Json = False,
) -> None:
    """Print the output of a function, container or call.

    Lines are kept for a day.
    """
    from pelton.transport.config import find_context
    from pelton_platform.deploy.logbook import LogTopic, selector

    back_ms = duration_ms("--since", since)
    wanted = selector(name)
    with LogTopic(find_context(), tell) as topic:
        reached = topic.read_past(back_ms)
        lines = sorted((line for line in reached.lines if wanted(line)), key=lambda line: line.at_ms)
        for line in lines[-tail:] if tail else []:
            show(line, as_json)
        if not follow:
            if not lines:
                tell(f"nothing was logged for {name} in the last {since}")
            return
        for line in topic.follow(reached.ends):
            if wanted(line):
                show(line, as_json)


def show(line: LogLine, as_json: bool, *, err: bool = False) -> None:
    """Print one line."""
    from pelton.core.call import call_id_text

    call = call_id_text(line.call_id) if line.call_id is not None else None
    if as_json:
        print_json(
            {
                "at": datetime.fromtimestamp(line.at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
                "function": line.function,
                "container": line.container,
                "instance": line.instance,
                "pid": line.pid,
                "call_id": call,
                "attempt": line.attempt,
                "source": line.source,
                "level": line.level,
                "logger": line.logger,
                "text": line.text,
                "fields": dict(line.fields),
                "dropped": line.dropped,
            }
        )
        return
    at = datetime.fromtimestamp(line.at_ms / 1000).astimezone().strftime("%H:%M:%S.%f")[:-3]
    who = f"{call[-8:]}/{line.attempt}" if call is not None else line.instance
    words = [at, line.function or line.container, who, line.level or line.source, line.text]
    words += [f"{key}={value}" for key, value in line.fields]
    if line.dropped:
        typer.echo(f"{at} ... {line.dropped} lines were dropped here", err=err)
    typer.echo(" ".join(word for word in words if word), err=err)


class CallFollower:
    """Prints the lines of one call to standard error while the call runs."""

    def __init__(self, config: ConnectionConfig) -> None:
        from pelton_platform.deploy.logbook import LogTopic

        self._topic = LogTopic(config, tell)
        self._ended = threading.Event()
        self._call_id: bytes | None = None
        self._reached = self._topic.ends()
        self._topic.start(dict(self._reached))
        self._thread: threading.Thread | None = None

    def follow(self, call_id: str) -> None:
        """Begin to print."""
        from pelton.core.call import parse_call_id

        self._call_id = parse_call_id(call_id)
        self._thread = threading.Thread(target=self._run, name="call-logs", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """The call has ended: print what was logged until now, then stop."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join(timeout=2 * _LAST_LINES_S)
        self._topic.__exit__()

    def _run(self) -> None:
        import time

        until: dict[Any, int] | None = None
        deadline = 0.0
        while True:
            if self._ended.is_set() and until is None:
                until, deadline = self._topic.ends(), time.monotonic() + _LAST_LINES_S
            if until is not None and (
                all(self._reached.get(place, 0) >= end for place, end in until.items())
                or time.monotonic() >= deadline
            ):
                return
            batch = self._topic.take(0.05)
            for line in self._topic.decode(batch):
                if line.call_id == self._call_id:
                    show(line, as_json=False, err=True)
            for record in batch:
                self._reached[record.topic, record.partition] = record.offset + 1


def follow_call() -> CallFollower:
    """Return a follower that misses nothing from now on."""
    from pelton.transport.config import find_context

    return CallFollower(find_context())

"""The command `pelton logs`: what functions, calls and programs have printed and logged."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelton_platform.cli.console import Json, print_json, tell

if TYPE_CHECKING:
    from pelton.core.spec import LogRecord as LogLine
    from pelton.transport.config import ConnectionConfig
    from pelton.transport.log import LogRecord

_DURATION = re.compile(r"(\d+)(s|m|h|d)")
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_READ_S = 30.0
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

    match = _DURATION.fullmatch(since)
    if match is None:
        raise typer.BadParameter("--since is a number and a unit: 30s, 10m, 2h, 1d")
    wanted = selector(name)
    with LogTopic(find_context()) as topic:
        reached = topic.read_past(int(match[1]) * _UNITS_MS[match[2]])
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


def selector(name: str) -> Callable[[LogLine], bool]:
    """Return what decides whether a line belongs to a function, container or call of this name."""
    from pelton.core.call import parse_call_id

    try:
        call_id = parse_call_id(name)
    except ValueError:
        return lambda line: name in (line.function, line.container, line.instance)
    return lambda line: line.call_id == call_id


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


class Past:
    """Lines that were there, and where the log ended then."""

    def __init__(self, lines: list[LogLine], ends: dict[Any, int]) -> None:
        self.lines = lines
        self.ends = ends


class LogTopic:
    """The log topic of a platform; a context manager."""

    def __init__(self, config: ConnectionConfig) -> None:
        from pelton.protocol.topics import CONTROL_PARTITIONS, Control, Topics
        from pelton.transport.kafka.reader import PartitionReader

        topic = Topics(config.namespace).control(Control.LOGS)
        self._config = config
        self._places = [(topic, number) for number in range(CONTROL_PARTITIONS)]
        self._came: queue.SimpleQueue[Sequence[LogRecord]] = queue.SimpleQueue()
        self._reader = PartitionReader(config, self._came.put)

    def __enter__(self) -> LogTopic:
        """Return the topic."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the connection."""
        self._reader.close()

    def ends(self) -> dict[Any, int]:
        """Return where the log ends now."""
        return self._reader.ends(self._places)

    def read_past(self, back_ms: int) -> Past:
        """Read what was logged in the last so many milliseconds."""
        from pelton.transport.kafka.probe import broker_now_ms

        since_ms = broker_now_ms(self._config) - back_ms
        ends = self.ends()
        starts = self._reader.offsets_for_time(self._places, since_ms)
        spans = {place: (starts[place], ends[place]) for place in self._places if starts[place] >= 0}
        records = (record for batch in self._reader.ranges.read(spans, _READ_S) for record in batch)
        return Past(decode(records), ends)

    def follow(self, ends: dict[Any, int]) -> Iterable[LogLine]:
        """Yield what is logged from there on, for ever."""
        self._reader.follow_all(ends)
        while True:
            try:
                batch = self._came.get(timeout=0.5)
            except queue.Empty:
                continue  # lets Ctrl-C through where a blocked get does not
            yield from decode(batch)

    def take(self, timeout_s: float) -> Sequence[LogRecord]:
        """Return records that have come; none when nothing comes in time."""
        try:
            return self._came.get(timeout=timeout_s)
        except queue.Empty:
            return ()

    def start(self, ends: dict[Any, int]) -> None:
        """Let records come from there on; `take` returns them."""
        self._reader.follow_all(ends)


def decode(records: Iterable[LogRecord]) -> list[LogLine]:
    """Return the lines in records, without those that are none."""
    from pelton.errors import RecordError
    from pelton.protocol import codec

    lines = []
    for record in records:
        if record.value is None:
            continue  # a probe
        try:
            lines.append(codec.decode_log(record.value))
        except RecordError as error:
            tell(f"a record of the log topic cannot be read: {error}")
    return lines


class CallFollower:
    """Prints the lines of one call to standard error while the call runs."""

    def __init__(self, config: ConnectionConfig) -> None:
        self._topic = LogTopic(config)
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
            for line in decode(batch):
                if line.call_id == self._call_id:
                    show(line, as_json=False, err=True)
            for record in batch:
                self._reached[record.topic, record.partition] = record.offset + 1


def follow_call() -> CallFollower:
    """Return a follower that misses nothing from now on."""
    from pelton.transport.config import find_context

    return CallFollower(find_context())

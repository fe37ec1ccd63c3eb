"""How many calls of each function have no durable end yet, asked of the broker at a small price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pelton.core.call import InputTopic
from pelton.core.offsets import decode_metadata, unfinished
from pelton.core.spec import RETRIES_PARTITIONS, FunctionSpec, LagSpec
from pelton.errors import TransportError
from pelton.protocol.topics import Topics
from pelton.transport.kafka.admin import Admin
from pelton.transport.log import Place
from pelton_platform import telemetry

_TIMEOUT_S = 5.0
_log = telemetry.get_logger(__name__)


@dataclass(slots=True)
class _Seen:
    """What is known of one function.

    Attributes:
        ends: Ends of its input partitions at the last look.
        unfinished: Calls without a durable end then.
        committed: Committed offsets then.
    """

    ends: dict[Place, int] = field(default_factory=dict)
    unfinished: int = 0
    committed: dict[Place, int] = field(default_factory=dict)


def input_places(topics: Topics, spec: FunctionSpec) -> list[Place]:
    """Return the input partitions of a function."""
    return [
        *((topics.input(spec.name, InputTopic.INVOCATIONS), number) for number in range(spec.partitions)),
        *((topics.input(spec.name, InputTopic.RETRIES), number) for number in range(RETRIES_PARTITIONS)),
    ]


@dataclass(frozen=True, slots=True)
class Count:
    """Calls of one function.

    Attributes:
        arrived: Ever.
        unfinished: Without a durable end.
    """

    arrived: int
    unfinished: int


class Backlog:
    """Counts unfinished calls.

    A look asks for the ends of all input partitions in one request, and for commits only of functions that
    had something unfinished or got something new: a platform at rest costs one small request per look.
    """

    def __init__(self, admin: Admin, topics: Topics) -> None:
        self._admin = admin
        self._topics = topics
        self._seen: dict[str, _Seen] = {}

    def look(self, functions: Mapping[str, FunctionSpec]) -> dict[str, int]:
        """Return the unfinished calls of each function.

        Raises:
            TransportError: The broker cannot be reached.
        """
        places = {name: input_places(self._topics, spec) for name, spec in functions.items()}
        for name in self._seen.keys() - functions.keys():
            del self._seen[name]
        ends = self._ends(places)
        for name, mine in places.items():
            if any(place not in ends for place in mine):
                continue
            seen = self._seen.get(name)
            now = {place: ends[place] for place in mine}
            if seen is None or seen.unfinished or seen.ends != now:
                self._seen[name] = self._count(name, mine)
        return {name: seen.unfinished for name, seen in self._seen.items()}

    def counts(self) -> dict[str, Count]:
        """Return what the last look found."""
        return {name: Count(sum(seen.ends.values()), seen.unfinished) for name, seen in self._seen.items()}

    def lag(self, spec: LagSpec) -> tuple[int, int]:
        """Return how many records of a topic a group has not committed, and the topic's partitions.

        Raises:
            TransportError: The broker cannot be reached, or there is no such topic.
        """
        partitions = self._admin.topics().get(spec.topic, 0)
        if not partitions:
            raise TransportError(f"there is no topic {spec.topic!r}")
        marks = self._admin.watermarks([(spec.topic, number) for number in range(partitions)])
        committed = self._admin.committed(spec.group, list(marks))
        unread = 0
        for place, (start, end) in marks.items():
            offset = committed[place][0] if place in committed else start
            unread += max(0, end - max(start, offset))
        return unread, partitions

    def committed(self, function: str) -> dict[Place, int]:
        """Return the committed offsets of a function at the last look."""
        seen = self._seen.get(function)
        return dict(seen.committed) if seen is not None else {}

    def _ends(self, places: Mapping[str, list[Place]]) -> dict[Place, int]:
        try:
            return self._admin.ends([place for mine in places.values() for place in mine], _TIMEOUT_S)
        except TransportError:
            if len(places) == 1:
                raise
        # A function whose topics are gone must not hide the calls of all others.
        ends: dict[Place, int] = {}
        for name, mine in places.items():
            try:
                ends |= self._admin.ends(mine, _TIMEOUT_S)
            except TransportError as error:
                _log.warning("backlog-unknown", function=name, reason=str(error))
        return ends

    def _count(self, function: str, places: list[Place]) -> _Seen:
        commits = self._admin.committed(self._topics.group(function), places)
        # Only now: a call that was copied before its original was committed must not be missed twice.
        ends = self._admin.ends(places, _TIMEOUT_S)
        missing = [place for place in ends if place not in commits]
        # Without a commit everything still in the log is unfinished: what is finished was deleted from it.
        starts = self._admin.watermarks(missing) if missing else {}
        count = 0
        for place, end in ends.items():
            if place in commits:
                offset, text = commits[place]
                count += unfinished(offset, decode_metadata(text), end)
            else:
                count += max(0, end - starts[place][0])
        return _Seen(ends, count, {place: offset for place, (offset, _) in commits.items()})


class Trimmer:
    """Deletes finished records of functions that have no instance to do it."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._deleted: dict[Place, int] = {}

    def trim(self, committed: Mapping[Place, int]) -> int:
        """Delete what lies below committed offsets.

        Args:
            committed: Acknowledged committed offsets by input partition.

        Returns:
            Partitions in which something was deleted.

        Raises:
            TransportError: The broker cannot be reached.
        """
        wanted = {
            place: offset for place, offset in committed.items() if offset > self._deleted.get(place, 0)
        }
        if not wanted:
            return 0
        marks = self._admin.watermarks(list(wanted))
        below = {
            place: min(offset, marks[place][1])
            for place, offset in wanted.items()
            if offset > marks[place][0]
        }
        self._admin.delete_records(below)
        self._deleted |= wanted
        return len(below)

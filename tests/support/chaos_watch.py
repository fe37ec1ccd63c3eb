"""Watches the log from outside while faults happen: input records as they come, commits as they move."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pelton.core.call import CallId, InputHeaders
from pelton.core.offsets import CommitMeta, decode_metadata
from pelton.errors import RecordError, TransportError
from pelton.protocol.headers import decode_input
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.reader import PartitionReader
from pelton.transport.log import LogRecord, Place
from support.chaos_world import World

EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Glance:
    """Commits of a function, and how far the log went right after they were read.

    Attributes:
        function: which one.
        committed: offset and decoded metadata by input partition.
        results: end offsets of its results partitions, asked for after the commits.
        inputs: end offsets of its input partitions, asked for after the commits.
        letters: end offset of its dead letters, asked for after the commits.
    """

    function: str
    committed: dict[Place, tuple[int, CommitMeta | None]]
    results: dict[Place, int]
    inputs: dict[Place, int]
    letters: int


class Watch:
    """Reads every input record once, before it can be trimmed, and looks at the commits again and again.

    Args:
        world: what to watch; its functions are deployed.

    Attributes:
        inputs: headers of every input record, by partition and offset; None for unreadable ones.
        glances: what the commits were, in order of time.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.inputs: dict[Place, dict[int, InputHeaders | None]] = {}
        self.glances: list[Glance] = []
        self.lost: list[str] = []
        self._admin = Admin(world.config)
        self._stop = threading.Event()
        self._reader = PartitionReader(world.config, self._take, on_lost=self._on_lost, name="chaos-inputs")
        for function in world.specs:
            for topic, number in world.places(function).values():
                self.inputs[topic, number] = {}
                self._reader.follow(topic, number, 0)
        self._thread = threading.Thread(target=self._look, name="chaos-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops watching."""
        self._stop.set()
        self._thread.join(40)
        self._reader.close()
        self._admin.close()

    def calls(self, place: Place) -> dict[int, CallId]:
        """The call of each readable input record of a partition."""
        return {offset: headers.call_id for offset, headers in self.inputs[place].items() if headers}

    def _take(self, records: Sequence[LogRecord]) -> None:
        for record in records:
            try:
                headers = decode_input(record.headers)
            except RecordError:
                headers = None
            self.inputs[record.topic, record.partition][record.offset] = headers

    def _on_lost(self, topic: str, partition: int, offset: int, reason: str) -> None:
        self.lost.append(f"{topic}/{partition}@{offset}: {reason}")

    def _look(self) -> None:
        while not self._stop.wait(EVERY_S):
            for function in self._world.specs:
                try:
                    self.glances.append(self._glance(function))
                except TransportError:
                    continue  # the broker is away; the next look tells

    def _glance(self, function: str) -> Glance:
        topics = self._world.topics
        places = list(self._world.places(function).values())
        found = self._admin.committed(topics.group(function), places, timeout_s=5)
        letters = (topics.dead_letters(function), 0)
        results = [(topics.results(function), number) for number in range(8)]
        ends = self._admin.ends([*results, *places, letters], timeout_s=5)
        return Glance(
            function,
            {place: (offset, decode_metadata(text)) for place, (offset, text) in found.items()},
            {place: ends[place] for place in results},
            {place: ends[place] for place in places},
            ends[letters],
        )

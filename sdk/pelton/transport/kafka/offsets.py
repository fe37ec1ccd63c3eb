"""What groups have committed, asked and said without being a member.

The admin client of the library has requests for this, and none of them is used: when the broker goes away
while one is under way, the library ends the whole process (a failed assertion in `rd_kafka_enq_once`,
measured with librdkafka 2.16.0). A consumer that bears the name of the group asks the same of the broker.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from pelton.errors import TransportError
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka import lifetime
from pelton.transport.kafka.failures import error_of, is_passing, transport_error
from pelton.transport.kafka.settings import ClientLog, reader_settings
from pelton.transport.log import Place

_KEPT: Final = 8
"""Idle consumers kept for the next question: a platform at work asks about few groups again and again."""

_ASK_AGAIN_S: Final = 0.1


class GroupOffsets:
    """Reads and writes committed offsets of any group; all methods block, from any thread.

    Raises:
        TransportError: every method, when the broker cannot be reached or refuses.
    """

    def __init__(self, config: ConnectionConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._idle: OrderedDict[str, Consumer] = OrderedDict()
        self._busy: set[Consumer] = set()
        self._closed = False
        lifetime.track(self)

    def committed(
        self, group: str, places: Sequence[Place], timeout_s: float
    ) -> dict[Place, tuple[int, str]]:
        """Committed offset and metadata by partition; those without a commit are left out."""
        wanted = [TopicPartition(*place) for place in places]
        what = f"asking for offsets of group {group}"

        def ask(consumer: Consumer, left_s: float) -> list[TopicPartition]:
            return consumer.committed(wanted, timeout=left_s)

        parts = self._ask(group, what, ask, timeout_s)
        return {
            (part.topic, part.partition): (part.offset, part.metadata or "")
            for part in parts
            if part.offset >= 0
        }

    def commit(self, group: str, offsets: Mapping[Place, tuple[int, str]], timeout_s: float) -> None:
        """Commits for a group without members; one with members refuses."""
        parts = [TopicPartition(*place, offset, text) for place, (offset, text) in offsets.items()]

        def ask(consumer: Consumer, _left_s: float) -> list[TopicPartition]:
            return consumer.commit(offsets=parts, asynchronous=False) or []

        self._ask(group, f"committing for group {group}", ask, timeout_s)

    def close(self) -> None:
        """Ends the clients. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, OrderedDict()
        for consumer in idle.values():
            consumer.close()
        lifetime.untrack(self)

    def abandon(self) -> None:
        """In a forked child: inherited clients are never used and never destroyed."""
        for consumer in (*self._idle.values(), *self._busy):
            lifetime.keep_for_ever(consumer)
        self._lock = threading.Lock()
        self._idle, self._busy, self._closed = OrderedDict(), set(), True

    def _ask(
        self,
        group: str,
        what: str,
        ask: Callable[[Consumer, float], list[TopicPartition]],
        timeout_s: float,
    ) -> list[TopicPartition]:
        """Asks, and again while leaders and group coordinators are on the move."""
        deadline = time.monotonic() + timeout_s
        with self._consumer(group) as consumer:
            while True:
                try:
                    parts = ask(consumer, max(0.1, deadline - time.monotonic()))
                    error = next((part.error for part in parts if part.error is not None), None)
                    if error is None:
                        return parts
                    raise KafkaException(error)
                except KafkaException as exception:
                    trouble = error_of(exception)
                    if not is_passing(trouble) or time.monotonic() >= deadline:
                        raise transport_error(what, trouble, self._config.bootstrap_servers) from exception
                time.sleep(_ASK_AGAIN_S)

    @contextmanager
    def _consumer(self, group: str) -> Iterator[Consumer]:
        with self._lock:
            if self._closed:
                raise TransportError("the connection is closed")
            consumer = self._idle.pop(group, None)
            if consumer is None:
                settings = reader_settings(self._config) | {"group.id": group}
                consumer = Consumer(settings, logger=ClientLog())
            self._busy.add(consumer)
        try:
            yield consumer
        finally:
            self._keep(group, consumer)

    def _keep(self, group: str, consumer: Consumer) -> None:
        """Keeps the consumer for the next question, and ends the one that waited longest for one."""
        surplus: Consumer | None = consumer
        with self._lock:
            self._busy.discard(consumer)
            if not self._closed and group not in self._idle:
                self._idle[group] = consumer
                surplus = self._idle.popitem(last=False)[1] if len(self._idle) > _KEPT else None
        if surplus is not None:
            surplus.close()

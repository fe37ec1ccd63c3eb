"""A control topic shared out among services: who owns a partition reads it, and alone answers."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from pelton.errors import TransportError
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.failures import error_of, transport_error
from pelton.transport.kafka.ranges import EARLIEST, LATEST, ask_offsets, record_of
from pelton.transport.kafka.settings import ClientLog, connection_settings, reader_settings
from pelton.transport.log import LogRecord

SESSION_MS: Final = 6_000
"""Another member has the partitions of one that was not heard of for so long."""

TRANSACTION_MS: Final = 5_000
"""The broker aborts a transaction of a member that is gone after so long."""

_ASK_S: Final = 5.0
_BATCH: Final = 500
_log = logging.getLogger(__name__)


class SharedListener(Protocol):
    """Who owns partitions; called within `SharedConsumer.poll`."""

    def assigned(self, ends: Mapping[int, int]) -> None:
        """Partitions came, by number, with their ends: each is known when that is reached."""

    def gone(self, partitions: Sequence[int]) -> None:
        """Partitions went, to somebody else perhaps."""

    def records(self, batch: Sequence[LogRecord]) -> None:
        """Records came, in order per partition."""

    def reached(self, partition: int, offset: int) -> None:
        """All records below this offset were given."""


class SharedConsumer:
    """A member of the group that shares out a control topic. One thread uses it, by `poll`.

    Args:
        config: the connection.
        topic: full name.
        group: full name.
        listener: see `SharedListener`.
        read_committed: hides records of open and aborted transactions.
        from_end: reads what comes from now on, not what was there before.
    """

    def __init__(
        self,
        config: ConnectionConfig,
        topic: str,
        group: str,
        listener: SharedListener,
        *,
        read_committed: bool = True,
        from_end: bool = False,
    ) -> None:
        self._from_end = from_end
        self._servers, self._topic, self._listener = config.bootstrap_servers, topic, listener
        self._mine: set[int] = set()
        self._consumer = Consumer(
            {
                **reader_settings(config, ends=True, read_committed=read_committed),
                "group.id": group,
                "group.protocol": "classic",
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": SESSION_MS,
                "heartbeat.interval.ms": SESSION_MS // 4,
            },
            logger=ClientLog(),
        )
        self._consumer.subscribe(
            [topic], on_assign=self._on_assign, on_revoke=self._on_gone, on_lost=self._on_gone
        )

    def poll(self, wait_s: float) -> None:
        """Waits up to `wait_s` for something, and tells the listener of all there is.

        Raises:
            TransportError: the consumer is dead.
        """
        message = self._consumer.poll(wait_s)
        if message is None:
            return
        batch: list[LogRecord] = []
        for each in (message, *self._consumer.consume(_BATCH, 0)):
            error = each.error()
            if error is not None:
                self._judge(error, each, batch)
            elif each.partition() in self._mine:
                batch.append(record_of(each))
        self._give(batch)

    @property
    def membership(self) -> Any:
        """What proves to the broker that this is a member of the present generation."""
        return self._consumer.consumer_group_metadata()

    def close(self) -> None:
        """Leaves the group."""
        self._consumer.close()

    def _give(self, batch: list[LogRecord]) -> None:
        if batch:
            self._listener.records(list(batch))
            for partition, offset in {each.partition: each.offset for each in batch}.items():
                self._listener.reached(partition, offset + 1)
            batch.clear()

    def _judge(self, error: KafkaError, message: Message, batch: list[LogRecord]) -> None:
        partition, offset = message.partition(), message.offset()
        if error.code() == KafkaError._PARTITION_EOF:
            self._give(batch)
            if partition in self._mine and partition is not None and offset is not None:
                self._listener.reached(partition, offset)
        elif error.fatal():
            raise transport_error(f"reading {self._topic}", error, self._servers)
        else:
            _log.debug("reading %s: %s", self._topic, error.str())

    def _on_assign(self, consumer: Consumer, positions: list[TopicPartition]) -> None:
        places = [(each.topic, each.partition) for each in positions]
        if not places:
            return
        first = LATEST if self._from_end else EARLIEST
        starts = ask_offsets(consumer, places, first, _ASK_S, self._servers)
        ends = starts if self._from_end else ask_offsets(consumer, places, LATEST, _ASK_S, self._servers)
        numbers = {place[1]: ends[place] for place in places}
        self._mine.update(numbers)
        self._listener.assigned(numbers)
        for place in places:
            self._listener.reached(place[1], starts[place])
        consumer.incremental_assign([TopicPartition(*place, starts[place]) for place in places])

    def _on_gone(self, consumer: Consumer, positions: list[TopicPartition]) -> None:
        numbers = [each.partition for each in positions]
        self._mine.difference_update(numbers)
        if numbers:
            self._listener.gone(numbers)
        consumer.incremental_unassign(positions)


class FencedWriter:
    """Writes to a shared topic as long as this process is the member it believes to be.

    Each write is a transaction that commits an offset of the group as well: the broker refuses it from a
    member that was expelled, however long it was frozen.

    Args:
        config: the connection.
        group: full name of the group.
    """

    def __init__(self, config: ConnectionConfig, group: str) -> None:
        self._config, self._group = config, group
        self._client: Producer | None = None

    def write(
        self,
        topic: str,
        records: Sequence[tuple[int, bytes, bytes | None]],
        membership: Any,
        timeout_s: float = 4.0,
    ) -> None:
        """Writes records (partition, key, value or None for a tombstone), all of them or none.

        Raises:
            TransportError: they were not written, or it is not known; what follows begins with a new client.
        """
        try:
            client = self._client or self._open(timeout_s)
            client.begin_transaction()
            for partition, key, value in records:
                client.produce(topic, value, key, partition)
            offsets = [TopicPartition(topic, partition, 0) for partition in {each[0] for each in records}]
            client.send_offsets_to_transaction(offsets, membership, timeout_s)
            client.commit_transaction(timeout_s)
        except (KafkaException, BufferError) as error:
            self._drop()
            servers = self._config.bootstrap_servers
            if isinstance(error, BufferError):
                raise TransportError(f"{topic}: too much waits to be written") from error
            raise transport_error(f"writing {topic}", error_of(error), servers) from error

    def close(self) -> None:
        """Ends the client."""
        self._drop()

    def _open(self, timeout_s: float) -> Producer:
        client = Producer(
            {
                **connection_settings(self._config),
                "transactional.id": f"{self._group}.{uuid.uuid4().hex}",
                "transaction.timeout.ms": TRANSACTION_MS,
                "socket.timeout.ms": TRANSACTION_MS - 1_000,  # must be below it
                "linger.ms": 0,
                "partitioner": "murmur2_random",
            },
            logger=ClientLog(),
        )
        client.init_transactions(timeout_s)
        self._client = client
        return client

    def _drop(self) -> None:
        """A client whose transaction failed is of no use any more."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(KafkaException):
                client.purge()
            del client

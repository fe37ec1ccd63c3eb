"""The settings of every Kafka client Pelton makes, each with its reason."""

from __future__ import annotations

import logging
from typing import Any, Final

from pelton.protocol.topics import MAX_RECORD_BYTES
from pelton.transport.config import ConnectionConfig

Settings = dict[str, Any]

FETCH_WAIT_MS: Final = 100
"""How long a fetch waits at the broker; a newly followed partition waits for the one under way."""

PROPAGATION_MS: Final = 10_000
"""How long a topic that the metadata does not show yet may take to appear; then it is unknown."""

_LOGGER: Final = logging.getLogger("pelton.transport.kafka")


class ClientLog:
    """Takes the log lines of the client library: detail, for what matters is said by the transport itself."""

    def log(self, level: int, text: str, *args: Any) -> None:
        """One line of the library, at level DEBUG whatever the library thinks of it."""
        _LOGGER.debug(text, *args)


def connection_settings(config: ConnectionConfig) -> Settings:
    """What all clients share: addresses, security, how fast a dead connection is noticed and made again."""
    return {
        "client.id": "pelton",
        "socket.keepalive.enable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "socket.timeout.ms": 10_000,  # a half-open connection is found out within this
        "topic.metadata.propagation.max.ms": PROPAGATION_MS,
        **config.security,
        "bootstrap.servers": config.bootstrap_servers,
    }


def producer_settings(
    config: ConnectionConfig, message_timeout_ms: int, max_unacked: int, max_unacked_bytes: int
) -> Settings:
    """A producer: durable, in order, and without waiting for company.

    The client's own queue is larger than what `RecordProducer` lets through, which does the counting.
    """
    return {
        **connection_settings(config),
        "acks": "all",
        "enable.idempotence": True,
        "linger.ms": 0,
        "partitioner": "murmur2_random",  # the hash of Java's clients; the client's own default differs
        "message.timeout.ms": message_timeout_ms,
        "request.timeout.ms": min(10_000, message_timeout_ms),
        "message.max.bytes": MAX_RECORD_BYTES,
        "topic.metadata.propagation.max.ms": min(PROPAGATION_MS, max(1_000, message_timeout_ms // 2)),
        "queue.buffering.max.messages": max(1_000, max_unacked * 2),
        "queue.buffering.max.kbytes": min(2_097_151, max(65_536, max_unacked_bytes // 1024 * 4)),
    }


def reader_settings(
    config: ConnectionConfig, *, ends: bool = False, read_committed: bool = False
) -> Settings:
    """A consumer of assigned partitions, which never joins its group nor commits.

    Args:
        config: the connection.
        ends: whether reaching the end of a partition is told.
        read_committed: hides records of open and aborted transactions.
    """
    return {
        **connection_settings(config),
        "group.id": f"{config.namespace}.readers",  # the client wants one; nothing is ever stored under it
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "allow.auto.create.topics": False,  # a misspelt topic must not come to life
        "auto.offset.reset": "error",  # a position outside the log is a loss to be told, never a jump
        "enable.partition.eof": ends,
        "isolation.level": "read_committed" if read_committed else "read_uncommitted",
        "fetch.wait.max.ms": FETCH_WAIT_MS,
        "fetch.min.bytes": 1,
        "fetch.queue.backoff.ms": 10,  # with the default of a second a small prefetch stalls the reader
        "fetch.error.backoff.ms": 50,
        "queued.min.messages": 10_000,
        "queued.max.messages.kbytes": 16_384,
    }

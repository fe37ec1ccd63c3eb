"""When an Apache Kafka cluster counts as ready: it answers a metadata request with a broker."""

from __future__ import annotations

import logging

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

# The client logs every refused connection; while a broker starts those are expected.
_SILENT = logging.getLogger("pelton.transport.kafka.readiness")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


def cluster_ready(bootstrap_servers: str, timeout_s: float) -> bool:
    """Ask a cluster for its metadata once.

    Args:
        bootstrap_servers: Addresses as the client takes them, `host:port[,host:port]`.
        timeout_s: Seconds to wait for the answer.

    Returns:
        True when the answer names at least one broker; False when none came in time.
    """
    client = AdminClient(
        {
            "bootstrap.servers": bootstrap_servers,
            "reconnect.backoff.ms": 20,
            "reconnect.backoff.max.ms": 100,
            "socket.timeout.ms": max(1000, round(timeout_s * 1000)),
        },
        logger=_SILENT,
    )
    try:
        metadata = client.list_topics(timeout=max(0.01, timeout_s))
    except KafkaException:
        return False
    return bool(metadata.brokers)

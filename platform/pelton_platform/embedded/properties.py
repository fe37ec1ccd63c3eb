"""The settings that the embedded broker runs with, and why each differs from Apache Kafka's own default."""

from __future__ import annotations

from collections.abc import Mapping

from pelton_platform.embedded.failure import EmbeddedKafkaError

NODE_ID = 1
RECORDS_FOLDER = "records"
# What the start, the addresses and the storage rest on: with another value the broker would not be found.
RESERVED = frozenset(
    {
        "advertised.listeners",
        "controller.listener.names",
        "controller.quorum.bootstrap.servers",
        "controller.quorum.voters",
        "inter.broker.listener.name",
        "listener.security.protocol.map",
        "listeners",
        "log.dir",
        "log.dirs",
        "metadata.log.dir",
        "node.id",
        "process.roles",
    }
)

_MIB = 1024 * 1024
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
_PROTOCOLS = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT"
_DEFAULTS: Mapping[str, str] = {
    # One broker.
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # A misspelt topic is an error, not a new topic.
    "auto.create.topics.enable": "false",
    # A single consumer starts at once instead of waiting three seconds for others.
    "group.initial.rebalance.delay.ms": "0",
    # What a service that died had begun to write holds up its successor no longer than a session.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "group.min.session.timeout.ms": "1000",
    # After SIGKILL the controller takes the broker back only when its last session is over; a machine so busy
    # that no heartbeat comes in this time makes the controller fence its own broker for a moment.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # Few internal partitions are made and loaded faster; groups and transactions share them by hash.
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    # Disk comes back by whole segments, so segments are small and deleted files go at once. Retention by
    # bytes stays off: it would drop waiting records of topics that only switch off retention by time.
    "log.segment.bytes": str(64 * _MIB),
    "log.segment.delete.delay.ms": "1000",
    "log.retention.check.interval.ms": "30000",
    "log.initial.task.delay.ms": "5000",
    "log.index.size.max.bytes": str(_MIB),
    "offsets.topic.segment.bytes": str(16 * _MIB),
    "transaction.state.log.segment.bytes": str(16 * _MIB),
    "share.coordinator.state.topic.segment.bytes": str(16 * _MIB),
    "metadata.log.segment.bytes": str(16 * _MIB),
    "metadata.max.retention.bytes": str(32 * _MIB),
    # Heap for compaction is taken at start; 1.2 million keys a pass are enough here.
    "log.cleaner.dedupe.buffer.size": str(32 * _MIB),
    "log.cleaner.backoff.ms": "5000",
    # Threads and idle work for a laptop.
    "num.io.threads": "4",
    "background.threads": "4",
    "group.coordinator.threads": "2",
    "metadata.max.idle.interval.ms": "5000",
}


def broker_properties(
    *, host: str, port: int, controller_port: int, overrides: Mapping[str, str], sasl_port: int = 0
) -> dict[str, str]:
    """Return the settings of a combined broker and controller on loopback.

    Args:
        host: Loopback address of both listeners.
        port: Port for clients.
        controller_port: Port on which the broker reaches its own controller.
        overrides: Broker settings that win over the defaults here.
        sasl_port: Port for clients that log in; 0 for none.

    Raises:
        EmbeddedKafkaError: `overrides` names a setting that only this module can set.
    """
    refused = sorted(RESERVED & overrides.keys())
    if refused:
        raise EmbeddedKafkaError(
            f"config= cannot set {', '.join(refused)}: the embedded broker sets it itself; "
            "use port= and data_dir=, or run your own Apache Kafka and name it with --bootstrap-servers"
        )
    listeners = [f"PLAINTEXT://{host}:{port}"]
    sasl: dict[str, str] = {}
    if sasl_port:
        listeners.append(f"SASL_PLAINTEXT://{host}:{sasl_port}")
        sasl = {
            "sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config": _SCRAM,
        }
    return {
        **_DEFAULTS,
        **sasl,
        **{key: str(value) for key, value in overrides.items()},
        "process.roles": "broker,controller",
        "node.id": str(NODE_ID),
        "controller.quorum.voters": f"{NODE_ID}@{host}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listeners": ",".join([*listeners, f"CONTROLLER://{host}:{controller_port}"]),
        "advertised.listeners": ",".join(listeners),
        "listener.security.protocol.map": _PROTOCOLS,
        # Relative to the folder that the broker starts in: the setting is a list, a path may hold a comma.
        "log.dirs": RECORDS_FOLDER,
    }


def render(properties: Mapping[str, str]) -> str:
    """Write settings in the format of a Java properties file (ISO 8859-1 with escapes)."""
    return "".join(f"{_escape(key)}={_escape(value)}\n" for key, value in sorted(properties.items()))


def _escape(text: str) -> str:
    escaped = []
    for unit in _utf16_units(text):
        character = chr(unit)
        if character in "\\=:#! ":
            escaped.append("\\" + character)
        elif 0x20 < unit < 0x7F:
            escaped.append(character)
        else:
            escaped.append(f"\\u{unit:04x}")
    return "".join(escaped)


def _utf16_units(text: str) -> list[int]:
    raw = text.encode("utf-16-be")
    return [int.from_bytes(raw[i : i + 2], "big") for i in range(0, len(raw), 2)]

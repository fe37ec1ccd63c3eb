"""What the embedded Apache Kafka promises while it runs: durable, loopback only, back after any death."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType  # type: ignore[attr-defined]

from pelton.transport.kafka.readiness import cluster_ready
from pelton_platform import process
from support.embedded_broker import Broker


def admin(broker: Broker) -> AdminClient:
    """A client of the broker that keeps quiet about lost connections."""
    return AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})


def new_topic(broker: Broker, partitions: int = 1) -> str:
    """Make a topic with a fresh name."""
    name = f"embedded-{uuid.uuid4().hex}"
    client = admin(broker)
    for made in client.create_topics([NewTopic(name, partitions, 1)]).values():
        made.result(10)
    return name


def produce(broker: Broker, topic: str, values: list[bytes]) -> None:
    """Write records and wait until each was acknowledged by all replicas."""
    failures: list[Any] = []
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "acks": "all", "log_level": 0})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: failures.append(error) if error else None)
    assert producer.flush(20) == 0
    assert failures == []


def read_all(broker: Broker, topic: str, count: int) -> list[bytes]:
    """Read `count` records of partition 0 from the start."""
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[bytes] = []
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            found.append(bytes(message.value() or b""))
    consumer.close()
    return found


def setting(broker: Broker, name: str) -> str:
    """Ask the broker for one of its settings."""
    resource = ConfigResource(ResourceType.BROKER, "1")
    client = admin(broker)
    (answer,) = client.describe_configs([resource]).values()
    return str(answer.result(10)[name].value)


def test_embedded_broker_keeps_acknowledged_records_over_sigkill(new_broker: Callable[[], Broker]) -> None:
    """What was acknowledged before SIGKILL is read in order after a restart, at the same address."""
    broker = new_broker()
    topic, values = new_topic(broker), [b"%d" % i for i in range(500)]
    address, pid = broker.bootstrap_servers, broker.kafka.pid
    produce(broker, topic, values)
    broker.kill()
    assert not broker.kafka.is_running()
    assert not cluster_ready(address, 0.3)
    broker.restart()
    assert broker.kafka.pid != pid
    assert broker.bootstrap_servers == address
    assert read_all(broker, topic, len(values)) == values
    produce(broker, topic, [b"more"])
    assert read_all(broker, topic, len(values) + 1) == [*values, b"more"]


def test_embedded_broker_answers_again_after_a_freeze(broker: Broker) -> None:
    """A frozen broker runs but is not ready; it answers again when it goes on, with its records."""
    topic = new_topic(broker)
    produce(broker, topic, [b"before"])
    broker.freeze()
    try:
        assert broker.kafka.is_running()
        assert not cluster_ready(broker.bootstrap_servers, 0.3)
    finally:
        broker.thaw()
    assert cluster_ready(broker.bootstrap_servers, 10.0)
    assert read_all(broker, topic, 1) == [b"before"]


def test_embedded_broker_restarts_cleanly_while_frozen(new_broker: Callable[[], Broker]) -> None:
    """A restart ends a frozen broker in good order too, and keeps the address."""
    broker = new_broker()
    address, pid = broker.bootstrap_servers, broker.kafka.pid
    broker.freeze()
    broker.restart()
    assert (broker.bootstrap_servers, broker.kafka.pid != pid) == (address, True)
    assert cluster_ready(address, 10.0)


def test_embedded_broker_listens_on_loopback_only(broker: Broker) -> None:
    """No socket of the broker listens on an address that another machine could reach."""
    connections = psutil.Process(broker.kafka.pid).net_connections("tcp")
    listening = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    assert {address.removeprefix("::ffff:") for address in listening} == {process.LOOPBACK}
    assert broker.bootstrap_servers.startswith(f"{process.LOOPBACK}:")


def test_embedded_broker_makes_no_topic_by_itself(broker: Broker) -> None:
    """Writing to a topic that nobody made fails instead of making it."""
    producer = Producer(
        {"bootstrap.servers": broker.bootstrap_servers, "message.timeout.ms": 1000, "log_level": 0}
    )
    errors: list[Any] = []
    producer.produce("never-made", b"x", on_delivery=lambda error, _: errors.append(error))
    producer.flush(10)
    assert len(errors) == 1
    assert errors[0] is not None
    assert "never-made" not in admin(broker).list_topics(timeout=10).topics


def test_embedded_broker_gives_a_group_member_its_partitions_at_once(broker: Broker) -> None:
    """A lone consumer with a 6 s session gets its partitions without the broker's usual wait for others."""
    topic = new_topic(broker, partitions=3)
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "group.id": topic,
            "session.timeout.ms": 6000,
            "log_level": 0,
        }
    )
    assigned: list[TopicPartition] = []
    consumer.subscribe([topic], on_assign=lambda _, partitions: assigned.extend(partitions))
    deadline = time.monotonic() + 20
    while not assigned and time.monotonic() < deadline:
        consumer.poll(0.05)
    consumer.close()
    assert sorted(p.partition for p in assigned) == [0, 1, 2]
    assert setting(broker, "group.initial.rebalance.delay.ms") == "0"


def test_embedded_broker_takes_settings(new_broker: Callable[..., Broker]) -> None:
    """A setting given by the caller wins over the embedded default; the others stay."""
    broker = new_broker(config={"log.retention.ms": "12345", "log.segment.bytes": "1048576"})
    assert setting(broker, "log.retention.ms") == "12345"
    assert setting(broker, "log.segment.bytes") == "1048576"
    assert setting(broker, "auto.create.topics.enable") == "false"


def test_embedded_broker_never_deletes_by_size(broker: Broker) -> None:
    """Records that wait for ever by time are not deleted by a limit on bytes behind their owner's back."""
    assert setting(broker, "log.retention.bytes") == "-1"


@pytest.mark.parametrize("timeout_s", [0.0, 0.2])
def test_embedded_readiness_is_false_where_nothing_listens(timeout_s: float) -> None:
    """Nobody there: False, within the time given."""
    begun = time.monotonic()
    assert cluster_ready(f"{process.LOOPBACK}:{process.free_port()}", timeout_s) is False
    assert time.monotonic() - begun < timeout_s + 2

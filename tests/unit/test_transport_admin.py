"""What questions to the administration of a cluster do while the cluster has no answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pelton.errors import TransportError
from pelton.protocol.topics import TopicPlan
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka import admin as administration
from pelton.transport.kafka.admin import Admin

FENCED = KafkaError(
    KafkaError.INVALID_REPLICATION_FACTOR,
    "Unable to replicate the partition 1 time(s): All brokers are currently fenced.",
)
TOO_MANY = KafkaError(
    KafkaError.INVALID_REPLICATION_FACTOR,
    "Unable to replicate the partition 3 time(s): The target replication factor of 3 cannot be reached"
    " because only 1 broker(s) are registered.",
)


class Cluster:
    """The client library's administration: each request to create topics takes the next of its answers."""

    def __init__(self, *answers: Mapping[str, KafkaError | None]) -> None:
        self.answers = list(answers)

    def create_topics(self, topics: Sequence[Any], **_: Any) -> dict[str, Future[None]]:
        answer = self.answers.pop(0)
        futures: dict[str, Future[None]] = {}
        for topic in topics:
            future = futures[topic.topic] = Future()
            error = answer[topic.topic]
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(KafkaException(error))
        return futures


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Admin]:
    """An administration of nothing: what is created counts as shown at once."""
    admin = Admin(ConnectionConfig(bootstrap_servers="127.0.0.1:1"))
    monkeypatch.setattr(admin, "_await_shown", lambda partitions, timeout_s: None)
    monkeypatch.setattr(admin, "ends", lambda places, timeout_s: {})
    monkeypatch.setattr(administration, "_ASK_AGAIN_S", 0.0)
    yield admin
    admin.close()


def create(admin: Admin, cluster: Cluster, timeout_s: float = 60.0) -> list[str]:
    """Creates the topics `a` and `b`."""
    admin._client = cluster  # type: ignore[assignment]
    return admin.create_topics([TopicPlan("a", 1, 1), TopicPlan("b", 1, 1)], timeout_s)


def test_topics_are_created_once_a_broker_may_lead_again(admin: Admin) -> None:
    """A controller that was held up takes its only broker for dead for a moment; nothing is told twice."""
    there = KafkaError(KafkaError.TOPIC_ALREADY_EXISTS, "there")
    cluster = Cluster({"a": FENCED, "b": FENCED}, {"a": None, "b": FENCED}, {"a": there, "b": None})
    assert create(admin, cluster) == ["a", "b"]
    assert cluster.answers == []


def test_brokers_that_never_come_are_an_error_in_time(admin: Admin) -> None:
    """Waiting ends with the time that was given."""
    with pytest.raises(TransportError, match="currently fenced"):
        create(admin, Cluster({"a": FENCED, "b": None}), timeout_s=0.0)


def test_too_few_brokers_are_an_error_at_once(admin: Admin) -> None:
    """More replicas than brokers stay wrong: nobody waits for a minute."""
    with pytest.raises(TransportError, match="only 1 broker"):
        create(admin, Cluster({"a": TOO_MANY, "b": None}))

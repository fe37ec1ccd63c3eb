"""What really happened, from outside of the platform: the database, the raw topics, the produced ids."""

from __future__ import annotations

import sys
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tickets"))

from database import Database

from pelton.core.fold import Fold
from pelton.protocol.codec import decode_result

__all__ = ["Database", "Ledger", "commits_and_ends", "ended_calls"]


class Ledger:
    """Reads the workers' database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.create()

    def in_flight(self, pids: Iterable[int]) -> int:
        """Attempts that began in these processes and wrote no label."""
        wanted = set(pids)
        began = Counter((pid, call) for pid, call in self._database.rows("SELECT pid, call_id FROM attempts"))
        began.subtract((pid, call) for pid, call in self._database.rows("SELECT pid, call_id FROM labels"))
        return sum(count for (pid, _), count in began.items() if pid in wanted and count > 0)

    def labelled(self) -> int:
        """How many different tickets have a label."""
        return int(self._database.rows("SELECT COUNT(DISTINCT ticket) FROM labels")[0][0])

    def labels(self) -> dict[str, tuple[str, float]]:
        """First label of each ticket and when it was written."""
        first: dict[str, tuple[str, float]] = {}
        for ticket, label, at in self._database.rows("SELECT ticket, label, at FROM labels ORDER BY at"):
            first.setdefault(ticket, (label, at))
        return first

    def executions(self) -> Counter[str]:
        """How many attempts began, by ticket."""
        return Counter(ticket for (ticket,) in self._database.rows("SELECT ticket FROM attempts"))

    def calls(self) -> dict[str, str]:
        """Ticket of every call that began."""
        return dict(self._database.rows("SELECT call_id, ticket FROM attempts"))


def ended_calls(bootstrap_servers: str, topic: str) -> dict[str, str]:
    """Folds the raw results topic: how each call ended, "ok" or the failure's code, by call id."""
    folds: dict[bytes, Fold] = {}
    for value in read_topic(bootstrap_servers, topic):
        result = decode_result(value)
        folds.setdefault(result.call_id, Fold()).feed(result)
    return {
        str(uuid.UUID(bytes=call_id)): "ok" if fold.outcome.failure is None else fold.outcome.failure.code
        for call_id, fold in folds.items()
        if fold.outcome is not None
    }


def read_topic(bootstrap_servers: str, topic: str) -> list[bytes]:
    """Every record of a topic, from the start of its log to the end as it is now."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap_servers, "group.id": "demo-checker", "enable.auto.commit": False}
    )
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ends = {}
        assignment = []
        for number in partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
            if high > low:
                ends[number] = high
                assignment.append(TopicPartition(topic, number, low))
        consumer.assign(assignment)
        values: list[bytes] = []
        while ends:
            message = consumer.poll(10)
            if message is None:
                raise TimeoutError(f"{topic} could not be read to its end; still open: {ends}")
            if message.error() is not None:
                raise RuntimeError(str(message.error()))
            value = message.value()
            if value is not None:
                values.append(value)
            number, offset = message.partition(), message.offset()
            if number in ends and offset is not None and offset + 1 >= ends[number]:
                del ends[number]
        return values
    finally:
        consumer.close()


def commits_and_ends(bootstrap_servers: str, group: str, topic: str) -> list[tuple[int, int, int]]:
    """(partition, committed offset, end offset) of a group, from Kafka."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    offsets = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(10)
    committed = {x.partition: x.offset for x in offsets.topic_partitions if x.topic == topic}
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "demo-checker"})
    try:
        rows = []
        for number in sorted(consumer.list_topics(topic, timeout=10).topics[topic].partitions):
            _, end = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
            rows.append((number, committed.get(number, 0), end))
        return rows
    finally:
        consumer.close()

"""A hand-written Kafka consumer that calls a deployed function for every message of a topic."""

from __future__ import annotations

import json
import os
import signal
from types import FrameType

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from pelton import function_ref, gather

TOPIC = os.environ["TICKETS_TOPIC"]
GROUP = os.environ["TICKETS_GROUP"]
BATCH = int(os.environ["TICKETS_BATCH"])

stopping = False


def stop(_signal: int, _frame: FrameType | None) -> None:
    """Ends the loop after the batch at hand."""
    global stopping
    stopping = True


def take(consumer: Consumer) -> list[Message]:
    """The next batch: whatever is there, at most BATCH messages."""
    first = consumer.poll(0.5)
    if first is None:
        return []
    messages = [first, *consumer.consume(BATCH - 1, 0.05)]
    for message in messages:
        if message.error() is not None:
            raise KafkaException(message.error())
    return messages


def commit(consumer: Consumer, ends: dict[tuple[str, int], int]) -> None:
    """Commits what is done, as far as it is still ours: others call the rest again, which does no harm.

    While the group shares out its partitions Kafka refuses commits, also of partitions that stay here: these
    are kept in `ends`, for the next time.
    """
    ours = {(each.topic, each.partition) for each in consumer.assignment()}
    for place in ends.keys() - ours:
        del ends[place]
    if not ends:
        return
    try:
        consumer.commit(
            offsets=[TopicPartition(*place, offset) for place, offset in ends.items()], asynchronous=False
        )
        ends.clear()
    except KafkaException as error:
        print(f"not committed yet: {error}", flush=True)


def main() -> None:
    """Consumes until it is told to stop; an offset is committed only after its call has its outcome."""
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    classify = function_ref("classify-ticket")
    classify.wait_ready()
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["KAFKA_BROKERS"],
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": os.environ["KAFKA_USERNAME"],
            "sasl.password": os.environ["KAFKA_PASSWORD"],
            "group.id": GROUP,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 6_000,
            "partition.assignment.strategy": "cooperative-sticky",
        }
    )
    consumer.subscribe([TOPIC])
    done = 0
    ends: dict[tuple[str, int], int] = {}
    try:
        while not stopping:
            messages = take(consumer)
            if not messages:
                commit(consumer, ends)
                continue
            calls = [classify.async_call(json.loads(message.value() or b"null")) for message in messages]
            gather(*calls, timeout=120)
            for message in messages:
                place = (str(message.topic()), int(message.partition() or 0))
                ends[place] = max(ends.get(place, 0), int(message.offset() or 0) + 1)
            commit(consumer, ends)
            done += len(messages)
            print(f"{done} tickets classified", flush=True)
    finally:
        consumer.close()


if __name__ == "__main__":
    main()

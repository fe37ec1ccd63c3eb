"""A hand-written Kafka consumer that calls a deployed function for every message of `support-tickets`."""

from __future__ import annotations

import json
import os
import signal
from types import FrameType

from confluent_kafka import Consumer, KafkaException, Message

from pelton import function_ref, gather

TOPIC = "support-tickets"
GROUP = "ticket-consumer"
BATCH = 20

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


def main() -> None:
    """Consumes until it is told to stop; an offset is committed only after its call has its outcome."""
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    classify = function_ref("classify-ticket")
    classify.wait_ready()
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["PELTON_BOOTSTRAP_SERVERS"],
            "group.id": GROUP,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([TOPIC])
    done = 0
    try:
        while not stopping:
            messages = take(consumer)
            if not messages:
                continue
            calls = [classify.async_call(json.loads(message.value() or b"null")) for message in messages]
            gather(*calls, timeout=120)
            consumer.commit(asynchronous=False)
            done += len(messages)
            print(f"{done} tickets classified", flush=True)
    finally:
        consumer.close()


if __name__ == "__main__":
    main()

"""The raw ceiling: two bare client processes, two hops, the same sizes and the same number in flight."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from statistics import quantiles
from uuid import uuid4

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

PRODUCER = {
    "linger.ms": 0,
    "acks": "all",
    "enable.idempotence": True,
    "queue.buffering.max.messages": 500_000,
}
CONSUMER = {"enable.auto.commit": False, "auto.offset.reset": "earliest", "fetch.queue.backoff.ms": 10}
REPLY = 3


def _echo(servers: str, requests: str, replies: str, stop: Event) -> None:
    consumer = Consumer({**CONSUMER, "bootstrap.servers": servers, "group.id": requests})
    consumer.subscribe([requests])
    producer = Producer({**PRODUCER, "bootstrap.servers": servers})
    committed = time.monotonic()
    while not stop.is_set():
        first = consumer.poll(0.2)
        if first is None:
            continue
        for message in [first, *consumer.consume(500, 0)]:
            if not message.error():
                producer.produce(replies, message.value(), headers=message.headers(), partition=REPLY)
        producer.poll(0)
        if time.monotonic() - committed > 0.2:
            consumer.commit(asynchronous=True)
            committed = time.monotonic()
    producer.flush(5)
    consumer.close()


class RawLoop:
    """The calling half of the raw ceiling."""

    def __init__(self, servers: str, requests: str, replies: str, size: int) -> None:
        self.requests = requests
        self.producer = Producer({**PRODUCER, "bootstrap.servers": servers})
        self.consumer = Consumer({**CONSUMER, "bootstrap.servers": servers, "group.id": replies})
        self.consumer.assign([TopicPartition(replies, REPLY, 0)])
        self.body = b"x" * size
        self.headers: list[tuple[str, str | bytes | None]] = [("id", b"0" * 16), ("fn", b"bench-echo")]

    def send(self) -> None:
        """One request."""
        self.producer.produce(self.requests, self.body, headers=self.headers)

    def warm_up(self) -> None:
        """Until answers come."""
        self.send()
        while self.consumer.poll(1) is None:
            self.producer.poll(0)

    def sequential(self, calls: int) -> list[float]:
        """Round trips in ms, one after the other."""
        taken = []
        for _ in range(calls):
            began = time.perf_counter()
            self.send()
            while self.consumer.poll(1) is None:
                continue
            taken.append((time.perf_counter() - began) * 1e3)
            self.producer.poll(0)
        return taken

    def closed_loop(self, calls: int, in_flight: int) -> float:
        """Round trips per second with so many in flight."""
        room = threading.Semaphore(in_flight)
        done = threading.Event()

        def receive() -> None:
            got = 0
            while got < calls:
                if self.consumer.poll(1) is None:
                    continue
                count = 1 + len(self.consumer.consume(500, 0))
                got += count
                room.release(count)
            done.set()

        receiver = threading.Thread(target=receive, daemon=True)
        receiver.start()
        began = time.perf_counter()
        for number in range(calls):
            room.acquire()
            self.send()
            if number % 100 == 0:
                self.producer.poll(0)
        if not done.wait(120):
            raise TimeoutError("the raw loop did not end")
        took = time.perf_counter() - began
        self.producer.flush(10)
        return calls / took


@contextmanager
def raw_loop(servers: str, size: int = 330) -> Iterator[RawLoop]:
    """A raw loop with its echo process, on fresh topics with 8 partitions each."""
    mark = uuid4().hex[:8]
    requests, replies = f"raw-requests-{mark}", f"raw-replies-{mark}"
    admin = AdminClient({"bootstrap.servers": servers})
    for created in admin.create_topics([NewTopic(requests, 8, 1), NewTopic(replies, 8, 1)]).values():
        created.result(30)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    echo = context.Process(target=_echo, args=(servers, requests, replies, stop), daemon=True)
    echo.start()
    try:
        loop = RawLoop(servers, requests, replies, size)
        loop.warm_up()
        yield loop
        loop.consumer.close()
    finally:
        stop.set()
        echo.join(10)
        if echo.is_alive():
            echo.kill()


def percentile(values: list[float], percent: int) -> float:
    """The nth percentile."""
    return quantiles(values, n=100)[percent - 1]

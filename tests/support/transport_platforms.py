"""Platforms without workers: in memory, behind frames, on Apache Kafka; tests get the same handles of all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Protocol

from pelton.core.call import Result, reply_partition
from pelton.core.spec import ContainerSpec, FunctionKind, FunctionSpec, InstanceStatus
from pelton.protocol.codec import (
    decode_invocation,
    encode_container_spec,
    encode_function_spec,
    encode_instance_status,
    encode_result,
)
from pelton.protocol.frames import FrameReader, encode_write
from pelton.protocol.headers import decode_input
from pelton.protocol.headers import encode_result as encode_result_headers
from pelton.protocol.signing import Key, Keyring
from pelton.protocol.topics import CONTROL_PARTITIONS, Control, Topics, instance_key, spec_key
from pelton.transport.channel import ChannelTransport
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.calls import KafkaTransport
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.kafka.reader import PartitionReader
from pelton.transport.log import Headers, KafkaFailure, LogRecord
from pelton.transport.memory import Delivery, MemoryBroker, MemoryTransport, Worker
from pelton.transport.ports import Transport
from pelton_platform.coordinator.relay import KINDS, Client, Relay, is_sound
from support.embedded_broker import Broker

MESSAGE_TIMEOUT_S = 4.0


def function_spec(name: str, *, container: str = "c", partitions: int = 2) -> FunctionSpec:
    """A spec of a function whose code nobody loads."""
    return FunctionSpec(name, 1, container, FunctionKind.SYNC, (), "m", name, "0" * 64, partitions=partitions)


class Platform(Protocol):
    """What contract tests do beside using a transport."""

    topics: Topics

    def transport(self) -> Transport:
        """A new client; closed with the platform."""

    def deploy(self, function: FunctionSpec, container: ContainerSpec | None = None) -> None:
        """Makes topics and writes specs; returns when they can be read."""

    def put_instance(self, status: InstanceStatus) -> None:
        """Writes a status."""

    def serve(self, function: str, worker: Worker) -> None:
        """Gives each input record to the worker."""

    def append_result(self, function: str, result: Result) -> int:
        """Appends a result as a worker would."""

    def append(self, topic: str, partition: int, value: bytes | None, headers: Headers) -> int:
        """Appends any record."""

    def inputs(self, function: str) -> list[LogRecord]:
        """All records in the invocations of a function."""

    def cancellations(self) -> list[LogRecord]:
        """All records in the topic of cancellations."""

    def trim(self, topic: str, partition: int) -> None:
        """Deletes all records of a partition, as trimming does."""

    def recreate(self, topic: str, partitions: int) -> None:
        """Deletes a topic and makes it anew."""

    def freeze(self) -> None:
        """From now on nothing is acknowledged."""

    def thaw(self) -> None:
        """Acknowledges again."""

    def now_ms(self) -> int:
        """The broker's clock."""


class MemoryPlatform:
    """Over `pelton.transport.memory`."""

    def __init__(self) -> None:
        self.broker = MemoryBroker("contract")
        self.topics = self.broker.topics
        self._transports: list[MemoryTransport] = []

    def transport(self) -> Transport:
        self._transports.append(MemoryTransport(self.broker, message_timeout_s=MESSAGE_TIMEOUT_S))
        return self._transports[-1]

    def deploy(self, function: FunctionSpec, container: ContainerSpec | None = None) -> None:
        self.broker.deploy(function, container)

    def put_instance(self, status: InstanceStatus) -> None:
        self.broker.registry.put_instance(instance_key(status.container, status.instance), status)

    def serve(self, function: str, worker: Worker) -> None:
        self.broker.serve(function, worker)

    def append_result(self, function: str, result: Result) -> int:
        return self.broker.append_result(function, result)

    def append(self, topic: str, partition: int, value: bytes | None, headers: Headers) -> int:
        record = self.broker.append(topic, value, partition=partition, headers=headers)
        assert isinstance(record, LogRecord), record
        return record.offset

    def inputs(self, function: str) -> list[LogRecord]:
        topic = self.topics.invocations(function)
        found: list[LogRecord] = []
        for number in range(2):
            found.extend(self.broker.records((topic, number), self.broker.bounds((topic, number))[0]))
        return found

    def cancellations(self) -> list[LogRecord]:
        topic = self.topics.control(Control.CANCELLATIONS)
        return [
            record
            for number in range(CONTROL_PARTITIONS)
            for record in self.broker.records((topic, number), 0)
        ]

    def trim(self, topic: str, partition: int) -> None:
        self.broker.delete_records(topic, partition, self.broker.bounds((topic, partition))[1])

    def recreate(self, topic: str, partitions: int) -> None:
        self.broker.delete_topic(topic)
        self.broker.create_topic(topic, partitions)

    def freeze(self) -> None:
        self.broker.freeze()

    def thaw(self) -> None:
        self.broker.thaw()

    def now_ms(self) -> int:
        return self.broker.now_ms()

    def close(self) -> None:
        for transport in self._transports:
            transport.close(1)
        self.broker.close()


class ChannelPlatform(MemoryPlatform):
    """Clients are executors: their frames go, as bytes, to the relay of an instance on a broker in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._relays: list[Relay] = []
        self._pipes: list[Pipe] = []

    def transport(self) -> Transport:
        relay = Relay(super().transport)
        down = Pipe(lambda record: made.take(record))
        client = Client(down.send)
        up = Pipe(lambda record: self._hear(relay, client, record))
        made = ChannelTransport(lambda record: up.send([record]), self.broker.now_ms)
        self._relays.append(relay)
        self._pipes += [up, down]
        return made

    @staticmethod
    def _hear(relay: Relay, client: Client, record: list[Any]) -> None:
        assert record[0] in KINDS
        assert is_sound(record), record
        relay.take(client, record)

    def close(self) -> None:
        for relay in self._relays:
            relay.close(1)
        for pipe in self._pipes:
            pipe.close()
        super().close()


class Pipe:
    """One direction of a frame channel: what is sent arrives as bytes, on a thread of its own."""

    def __init__(self, hear: Callable[[list[Any]], None]) -> None:
        self._writes: SimpleQueue[bytes | None] = SimpleQueue()
        self._hear = hear
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, records: Sequence[Sequence[Any]]) -> bool:
        """Sends records; never blocks."""
        self._writes.put(encode_write(records))
        return True

    def close(self) -> None:
        """Ends the thread."""
        self._writes.put(None)
        self._thread.join(5)

    def _read(self) -> None:
        frames = FrameReader()
        while (data := self._writes.get()) is not None:
            for record in frames.feed(data):
                self._hear(record)


class KafkaPlatform:
    """Over an embedded Apache Kafka; specs are signed, clients verify them only when given the key."""

    def __init__(self, broker: Broker, namespace: str) -> None:
        self.broker = broker
        self.config = ConnectionConfig(broker.bootstrap_servers, namespace)
        self.topics = Topics(namespace)
        self.keyring = Keyring([Key("0" * 8, b"k" * 32)], namespace)
        self.admin = Admin(self.config)
        self.admin.create_topics(self.topics.control_topic_plans(1))
        self.producer = RecordProducer(self.config)
        self._readers: list[PartitionReader] = []
        self._ranges = PartitionReader(self.config, lambda records: None)
        self._transports: list[KafkaTransport] = []

    def transport(self) -> Transport:
        made = KafkaTransport(self.config, message_timeout_ms=round(MESSAGE_TIMEOUT_S * 1000))
        self._transports.append(made)
        return made

    def deploy(self, function: FunctionSpec, container: ContainerSpec | None = None) -> None:
        self.admin.create_topics(self.topics.topic_plans_for_function(function, 1))
        if container is not None:
            sealed = self.keyring.seal("container-spec", encode_container_spec(container))
            self.put(Control.CONTAINERS, spec_key(container.name), sealed)
        sealed = self.keyring.seal("function-spec", encode_function_spec(function))
        self.put(Control.FUNCTIONS, spec_key(function.name), sealed)

    def put(self, control: Control, key: bytes, value: bytes | None) -> None:
        """Writes an entry of a registry topic."""
        self._send(self.topics.control(control), value, key=key)

    def put_instance(self, status: InstanceStatus) -> None:
        key = instance_key(status.container, status.instance)
        self.put(Control.INSTANCES, key, encode_instance_status(status))

    def serve(self, function: str, worker: Worker) -> None:
        def take(records: Sequence[LogRecord]) -> None:
            for record in records:
                worker(
                    Delivery(
                        decode_input(record.headers),
                        decode_invocation(record.value),
                        record.topic,
                        record.partition,
                        record.offset,
                        lambda result: self.append_result(function, result),
                    )
                )

        counts = self.admin.topics()
        places = [
            (topic, number)
            for topic in (self.topics.invocations(function), self.topics.retries(function))
            for number in range(counts[topic])
        ]
        reader = PartitionReader(self.config, take, name="worker")
        reader.follow_all(dict.fromkeys(places, 0))
        self._readers.append(reader)

    def append_result(self, function: str, result: Result) -> int:
        return self._send(
            self.topics.results(function),
            encode_result(result),
            key=result.call_id,
            partition=reply_partition(result.call_id),
            headers=encode_result_headers(result.call_id, result.token),
        )

    def append(self, topic: str, partition: int, value: bytes | None, headers: Headers) -> int:
        return self._send(topic, value, partition=partition, headers=headers)

    def inputs(self, function: str) -> list[LogRecord]:
        topic = self.topics.invocations(function)
        found: list[LogRecord] = []
        for (_, number), (start, end) in self.admin.watermarks([(topic, 0), (topic, 1)]).items():
            found.extend(self._ranges.read_range(topic, number, start, end))
        return found

    def cancellations(self) -> list[LogRecord]:
        topic = self.topics.control(Control.CANCELLATIONS)
        places = [(topic, number) for number in range(CONTROL_PARTITIONS)]
        found: list[LogRecord] = []
        for (_, number), (start, end) in self.admin.watermarks(places).items():
            found.extend(self._ranges.read_range(topic, number, start, end))
        return found

    def trim(self, topic: str, partition: int) -> None:
        end = self.admin.watermarks([(topic, partition)])[topic, partition][1]
        self.admin.delete_records({(topic, partition): end})

    def recreate(self, topic: str, partitions: int) -> None:
        self.admin.delete_topics([topic])
        plan = self.topics.topic_plans_for_function(function_spec("x"), 1)[2]
        wanted = type(plan)(topic, partitions, 1, plan.configs)
        deadline = time.monotonic() + 20
        while topic in self.admin.topics():
            assert time.monotonic() < deadline
        self.admin.create_topics([wanted])

    def freeze(self) -> None:
        self.broker.freeze()

    def thaw(self) -> None:
        self.broker.thaw()

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def close(self) -> None:
        for transport in self._transports:
            transport.close(1)
        for reader in (*self._readers, self._ranges):
            reader.close()
        self.producer.close(flush_s=1)
        self.admin.close()

    def _send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> int:
        """Appends and waits for the acknowledgement."""
        answered = threading.Event()
        answer: list[tuple[KafkaFailure | None, int]] = []

        def report(failure: KafkaFailure | None, _: int, offset: int, __: int) -> None:
            answer.append((failure, offset))
            answered.set()

        self.producer.send(
            topic, value, key=key, partition=partition, headers=list(headers), on_report=report
        )
        assert answered.wait(20)
        assert answer[0][0] is None, answer
        return answer[0][1]


MakePlatform = Callable[[], Platform]

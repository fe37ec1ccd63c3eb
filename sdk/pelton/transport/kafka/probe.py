"""The record that a program writes to know that Kafka takes records, and what time it is there."""

from __future__ import annotations

import threading
import time
from typing import Final

from pelton.errors import TransportError
from pelton.protocol.topics import Control, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.producer import MESSAGE_TIMEOUT_MS, RecordProducer
from pelton.transport.log import KafkaFailure

CONNECT_TIMEOUT_S: Final = 15.0
"""How long connecting may take: the registry, and one acknowledged record."""

PROBE_EVERY_S: Final = 10.0
"""How often a service learns broker time anew."""

PROBE_HEADER: Final = "probe"
"""Header of the record, which lies in `control.logs`; its value is null, log readers skip it."""


class Probe:
    """An acknowledged record: it proves that the broker takes records, and sets the clock of the producer.

    Args:
        producer: sends it, at once.
        topic: `control.logs` of the namespace.
    """

    def __init__(self, producer: RecordProducer, topic: str) -> None:
        self._answered = threading.Event()
        self._failure: KafkaFailure | None = None
        producer.send(topic, None, headers=[(PROBE_HEADER, b"")], on_report=self._answer)

    def _answer(self, failure: KafkaFailure | None, partition: int, offset: int, appended_ms: int) -> None:
        self._failure = failure
        self._answered.set()

    def wait(self, servers: str) -> None:
        """Returns when it was acknowledged.

        Raises:
            TransportError: it was not, or not in time.
        """
        if not self._answered.wait(CONNECT_TIMEOUT_S):
            raise TransportError(
                f"Kafka at {servers} did not acknowledge a record in {CONNECT_TIMEOUT_S:g} s"
            )
        if self._failure is not None:
            raise TransportError(f"Kafka at {servers} did not take a record: {self._failure}")


class ClockProducer:
    """A producer and the broker time it learns, for services that may be silent for long.

    Args:
        config: the connection.
        message_timeout_ms: what was not acknowledged by then is given up.

    Raises:
        TransportError: the broker cannot be reached, or takes no records.

    Attributes:
        clock: broker time.
        producer: sends.
    """

    def __init__(self, config: ConnectionConfig, message_timeout_ms: int) -> None:
        self._topic = Topics(config.namespace).control(Control.LOGS)
        self._probed_at = time.monotonic()
        self.clock = BrokerClock()
        self.producer = RecordProducer(config, message_timeout_ms=message_timeout_ms, clock=self.clock)
        try:
            # The first one waits for connections to be made and says little about the broker's clock.
            for _ in range(2):
                Probe(self.producer, self._topic).wait(config.bootstrap_servers)
        except BaseException:
            self.close()
            raise

    def learn(self) -> None:
        """Learns broker time anew, if the last time was a while ago; returns at once."""
        if time.monotonic() - self._probed_at >= PROBE_EVERY_S:
            self._probed_at = time.monotonic()
            Probe(self.producer, self._topic)

    def close(self) -> None:
        """Ends it; what was not acknowledged is given up."""
        self.producer.close(flush_s=0)


def broker_now_ms(config: ConnectionConfig) -> int:
    """Broker time, asked for with records of its own: for programs that keep no connection. Blocks.

    Raises:
        TransportError: the broker cannot be reached, or takes no records.
    """
    asked = ClockProducer(config, MESSAGE_TIMEOUT_MS)
    try:
        return asked.clock.now_ms()
    finally:
        asked.close()

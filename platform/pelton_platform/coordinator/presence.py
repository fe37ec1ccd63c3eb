"""What an instance says of itself in `control.instances`: often, at each change, and at last that it left."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from pelton.core.spec import InstanceStatus
from pelton.errors import TransportError
from pelton.protocol.codec import encode_instance_status
from pelton.protocol.topics import Control, Topics, instance_key
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.log import KafkaFailure
from pelton_platform.coordinator.times import STATUS_EVERY_S, STATUS_SETTLE_S

_log = logging.getLogger(__name__)


class Presence:
    """Writes the status of one instance.

    Args:
        producer: sends.
        topics: names in the namespace.
        container, instance: whose status it is; they make the key.
    """

    def __init__(self, producer: RecordProducer, topics: Topics, container: str, instance: str) -> None:
        self._producer = producer
        self._topic = topics.control(Control.INSTANCES)
        self._key = instance_key(container, instance)
        self._said: InstanceStatus | None = None
        self._said_at = -STATUS_EVERY_S

    def say(self, status: InstanceStatus) -> None:
        """Writes the status when it changed or is due."""
        now = time.monotonic()
        since = now - self._said_at
        changed = self._said is None or replace(status, seen_ms=self._said.seen_ms) != self._said
        urgent = changed and (self._said is None or status.state != self._said.state)
        if urgent or since >= STATUS_EVERY_S or (changed and since >= STATUS_SETTLE_S):
            self._said, self._said_at = status, now
            self._send(encode_instance_status(status))

    def gone(self) -> None:
        """Takes the status back: an orderly end."""
        self._send(None)

    def _send(self, value: bytes | None) -> None:
        try:
            self._producer.send(self._topic, value, key=self._key, on_report=self._reported)
        except TransportError as error:
            _log.warning("the status of this instance is not written: %s", error)

    @staticmethod
    def _reported(failure: KafkaFailure | None, partition: int, offset: int, at_ms: int) -> None:
        if failure is not None:
            _log.warning("the status of this instance is not written: %s", failure)

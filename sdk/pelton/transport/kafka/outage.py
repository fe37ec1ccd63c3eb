"""Whether the brokers answer a client: said once when all are out of reach and once when one is back."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

_LOOK_EVERY_S: Final = 1.0
_LOOK_S: Final = 0.5
_LOGGER: Final = logging.getLogger("pelton.transport")


class Outage:
    """What one client knows of its connection; all of it is used on the thread that polls the client.

    The client itself says that all brokers are down with each try to connect, and never that one is back.

    Args:
        servers: for the lines.
        who: the client, for the lines.
    """

    __slots__ = ("_answered", "_look_at", "_lost_at", "_servers", "_who")

    def __init__(self, servers: str, who: str) -> None:
        self._servers = servers
        self._who = who
        self._lost_at: float | None = None
        self._look_at = 0.0
        self._answered = False

    @property
    def lost(self) -> bool:
        """Whether no broker could be reached, and none has answered since."""
        return self._lost_at is not None

    def told(self, error: KafkaError) -> bool:
        """Takes an error of the client; False when it does not say that all brokers are down."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            return False
        self._answered = False
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            self._look_at = self._lost_at + _LOOK_EVERY_S
            _LOGGER.warning(
                "Kafka at %s cannot be reached by %s: %s; trying on", self._servers, self._who, error.str()
            )
        return True

    def look(self, client: Any) -> None:
        """Called between two polls: asks the brokers now and then while they are lost, for half a second."""
        if self._lost_at is None:
            return
        if self._answered:
            # What the client had still to say of the outage came with the poll since the answer.
            _LOGGER.warning(
                "Kafka at %s is reached again by %s, after %.1f s",
                self._servers,
                self._who,
                time.monotonic() - self._lost_at,
            )
            self._lost_at, self._answered = None, False
        elif time.monotonic() >= self._look_at:
            try:
                client.list_topics(timeout=_LOOK_S)
                self._answered = True
            except (KafkaException, RuntimeError):  # still away, or closed by its owner
                self._look_at = time.monotonic() + _LOOK_EVERY_S

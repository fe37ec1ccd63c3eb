"""The one error of the embedded Apache Kafka: it says what went wrong and what to do about it."""

from __future__ import annotations

from pelton.errors import PeltonError


class EmbeddedKafkaError(PeltonError, RuntimeError):
    """The embedded Apache Kafka could not be fetched, started or stopped; the message names the way out."""

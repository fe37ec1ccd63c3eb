"""A real Apache Kafka in a box for laptops and tests: fetched once, verified, started in a second or two."""

from __future__ import annotations

from pelton_platform.embedded.broker import EmbeddedKafka
from pelton_platform.embedded.cache import Installation, locate, resolve, verify
from pelton_platform.embedded.failure import EmbeddedKafkaError

__all__ = ["EmbeddedKafka", "EmbeddedKafkaError", "Installation", "locate", "resolve", "verify"]

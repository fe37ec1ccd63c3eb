"""Large registries: many keys are read in little time, and a thousand functions cost what they should."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pelton.core.spec import ParameterSpec
from pelton.protocol.codec import encode_function_spec
from pelton.protocol.signing import Key, Keyring
from pelton.protocol.topics import Control, TopicPlan, Topics, spec_key
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.directory import KafkaDirectory
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.kafka.table import CompactedTable
from pelton.transport.log import KafkaFailure
from support.embedded_broker import Broker
from support.transport_platforms import function_spec

KEYS = 100_000
FUNCTIONS = 1_000


class Registry:
    """Topics in a namespace of their own, and a producer for them."""

    def __init__(self, broker: Broker) -> None:
        self.config = ConnectionConfig(broker.bootstrap_servers, "n" + uuid.uuid4().hex[:8])
        self.topics = Topics(self.config.namespace)
        self.admin = Admin(self.config)
        self.producer = RecordProducer(self.config)
        self._failures: list[KafkaFailure] = []

    def append(self, topic: str, key: bytes, value: bytes | None) -> None:
        """Appends a record; `flush` tells whether it arrived."""
        self.producer.send(topic, value, key=key, on_report=self._report)

    def flush(self) -> None:
        """Waits until all is acknowledged."""
        assert self.producer.flush(60) == 0
        assert not self._failures

    def close(self) -> None:
        """Ends the clients."""
        self.producer.close(1)
        self.admin.close()

    def _report(self, failure: KafkaFailure | None, *_: int) -> None:
        if failure is not None:
            self._failures.append(failure)


@pytest.fixture
def registry(broker: Broker) -> Iterator[Registry]:
    """A namespace of its own."""
    registry = Registry(broker)
    yield registry
    registry.close()


def test_transport_sizes_100000_keys_are_read_in_5_s_while_they_change(registry: Registry) -> None:
    """A table over 100,000 keys is complete within 5 s; what is deleted and made anew meanwhile is right."""
    topic = registry.topics.control(Control.INSTANCES)
    registry.admin.create_topics([TopicPlan(topic, 16, 1, {"cleanup.policy": "compact"})])
    for number in range(KEYS):
        registry.append(topic, b"%d" % number, b"v%d" % number)
    registry.flush()
    began = time.monotonic()
    table = CompactedTable(registry.config, topic)
    # Of these, the last ones are deleted and then written again.
    for number in range(1_000):
        registry.append(topic, b"%d" % number, None)
    for number in range(500):
        registry.append(topic, b"%d" % number, b"again")
    assert table.wait_end(30)
    assert time.monotonic() - began < 5
    registry.flush()
    assert table.wait_end(30, refresh=True)
    assert len(table) == KEYS - 500
    assert table[b"0"] == table[b"499"] == b"again"
    assert b"500" not in table
    assert table[b"%d" % (KEYS - 1)] == b"v%d" % (KEYS - 1)
    table.close()


def test_transport_sizes_a_thousand_functions_are_known_at_once(registry: Registry, tmp_path: Path) -> None:
    """With 1,000 signed specs in the registry a client knows each of them within 3 s of its start."""
    keyring = Keyring([Key("0" * 8, b"k" * 32)], registry.config.namespace)
    registry.admin.create_topics(registry.topics.control_topic_plans(1))
    parameters = tuple(ParameterSpec(f"p{place}", "POSITIONAL_OR_KEYWORD", True) for place in range(8))
    for number in range(FUNCTIONS):
        spec = replace(function_spec(f"f{number}"), parameters=parameters)
        sealed = keyring.seal("function-spec", encode_function_spec(spec))
        registry.append(registry.topics.control(Control.FUNCTIONS), spec_key(spec.name), sealed)
    registry.flush()
    keyring.save(tmp_path / "key")
    began = time.monotonic()
    directory = KafkaDirectory(replace(registry.config, key_file=tmp_path / "key"))
    assert len(directory.functions()) == FUNCTIONS
    assert time.monotonic() - began < 3
    last = directory.function(f"f{FUNCTIONS - 1}")
    assert last is not None
    assert last.parameters == parameters
    directory.close()

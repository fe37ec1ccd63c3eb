"""The deployer's view of a real broker: signed specs, unfinished calls, trimming."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from pelton.core.call import InputTopic
from pelton.core.offsets import CommitMeta, encode_metadata
from pelton.core.spec import ContainerSpec, FunctionKind, FunctionSpec, InstanceStatus
from pelton.errors import SignatureError
from pelton.protocol import codec
from pelton.protocol.signing import Keyring, new_key
from pelton.protocol.topics import Control, Topics, spec_key
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.log import KafkaFailure
from pelton_platform.deploy.backlog import Backlog, Trimmer
from pelton_platform.deploy.registry import FUNCTION_PURPOSE, Registry, RegistryWriter
from support.embedded_broker import Broker
from support.local_platform import wait_for

_numbers = itertools.count(1)


@pytest.fixture
def config(broker: Broker) -> ConnectionConfig:
    """A namespace of its own."""
    return ConnectionConfig(broker.bootstrap_servers, f"deploy-registry-{next(_numbers)}")


@pytest.fixture
def admin(config: ConnectionConfig) -> Iterator[Admin]:
    """An admin of a namespace whose control topics exist."""
    admin = Admin(config)
    admin.create_topics(Topics(config.namespace).control_topic_plans(1))
    yield admin
    admin.close()


@pytest.fixture
def producer(config: ConnectionConfig, admin: Admin) -> Iterator[RecordProducer]:
    """A producer that is flushed by `append`."""
    producer = RecordProducer(config)
    yield producer
    producer.close()


def function(name: str = "f", version: int = 1) -> FunctionSpec:
    """A spec with two partitions."""
    return FunctionSpec(name, version, "c", FunctionKind.SYNC, (), "m", name, "0" * 64, partitions=2)


def append(producer: RecordProducer, topic: str, count: int, partition: int) -> None:
    """Append records and wait for their acknowledgement."""
    failures: list[KafkaFailure] = []

    def report(failure: KafkaFailure | None, *_: int) -> None:
        if failure is not None:
            failures.append(failure)

    for _ in range(count):
        producer.send(topic, b"x", partition=partition, on_report=report)
    assert producer.flush(30) == 0
    assert not failures


def put(producer: RecordProducer, topic: str, key: bytes, value: bytes | None) -> None:
    """Write one key of a registry topic."""
    reports: list[KafkaFailure | None] = []
    producer.send(topic, value, key=key, on_report=lambda failure, *_: reports.append(failure))
    assert producer.flush(30) == 0
    assert reports == [None]


def test_deploy_registry_takes_signed_specs_only(
    config: ConnectionConfig, producer: RecordProducer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Junk, foreign signatures and specs under another name are refused with an alarm; the good one stays."""
    keyring = Keyring([new_key()], config.namespace)
    writer = RegistryWriter(config.namespace, producer, keyring)
    container = ContainerSpec("c", 1, ("f",), "0" * 64)
    writer.write_specs({"f": function()}, {"c": container}, 30.0)
    registry = Registry(config, keyring)
    try:
        registry.wait_end(30)
        assert registry.functions == {"f": function()}
        assert registry.containers == {"c": container}
        topic = Topics(config.namespace).control(Control.FUNCTIONS)
        evil = codec.encode_function_spec(function(version=2))
        stranger = Keyring([new_key()], config.namespace)
        for value in (
            b"junk",
            evil,
            stranger.seal(FUNCTION_PURPOSE, evil),
            keyring.seal("container-spec", evil),
            keyring.seal(FUNCTION_PURPOSE, codec.encode_function_spec(function("g", 2))),
        ):
            put(producer, topic, spec_key("f"), value)
            registry.wait_end(30, refresh=True)
            assert registry.functions == {"f": function()}
            assert "functions/f" in registry.refused
        writer.write_specs({"f": function(version=2)}, {}, 30.0)
        registry.wait_end(30, refresh=True)
        assert registry.functions == {"f": function(version=2)}
        assert registry.refused == {}
        writer.write_specs({}, {}, 30.0, removed=["c"])
        registry.wait_end(30, refresh=True)
        assert registry.containers == {}
    finally:
        registry.close()


def test_deploy_registry_without_a_key_writes_no_spec(
    config: ConnectionConfig, producer: RecordProducer
) -> None:
    """A writer of statuses cannot write specs."""
    with pytest.raises(SignatureError, match="key of the namespace"):
        RegistryWriter(config.namespace, producer).write_specs({"f": function()}, {}, 1.0)


def test_deploy_registry_follows_statuses(config: ConnectionConfig, producer: RecordProducer) -> None:
    """Statuses come and go with their records, and every change is told."""
    told: list[int] = []
    registry = Registry(config, Keyring([new_key()], config.namespace), lambda: told.append(1))
    writer = RegistryWriter(config.namespace, producer)
    status = InstanceStatus("c", "c-1", "ready", "here", 1, 1)
    try:
        writer.write_status(status)
        writer.write_status(replace(status, container="", instance="d-1"))
        wait_for(lambda: len(registry.statuses) == 2, "the statuses")
        assert registry.statuses[("c", "c-1")] == status
        assert ("", "d-1") in registry.statuses
        assert told
        writer.remove_status("c", "c-1")
        wait_for(lambda: ("c", "c-1") not in registry.statuses, "the tombstone")
    finally:
        registry.close()


@pytest.fixture
def topic_of(config: ConnectionConfig, admin: Admin) -> Callable[[str], Topics]:
    """Creates the topics of a function."""
    topics = Topics(config.namespace)

    def create(name: str) -> Topics:
        admin.create_topics(topics.topic_plans_for_function(function(name), 1))
        return topics

    return create


def test_deploy_backlog_counts_what_has_no_durable_end(
    admin: Admin, producer: RecordProducer, topic_of: Callable[[str], Topics]
) -> None:
    """Counted is what lies between commit and end without finished gaps, over calls and retries."""
    topics = topic_of("f")
    specs = {"f": function()}
    backlog = Backlog(admin, topics)
    assert backlog.look(specs) == {"f": 0}
    calls = topics.invocations("f")
    append(producer, calls, 5, 0)
    append(producer, calls, 1, 1)
    append(producer, topics.input("f", InputTopic.RETRIES), 2, 3)
    assert backlog.look(specs) == {"f": 8}
    meta = encode_metadata(CommitMeta(epoch=1, finished=((3, 1),)), base=2)
    admin.commit_for_idle_group(topics.group("f"), {(calls, 0): (2, meta), (calls, 1): (1, "")})
    assert backlog.look(specs) == {"f": 4}
    assert backlog.committed("f") == {(calls, 0): 2, (calls, 1): 1}


def test_deploy_backlog_at_rest_asks_for_ends_alone(
    admin: Admin, producer: RecordProducer, topic_of: Callable[[str], Topics], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions with nothing unfinished and nothing new cost no question about their group."""
    topics = topic_of("f")
    backlog = Backlog(admin, topics)
    backlog.look({"f": function()})
    asked: list[str] = []
    committed = admin.committed

    def ask(group: str, *rest: Any) -> Any:
        asked.append(group)
        return committed(group, *rest)

    monkeypatch.setattr(admin, "committed", ask)
    backlog.look({"f": function()})
    assert asked == []
    append(producer, topics.invocations("f"), 1, 0)
    assert backlog.look({"f": function()}) == {"f": 1}
    assert asked == [topics.group("f")]


def test_deploy_backlog_of_one_broken_function_hides_no_other(
    admin: Admin, producer: RecordProducer, topic_of: Callable[[str], Topics], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function whose topics do not exist is left out, and the calls of the others are counted."""
    from pelton_platform.deploy import backlog as module

    monkeypatch.setattr(module, "_TIMEOUT_S", 0.5)
    topics = topic_of("f")
    append(producer, topics.invocations("f"), 1, 0)
    found = Backlog(admin, topics).look({"f": function(), "gone": function("gone")})
    assert found == {"f": 1}


def test_deploy_trimmer_deletes_below_the_commit_only(
    admin: Admin, producer: RecordProducer, topic_of: Callable[[str], Topics]
) -> None:
    """Records below a commit go, those above stay, and nothing is asked twice for the same commit."""
    topics = topic_of("f")
    calls = topics.invocations("f")
    append(producer, calls, 5, 0)
    admin.commit_for_idle_group(topics.group("f"), {(calls, 0): (3, "")})
    backlog = Backlog(admin, topics)
    assert backlog.look({"f": function()}) == {"f": 2}
    trimmer = Trimmer(admin)
    assert trimmer.trim(backlog.committed("f")) == 1
    assert admin.watermarks([(calls, 0)]) == {(calls, 0): (3, 5)}
    assert trimmer.trim(backlog.committed("f")) == 0
    assert backlog.look({"f": function()}) == {"f": 2}


def test_deploy_backlog_without_commits_counts_from_the_start_of_the_log(
    admin: Admin, producer: RecordProducer, topic_of: Callable[[str], Topics]
) -> None:
    """A group whose offsets have expired has as many unfinished calls as are left in the log."""
    topics = topic_of("f")
    calls = topics.invocations("f")
    append(producer, calls, 5, 0)
    admin.delete_records({(calls, 0): 3})
    assert Backlog(admin, topics).look({"f": function()}) == {"f": 2}

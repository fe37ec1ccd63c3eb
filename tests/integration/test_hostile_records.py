"""Data is not code: a hostile pickle in every field of every record, read by an instance and by a caller."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pelton.client.connection import Connection
from pelton.core.call import InputHeaders, Invocation
from pelton.core.spec import FunctionKind
from pelton.errors import PeltonError
from pelton.protocol import payload
from pelton.protocol.codec import encode_invocation
from pelton.protocol.headers import encode_input
from pelton.protocol.topics import Control
from pelton.transport.kafka.calls import KafkaTransport
from support.embedded_broker import Broker
from support.golden_cases import cases
from support.worker_instance import Platform, new_call, platform_on, wait_until

pytestmark = pytest.mark.integration

SOURCE = """
def echo(value):
    return value
"""


@pytest.fixture
def platform(broker: Broker, tmp_path: Path) -> Iterator[Platform]:
    """A namespace of its own."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        yield platform


def hostile(folder: Path) -> bytes:
    """A pickle that makes this folder when it is loaded; ASCII, so that it fits into texts as well."""
    found = f"cos\nmkdir\n(S'{folder}'\ntR.".encode()
    pickle.loads(found)
    assert folder.is_dir()
    folder.rmdir()
    return found


def poisoned(value: Any, poison: bytes) -> Iterator[Any]:
    """The value with each text and each string of bytes in it replaced, one after the other."""
    if isinstance(value, bytes):
        yield poison
    elif type(value) is str:
        yield poison.decode()
    elif isinstance(value, tuple) and not hasattr(value, "_fields"):
        for number, entry in enumerate(value):
            for bad in poisoned(entry, poison):
                yield (*value[:number], bad, *value[number + 1 :])
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            for bad in poisoned(getattr(value, field.name), poison):
                yield replace(value, **{field.name: bad})


def poisoned_bodies(poison: bytes) -> list[bytes]:
    """Every kind of record with the poison in every field that takes it, and the poison alone."""
    found = [poison, payload.encode(poison), payload.encode({poison.decode(): [poison]})]
    found += [bytes([0xC7, len(poison), kind]) + poison for kind in range(128)]  # MessagePack extensions
    for case in cases().values():
        for bad in poisoned(case.value, poison):
            try:
                body = case.encode(bad)
            except (PeltonError, ValueError, TypeError, AttributeError):
                continue  # our own writer refuses it
            if isinstance(body, bytes):
                found.append(body)
    assert len(found) > 200
    return found


def test_hostile_pickles_in_every_field_run_nothing(platform: Platform, tmp_path: Path) -> None:
    """Calls go on beside them, what cannot be read is a dead letter, and nothing was run."""
    touched = tmp_path / "touched"
    poison = hostile(touched)
    platform.deploy(SOURCE, {"echo": FunctionKind.SYNC}, partitions=2)
    topics = platform.topics
    bodies = poisoned_bodies(poison)
    inputs = [topics.invocations("echo"), topics.retries("echo")]
    others = [topics.results("echo"), topics.dead_letters("echo"), *map(topics.control, Control)]
    asked = []
    for topic in inputs:
        for body in bodies:
            call_id, _ = new_call()
            asked.append(call_id)
            platform.send(topic, body, call_id, headers=encode_input(InputHeaders(call_id, "echo")))
        for arguments in (poison, payload.encode(poison)):
            call_id, _ = new_call()
            body = encode_invocation(Invocation(call_id, "echo", arguments))
            platform.send(topic, body, call_id, headers=encode_input(InputHeaders(call_id, "echo")))
        names = [name for name, _ in encode_input(InputHeaders(new_call()[0], "echo"))]
        platform.send(topic, poison, poison, headers=[(name, poison) for name in names])
    for topic in others:
        for body in bodies:
            platform.send(topic, body, poison)
    platform.start_ready()
    with Connection(KafkaTransport(platform.config)) as connection:
        connection.directory.functions()
        given = {"text": poison.decode(), "bytes": poison}
        assert platform.wait("echo", platform.call("echo", given)).value == given
        wait_until(lambda: platform.all_done("echo"), 60)
        for call_id in asked[::100]:
            connection.transport.attach("echo", call_id, lambda results: None, 20)
    # Those that were sent here, and one for each that an instance could not read.
    assert len(platform.read(topics.dead_letters("echo"))) >= len(bodies) + 2 * len(bodies)
    assert not touched.exists()

"""The transports that the contract suite holds to one contract."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from support.embedded_broker import Broker, running_broker
from support.transport_callers import Caller
from support.transport_platforms import (
    ChannelPlatform,
    KafkaPlatform,
    MemoryPlatform,
    Platform,
    function_spec,
)


@pytest.fixture(scope="session")
def contract_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The broker of the Kafka side."""
    with running_broker(tmp_path_factory.mktemp("kafka")) as running:
        yield running


@pytest.fixture(scope="session")
def memory_platform() -> Iterator[Platform]:
    """One platform in memory for the session."""
    made = MemoryPlatform()
    yield made
    made.close()


@pytest.fixture(scope="session")
def channel_platform() -> Iterator[Platform]:
    """One platform behind frame channels for the session."""
    made = ChannelPlatform()
    yield made
    made.close()


@pytest.fixture(scope="session")
def kafka_platform(contract_broker: Broker) -> Iterator[KafkaPlatform]:
    """One platform on Kafka for the session."""
    made = KafkaPlatform(contract_broker, "contract")
    yield made
    made.close()


@pytest.fixture(params=["memory", "channel", pytest.param("kafka", marks=pytest.mark.integration)])
def platform(request: pytest.FixtureRequest) -> Platform:
    """Each platform in turn."""
    made: Platform = request.getfixturevalue(f"{request.param}_platform")
    return made


_numbers = itertools.count()


@pytest.fixture
def function() -> str:
    """A function name of the test's own."""
    return f"f{next(_numbers)}"


@pytest.fixture
def caller(platform: Platform, function: str) -> Iterator[Caller]:
    """A client of a fresh function."""
    spec = function_spec(function)
    platform.deploy(spec)
    made = Caller(platform.transport(), spec)
    yield made
    made.transport.close(1)

"""The brokers that integration tests run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.embedded_broker import Broker, running_broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for the whole session; use names of your own, and bring it back if you kill or freeze it."""
    with running_broker(tmp_path_factory.mktemp("kafka")) as running:
        yield running


@pytest.fixture
def new_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Start brokers of the test's own, with settings of its own: `new_broker(config={...})`."""
    with ExitStack() as stack:
        count = 0

        def start(config: Mapping[str, str] | None = None) -> Broker:
            nonlocal count
            count += 1
            return stack.enter_context(running_broker(tmp_path / f"kafka-{count}", config))

        yield start

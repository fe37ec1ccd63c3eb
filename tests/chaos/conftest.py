"""The brokers of runs under fault: of their own, since they may be killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.embedded_broker import Broker, running_broker


@pytest.fixture
def chaos_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker for one test."""
    with running_broker(tmp_path / "kafka") as running:
        yield running


@pytest.fixture
def new_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Starts brokers with settings of the test's own: `new_broker({...})`."""
    with ExitStack() as stack:

        def start(config: Mapping[str, str]) -> Broker:
            return stack.enter_context(running_broker(tmp_path / "kafka", config))

        yield start

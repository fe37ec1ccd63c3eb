"""The broker of a run under fault: one of its own, which may be killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.embedded_broker import Broker, running_broker


@pytest.fixture
def chaos_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker for one test."""
    with running_broker(tmp_path / "kafka") as running:
        yield running

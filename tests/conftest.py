"""What every test run shares: markers by folder, no network in unit tests, Hypothesis profiles."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
MARKER_OF_FOLDER = {"integration": "integration", "chaos": "chaos"}
PURE_FOLDERS = {"unit", "property"}

# No deadlines: a busy machine is not a bug. CI repeats the same examples in every run.
settings.register_profile("laptop", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "laptop")


def folder_of(path: Path) -> str:
    """The folder of `tests/` that a test file is in."""
    return path.relative_to(HERE).parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each test the marker of its folder."""
    for item in items:
        marker = MARKER_OF_FOLDER.get(folder_of(item.path))
        if marker:
            item.add_marker(marker)


@pytest.fixture(autouse=True)
def _no_network_in_pure_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit and property tests that connect anywhere fail with the address; socket pairs stay allowed."""
    if folder_of(request.path) not in PURE_FOLDERS:
        return
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise AssertionError(f"a test in tests/{folder_of(request.path)} connects to {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)

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
SPREAD_FOLDERS = {"integration", "chaos"}
"""Tests of these folders go to parallel workers one by one; of the others a whole file goes to one worker."""

# No deadlines: a busy machine is not a bug. CI repeats the same examples in every run.
settings.register_profile("laptop", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "laptop")


def folder_of(path: Path) -> str:
    """The folder of `tests/` that a test file is in."""
    return path.relative_to(HERE).parts[0]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each test the marker of its folder, and keeps files together that share a running platform."""
    for item in items:
        folder = folder_of(item.path)
        marker = MARKER_OF_FOLDER.get(folder)
        if marker:
            item.add_marker(marker)
        if folder not in SPREAD_FOLDERS:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


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

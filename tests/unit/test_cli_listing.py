"""`pelton ps` between two instances: the reason of the end is told also while none is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from pelton.transport.kafka import probe
from pelton_platform.cli import listing
from pelton_platform.cli.main import app
from pelton_platform.deploy.home import Home, write_json

REASON = "it ended with exit code 1: no database (3 times in a row; a new start every 2 s)"


@pytest.fixture
def gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container whose instance has just ended, of which only the deployer knows why."""

    @contextmanager
    def registry() -> Iterator[Any]:
        found = SimpleNamespace(snapshot=lambda: ({}, {"broken": SimpleNamespace(version=3)}, {}))
        yield SimpleNamespace(home=tmp_path), found

    Home(tmp_path).deployer_file.parent.mkdir(parents=True)
    write_json(Home(tmp_path).deployer_file, {"containers": {"broken": {"notes": [], "reason": REASON}}})
    monkeypatch.setattr(listing, "open_registry", registry)
    monkeypatch.setattr(probe, "broker_now_ms", lambda config: 0)


@pytest.mark.usefixtures("gone")
def test_ps_says_why_while_no_instance_is_there() -> None:
    """As JSON and as a table."""
    [row] = json.loads(CliRunner().invoke(app, ["ps", "--json"]).stdout)
    assert (row["state"], row["reason"]) == ("no instance", REASON)
    table = CliRunner().invoke(app, ["ps"], env={"COLUMNS": "300"}).stdout
    assert REASON in table

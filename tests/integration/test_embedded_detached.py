"""What `pelton kafka up|down|status` promise: one broker that outlives the command and is found again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pelton.transport.kafka.readiness import cluster_ready
from pelton_platform import process
from pelton_platform.embedded import EmbeddedKafkaError
from pelton_platform.embedded.detached import down, status, up
from support.embedded_broker import Broker

Command = Callable[..., "subprocess.CompletedProcess[str]"]
PROGRAM = "from pelton_platform.cli.kafka import app; app(prog_name='pelton kafka')"


@pytest.fixture
def home(tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of the test's own, whose broker is stopped with the test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("PELTON_HOME", str(folder))
    yield folder
    down(folder)


def kafka(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `pelton kafka` as a person would."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def answer(*arguments: str) -> dict[str, Any]:
    """Run `pelton kafka ... --json` and read its answer."""
    done = kafka(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_embedded_detached_broker_outlives_its_command(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` leaves a broker that every command finds; `down` ends it, and its records stay."""
    monkeypatch.setenv("PELTON_JAVA_FLAGS", "-Xmx300m")
    nothing = kafka("status")
    assert (nothing.returncode, "start it with: pelton kafka up" in nothing.stdout) == (1, True)
    first = answer("up")
    assert cluster_ready(first["bootstrap_servers"], 10.0)
    assert up(home) == status(home)
    assert status(home).to_json() == first
    assert first["bootstrap_servers"] == f"127.0.0.1:{first['port']}"
    assert Path(first["data_dir"]).is_relative_to(home)
    assert "Kafka Server started" in Path(first["log"]).read_text()
    assert first["bootstrap_servers"] in kafka("status").stdout
    assert "-Xmx300m" in psutil.Process(first["pid"]).cmdline()
    identity = process.identify(first["pid"])
    assert identity is not None
    ended = answer("down")
    assert (ended["running"], ended["pid"], ended["port"]) == (False, None, first["port"])
    assert not process.is_alive(identity)
    assert (Path(first["data_dir"]) / "records" / "meta.properties").exists()
    assert down(home) == status(home)
    assert up(home).port == first["port"], "clients that kept the address go on with it"


def test_embedded_detached_broker_with_temporary_records(home: Path) -> None:
    """Temporary records go with `down`; a running broker is not replaced by one of another kind or port."""
    running = up(home, temporary=True)
    assert running.data_dir is not None
    assert running.temporary
    for other in ({}, {"temporary": True, "port": 1}, {"data_dir": home}):
        with pytest.raises(EmbeddedKafkaError, match=r"runs already at .* pelton kafka down"):
            up(home, **other)
    refused = kafka("up", "--port", "1")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: a broker runs already")
    assert status(home) == running
    ended = down(home)
    assert (ended.running, ended.data_dir, ended.log) == (False, None, None)
    assert not running.data_dir.exists()


def test_embedded_detached_state_names_a_process_not_a_pid(home: Path) -> None:
    """A state file whose pid now belongs to another process means: not running; nobody is killed."""
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        folder = home / "standalone-kafka"
        folder.mkdir(parents=True)
        state = {
            "process": {"pid": stranger.pid, "birth": "of another"},
            "port": 1234,
            "data_dir": str(folder / "data"),
            "log": str(folder / "data" / "kafka.log"),
            "temporary": False,
        }
        (folder / "broker.json").write_text(json.dumps(state))
        assert status(home).running is False
        assert down(home).running is False
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_embedded_detached_damaged_state_is_a_clear_error(home: Path) -> None:
    """A state file that cannot be read is named, with what to do about it."""
    path = home / "standalone-kafka" / "broker.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(EmbeddedKafkaError, match=r"broker\.json cannot be read .* delete the file"):
        status(home)
    done = kafka("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert str(path) in done.stderr
    path.unlink()


def test_embedded_detached_kept_and_temporary_exclude_each_other(home: Path) -> None:
    """A folder to keep and records to delete cannot be asked for at once."""
    with pytest.raises(EmbeddedKafkaError, match="choose one of the two"):
        up(home, data_dir=home / "data", temporary=True)

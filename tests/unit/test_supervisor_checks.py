"""Each check of `pelton doctor`: what it says when all is well, and when it is not."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from pelton.errors import SignatureError, TransportError
from pelton.protocol.signing import Keyring
from pelton_platform import process
from pelton_platform.cgroups import Cgroups
from pelton_platform.deploy.home import HOME_VARIABLE, Home
from pelton_platform.deploy.resources import Machine
from pelton_platform.embedded import EmbeddedKafkaError
from pelton_platform.settings import PeltonSettings
from pelton_platform.supervisor import checks
from pelton_platform.supervisor.checks import Finding, Surroundings
from pelton_platform.supervisor.state import PlatformState


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    """A home folder that is sound, and no platform that runs."""
    monkeypatch.chdir(tmp_path)
    settings = PeltonSettings(home=tmp_path / "home", port=process.free_port())
    home = Home(settings.home)
    home.prepare()
    return Surroundings(settings, home, None)


def only(found: Iterator[Finding]) -> Finding:
    """The one finding of a check."""
    (finding,) = found
    return finding


def platform_state(around: Surroundings, broker_pid: int = 0, deployer_pid: int = 0) -> PlatformState:
    """The state of a platform whose supervisor is this process."""
    me, home = process.own_identity(), str(around.home.root)
    return PlatformState(me, "ready", home, "pelton", "127.0.0.1:1", 1, broker_pid, deployer_pid)


def test_supervisor_check_python(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old Python fails and says which one to install."""
    assert only(checks.check_python(around)).state == "ok"
    monkeypatch.setattr(checks, "OLDEST_PYTHON", (99, 1))
    finding = only(checks.check_python(around))
    assert (finding.state, finding.text.endswith("install Python 99.1 or newer")) == ("failed", True)


def test_supervisor_check_java(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Java that does not run fails with what to install; a missing one fails the check in the run."""
    installation = SimpleNamespace(java=Path("/opt/java"), jars=(), folder=Path("/opt"))
    monkeypatch.setattr(checks, "locate", lambda: installation)
    monkeypatch.setattr(checks, "verify", lambda _: [])
    assert only(checks.check_java(around)).state == "ok"
    monkeypatch.setattr(checks, "verify", lambda _: ["/opt/java does not run (x); install pelton[embedded]"])
    finding = only(checks.check_java(around))
    assert (finding.state, "install pelton[embedded]" in finding.text) == ("failed", True)

    def missing() -> None:
        raise EmbeddedKafkaError("Java is not installed; install pelton[embedded]")

    monkeypatch.setattr(checks, "locate", missing)
    monkeypatch.setattr(checks, "CHECKS", {"java": checks.check_java})
    found = checks.run_checks(around.settings)
    assert found == [Finding("java", "failed", "Java is not installed; install pelton[embedded]")]


def test_supervisor_check_jars(around: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Jars that are not what was pinned fail by name; jars that were never fetched are a warning."""
    jar = tmp_path / "kafka.jar"
    installation = SimpleNamespace(java=Path("/opt/java"), jars=(jar,), folder=tmp_path)
    monkeypatch.setattr(checks, "locate", lambda: installation)
    assert only(checks.check_jars(around)).state == "warning"
    jar.write_text("")
    monkeypatch.setattr(checks, "verify", lambda _: [])
    assert only(checks.check_jars(around)).state == "ok"
    monkeypatch.setattr(checks, "verify", lambda _: [f"{jar} does not have its SHA-256 sum", "b is missing"])
    finding = only(checks.check_jars(around))
    assert (finding.state, finding.text) == ("failed", f"{jar} does not have its SHA-256 sum (1 more)")


def test_supervisor_checks_of_the_embedded_broker_are_skipped_without_one(tmp_path: Path) -> None:
    """With an existing Kafka neither Java, jars nor port matter."""
    settings = PeltonSettings(home=tmp_path / "home", bootstrap_servers="127.0.0.1:1")
    around = Surroundings(settings, Home(settings.home), None)
    for check in (checks.check_java, checks.check_jars, checks.check_port):
        assert only(check(around)).state == "skipped"


def test_supervisor_check_home(around: Surroundings) -> None:
    """Secrets that others can read fail with the command that mends it; a public key file fails too."""
    assert only(checks.check_home(around)).state == "ok"
    around.home.secrets_file.write_text("{}")
    around.home.secrets_file.chmod(0o644)
    finding = only(checks.check_home(around))
    assert finding.state == "failed"
    assert f"chmod 600 {around.home.secrets_file}" in finding.text
    around.home.secrets_file.chmod(0o600)
    assert only(checks.check_home(around)).state == "ok"
    key = around.home.key_file("pelton")
    Keyring.create(key, "pelton")
    key.chmod(0o644)
    with pytest.raises(SignatureError, match="chmod 600"):
        list(checks.check_home(around))


def test_supervisor_check_disk(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little room is a warning, too little for the broker a failure with the way out."""
    usage = SimpleNamespace(free=10 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert only(checks.check_disk(around)).state == "ok"
    usage.free = 1 << 30
    assert only(checks.check_disk(around)).state == "warning"
    usage.free = 100 << 20
    finding = only(checks.check_disk(around))
    assert (finding.state, "make room, or set PELTON_HOME" in finding.text) == ("failed", True)


def test_supervisor_check_payloads(around: Surroundings) -> None:
    """A folder that takes a file; one that cannot be made is told with the settings that name it."""
    (found,) = checks.check_payloads(around)
    assert (found.state, "takes payloads above 512 KiB" in found.text) == ("ok", True)
    assert list(around.home.payloads.iterdir()) == []
    file = around.home.root / "file"
    file.touch()
    settings = msgspec.structs.replace(around.settings, store=(file / "store").as_uri())
    (found,) = checks.check_payloads(replace(around, settings=settings))
    assert (found.state, "see PELTON_STORE" in found.text) == ("failed", True)


def test_supervisor_check_port(around: Surroundings) -> None:
    """A port that somebody else has fails and names that program."""
    assert only(checks.check_port(around)).state == "ok"
    assert around.settings.port is not None
    with socket.create_server(("127.0.0.1", around.settings.port)):
        finding = only(checks.check_port(around))
    assert finding.state == "failed"
    assert "in use by" in finding.text
    assert finding.text.endswith("stop that program, or set PELTON_PORT")


def test_supervisor_check_orphans(around: Surroundings) -> None:
    """A process of this home without a supervisor fails; with --fix it is ended."""
    assert only(checks.check_orphans(around)).state == "ok"
    child = subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={HOME_VARIABLE: str(around.home.root)},
        start_new_session=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline()
        finding = only(checks.check_orphans(around))
        assert (finding.state, f"pid {child.pid}" in finding.text) == ("failed", True)
        fixing = Surroundings(around.settings, around.home, None, fix=True)
        assert only(checks.check_orphans(fixing)).state == "ok"
        assert child.wait(10) != 0


def test_supervisor_check_platform(around: Surroundings) -> None:
    """No platform is a warning; one whose parts are gone fails and names them."""
    assert only(checks.check_platform(around)).state == "warning"
    me = process.own_identity().pid
    running = Surroundings(
        around.settings, around.home, platform_state(around, broker_pid=me, deployer_pid=me)
    )
    assert only(checks.check_platform(running)).state == "ok"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    broken = Surroundings(
        around.settings, around.home, platform_state(around, broker_pid=me, deployer_pid=gone.pid)
    )
    finding = only(checks.check_platform(broken))
    assert (finding.state, "its deployer does not" in finding.text) == ("failed", True)


def test_supervisor_check_broker(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not acknowledge fails with its words, and nothing is said of clocks."""
    assert [one.state for one in checks.check_broker(around)] == ["skipped", "skipped"]
    running = Surroundings(around.settings, around.home, platform_state(around))
    monkeypatch.setattr(checks, "probe", lambda *_: "no answer within 10 s")
    broker, clock = checks.check_broker(running)
    assert (broker.state, clock.state) == ("failed", "skipped")
    assert "127.0.0.1:1 does not acknowledge a record: no answer within 10 s" in broker.text
    monkeypatch.setattr(checks, "probe", lambda *_: "")
    assert [one.state for one in checks.check_broker(running)] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("offset_ms", "state"),
    [(0.4, "ok"), (-999.0, "ok"), (1_500.0, "warning"), (-29_000.0, "warning"), (31_000.0, "failed")],
)
def test_supervisor_check_clock(offset_ms: float, state: str) -> None:
    """Small differences are fine, seconds a warning, half a minute a failure with the way out."""
    finding = checks.judge_skew(offset_ms)
    assert finding.state == state
    assert ("ahead of" if offset_ms > 0 else "behind") in finding.text
    assert ("NTP" in finding.text) == (state == "failed")


def test_supervisor_check_that_breaks_is_a_failed_one(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error inside of a check does not hide the others."""

    def broken(around: Surroundings) -> Iterator[Finding]:
        if around.state is None:
            raise TransportError("Kafka is away")
        yield Finding("broken", "ok", "")

    monkeypatch.setattr(checks, "CHECKS", {"broken": broken, "python": checks.check_python})
    assert [(one.check, one.state) for one in checks.run_checks(around.settings)] == [
        ("broken", "failed"),
        ("python", "ok"),
    ]


def test_supervisor_check_resources_names_the_way_in_use(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control groups where there are some, else looking, with what the machine has to give."""
    monkeypatch.setattr(checks, "available", lambda: Cgroups(2, around.home.root, around.home.root))
    monkeypatch.setattr(checks, "this_machine", lambda: Machine(4, 8 * 2**30, 1))
    assert only(checks.check_resources(around)) == Finding(
        "resources",
        "ok",
        "4 cores, 8.0 GiB, 1 GPUs; memory= is held by control groups v2; cpu= by control groups v2",
    )
    monkeypatch.setattr(checks, "available", Cgroups)
    found = only(checks.check_resources(around))
    assert found.state == "warning"
    assert "memory= is held by resident memory, looked at every 100 ms; cpu= by the cores" in found.text

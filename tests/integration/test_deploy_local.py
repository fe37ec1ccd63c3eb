"""The local deployer's port with real processes and without Kafka: plain programs, kept as they should be."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pelton.core.spec import ContainerSpec, InstanceStatus
from pelton.protocol.signing import Keyring, new_key
from pelton.transport.config import ConnectionConfig
from pelton_platform import process
from pelton_platform.deploy import bundles
from pelton_platform.deploy.home import HOME_VARIABLE, Home
from pelton_platform.deploy.instances import Surroundings
from pelton_platform.deploy.local import LocalDeployer
from pelton_platform.deploy.port import ContainerState, DeployerPort
from pelton_platform.deploy.sources import Source
from support.local_platform import wait_for

KEYRING = Keyring([new_key()], "test")
STAYS = "import time\nprint('up', flush=True)\nwhile True: time.sleep(0.05)\n"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + STAYS


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home folder, whose processes are ended with the test."""
    home = Home(tmp_path / "home")
    home.prepare()
    yield home
    for left in process.processes_with_environment(HOME_VARIABLE, str(home.root)):
        process.terminate(left, 0.0, group=True)


@pytest.fixture
def new_deployer(home: Home) -> Callable[..., LocalDeployer]:
    """Makes deployers of that home, as after a restart."""

    def make(drain_s: float = 5.0, on_end: Callable[[str, str], None] | None = None) -> LocalDeployer:
        # Nobody listens there: programs run all the same.
        config = ConnectionConfig(f"127.0.0.1:{process.free_port()}", "test", key_file=home.key_file("test"))
        surroundings = Surroundings(home, config, {"FROM_SETTINGS": "yes"}, drain_s, "ERROR")
        return LocalDeployer(surroundings, KEYRING, on_end=on_end)

    return make


def container(home: Home, tmp_path: Path, source: str, version: int = 1) -> ContainerSpec:
    """The spec of a program, its bundle stored."""
    folder = tmp_path / f"source-{version}"
    folder.mkdir()
    (folder / "main.py").write_text(source)
    digest = bundles.store(Source("worker.py", folder), home.bundles, KEYRING).digest
    return ContainerSpec("job", version, (), digest, entrypoint=("python", "main.py"))


def turn_until(
    deployer: LocalDeployer, condition: Callable[[ContainerState | None], object], what: str
) -> None:
    """Let the deployer work until its one container is as it should be."""

    def look() -> object:
        deployer.turn()
        states = [state for state in deployer.observe() if state.container == "job"]
        return condition(states[0] if states else None)

    wait_for(look, what, 60, lambda: str(deployer.observe()))


def printed(deployer: LocalDeployer, text: str) -> bool:
    """Whether an instance has printed a line."""
    return any(text in line for line in deployer.logs("job", 20))


def pids(deployer: LocalDeployer) -> list[int]:
    """Pids of the instances."""
    return [one.pid for state in deployer.observe() for one in state.instances]


def test_deploy_port_is_idempotent(
    home: Home, tmp_path: Path, new_deployer: Callable[..., LocalDeployer]
) -> None:
    """Applying, scaling and removing again changes nothing; every process ends with its container."""
    deployer = new_deployer()
    port: DeployerPort = deployer
    spec = container(home, tmp_path, STAYS)
    port.apply(spec)
    turn_until(deployer, lambda state: state is not None and len(state.instances) == 1, "the instance")
    wait_for(lambda: printed(deployer, "up"), "its output")
    first = pids(deployer)
    port.apply(spec)
    port.scale("job", 1)
    port.scale("unknown", 5)
    assert deployer.turn() is False
    assert pids(deployer) == first
    port.scale("job", 2)
    turn_until(deployer, lambda state: state is not None and len(state.instances) == 2, "two instances")
    port.remove("job")
    port.remove("job")
    turn_until(deployer, lambda state: state is None, "the end of both")
    assert process.processes_with_environment(HOME_VARIABLE, str(home.root)) == ()
    assert list(home.instances.iterdir()) == []


def test_deploy_port_crash_is_told_with_its_last_words(
    home: Home, tmp_path: Path, new_deployer: Callable[..., LocalDeployer]
) -> None:
    """A program that ends is started again, and the state says how it ended and how often."""
    ends: list[tuple[str, str]] = []
    deployer = new_deployer(on_end=lambda name, instance: ends.append((name, instance)))
    deployer.apply(container(home, tmp_path, "raise SystemExit('no money left')"))
    turn_until(deployer, lambda state: state is not None and "(2 times" in state.reason, "two crashes")
    (state,) = deployer.observe()
    assert state.reason.startswith("it ended with exit code 1: no money left (2 times in a row")
    assert not state.refused
    assert len(set(ends)) >= 2
    deployer.remove("job")


def test_deploy_port_kills_what_ignores_its_drain_time(
    home: Home, tmp_path: Path, new_deployer: Callable[..., LocalDeployer]
) -> None:
    """A program that ignores SIGTERM is killed when its time is over, children and all."""
    deployer = new_deployer(drain_s=0.3)
    spawn = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', " + repr(STUBBORN) + "])\n"
    deployer.apply(container(home, tmp_path, spawn + STUBBORN))
    turn_until(deployer, lambda _: printed(deployer, "up"), "the program")
    deployer.stop_all()
    assert pids(deployer) == []
    assert process.processes_with_environment(HOME_VARIABLE, str(home.root)) == ()


def test_deploy_port_next_deployer_takes_instances_over(
    home: Home, tmp_path: Path, new_deployer: Callable[..., LocalDeployer]
) -> None:
    """Instances outlive their deployer; the next one knows them, keeps them, and notices their end."""
    spec = container(home, tmp_path, STAYS)
    first = new_deployer()
    first.apply(spec)
    turn_until(first, lambda _: printed(first, "up"), "the program")
    (pid,) = pids(first)
    (home.instances / "half-written").mkdir()
    (home.instances / "half-written" / "state.json").write_text("{")
    second = new_deployer()
    second.apply(spec)
    second.turn()
    assert pids(second) == [pid]
    assert not (home.instances / "half-written").exists()
    identity = process.identify(pid)
    assert identity is not None
    process.send_signal(identity, signal.SIGKILL)
    turn_until(second, lambda _: pids(second) not in ([], [pid]), "another instance")
    second.stop_all()


def test_deploy_port_tampered_bundle_keeps_what_runs(
    home: Home, tmp_path: Path, new_deployer: Callable[..., LocalDeployer]
) -> None:
    """A version whose bundle does not verify is refused, and the one before goes on running."""
    deployer = new_deployer()
    deployer.apply(container(home, tmp_path, STAYS))
    turn_until(deployer, lambda state: state is not None and len(state.instances) == 1, "the instance")
    before = pids(deployer)
    evil = container(home, tmp_path, STAYS + "# evil\n", version=2)
    path = home.bundles / evil.bundle / "main.py"
    path.chmod(0o644)
    path.write_text("print('evil')")
    deployer.apply(evil)
    deployer.turn()
    (state,) = deployer.observe()
    assert state.refused
    assert "main.py is not what was signed" in state.reason
    assert pids(deployer) == before
    deployer.stop_all()


def test_deploy_port_replaces_only_when_the_new_version_is_ready(
    home: Home, tmp_path: Path, new_deployer: Callable[..., LocalDeployer]
) -> None:
    """The old version ends after the new one has said that it is ready, not before."""
    deployer = new_deployer()
    deployer.apply(container(home, tmp_path, STAYS))
    turn_until(deployer, lambda state: state is not None and len(state.instances) == 1, "the instance")
    deployer.apply(container(home, tmp_path, STAYS + "# new\n", version=2))
    turn_until(deployer, lambda state: state is not None and len(state.instances) == 2, "both")
    deployer.turn()
    (state,) = deployer.observe()
    assert [(one.version, one.state) for one in state.instances] == [(1, "starting"), (2, "starting")]
    new = state.instances[1]
    deployer.heard(InstanceStatus("job", new.instance, "ready", "here", new.pid, 2))
    turn_until(
        deployer,
        lambda state: state is not None and [one.pid for one in state.instances] == [new.pid],
        "the end of the old one",
    )
    deployer.stop_all()


def test_deploy_port_program_sees_its_environment_and_nothing_else(
    home: Home, tmp_path: Path, new_deployer: Callable[..., LocalDeployer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program gets settings, platform and machine variables, and none of the platform's own environment."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "private")
    source = "import os\nprint('env', sorted(os.environ), os.environ['FROM_SETTINGS'], flush=True)\n" + STAYS
    deployer = new_deployer()
    deployer.apply(container(home, tmp_path, source))
    turn_until(deployer, lambda _: printed(deployer, "env"), "the program")
    line = next(line for line in deployer.logs("job", 20) if line.startswith("env"))
    assert line.endswith(" yes")
    for name in ("PATH", "HOME", "PELTON_HOME", "PELTON_BOOTSTRAP_SERVERS", "PELTON_INSTANCE"):
        assert f"'{name}'" in line
    assert "AWS" not in line
    deployer.stop_all()

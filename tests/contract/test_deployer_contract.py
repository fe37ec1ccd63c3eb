"""The contract of the deployer's port: every implementation is held to it, with real processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pelton.core.spec import ProbeSpec
from pelton_platform import process
from pelton_platform.deploy.home import Home
from support.deployers import NAME, STAYS, STUBBORN, DeployerRig, orphans, processes_of, program

pytestmark = pytest.mark.integration

IMPLEMENTATIONS: dict[str, Callable[[Home], DeployerRig]] = {"local": DeployerRig}


@pytest.fixture(params=IMPLEMENTATIONS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeployerRig]:
    """Each implementation, whose processes are ended with the test."""
    home = Home(tmp_path / "home")
    home.prepare()
    yield IMPLEMENTATIONS[request.param](home)
    for left in processes_of(home):
        process.terminate(left, 0.0, group=True)


def kill(pid: int) -> None:
    """End a process from outside."""
    identity = process.identify(pid)
    assert identity is not None
    process.send_signal(identity, signal.SIGKILL)


def test_port_says_the_same_again_and_nothing_changes(rig: DeployerRig) -> None:
    """Applying, scaling and removing again changes nothing; every process ends with its container."""
    spec = program(rig.home, STAYS)
    rig.port.apply(spec)
    rig.until_instances(1)
    rig.until(lambda _: rig.printed("up"), "its output")
    first = rig.pids()
    rig.port.apply(spec)
    rig.port.scale(NAME, 1)
    rig.port.scale("unknown", 5)
    assert rig.turn() is False
    assert rig.pids() == first
    rig.port.scale(NAME, 2)
    rig.until_instances(2)
    rig.port.remove(NAME)
    rig.port.remove(NAME)
    rig.until(lambda state: state is None, "the end of both")
    assert processes_of(rig.home) == ()


def test_port_tells_how_a_container_is(rig: DeployerRig) -> None:
    """From starting over ready to stopped, in a word."""
    rig.port.apply(program(rig.home, STAYS))
    seen = []

    def note() -> str:
        state = rig.state()
        assert state is not None
        seen.append(state.status)
        return state.status

    note()
    rig.until_instances(1)
    note()
    rig.say_ready()
    note()
    rig.port.scale(NAME, 0)
    rig.turn()
    note()
    rig.until_instances(0)
    note()
    assert seen == ["starting", "starting", "running", "stopping", "stopped"]


def test_port_keeps_the_number_of_instances(rig: DeployerRig) -> None:
    """One that dies is replaced; others are not touched."""
    rig.port.apply(program(rig.home, STAYS, min_instances=2, max_instances=2))
    rig.until_instances(2)
    first, second = rig.pids()
    kill(first)
    rig.until(lambda _: len(rig.pids()) == 2 and first not in rig.pids(), "another one")
    assert second in rig.pids()
    rig.stop()


def test_port_replaces_only_when_the_new_version_is_ready(rig: DeployerRig) -> None:
    """The old version ends after the new one has said that it is ready, not before."""
    rig.port.apply(program(rig.home, STAYS))
    rig.until_instances(1)
    rig.say_ready()
    rig.port.apply(program(rig.home, STAYS + "# new\n", version=2))
    rig.until_instances(2)
    rig.turn()
    state = rig.state()
    assert state is not None
    assert [(one.version, one.state) for one in state.instances] == [(1, "ready"), (2, "starting")]
    rig.say_ready()
    rig.until(
        lambda state: state is not None and [one.version for one in state.instances] == [2],
        "the end of the old one",
    )
    rig.stop()


def test_port_counts_crashes_and_says_why(rig: DeployerRig) -> None:
    """A program that ends again and again is in a crash loop, with its last words and ever longer pauses."""
    rig.port.apply(program(rig.home, "raise SystemExit('no money left')"))
    rig.until(lambda state: state is not None and "(2 times" in state.reason, "two crashes")
    state = rig.state()
    assert state is not None
    assert state.status == "crash-loop"
    assert state.reason.startswith("it ended with exit code 1: no money left (2 times in a row")
    assert not state.refused
    rig.until_instances(1)
    rig.say_ready()
    state = rig.state()
    assert state is not None
    assert state.status == "crash-loop", "that it has started again is no health"
    rig.port.apply(program(rig.home, STAYS, version=2))
    rig.until_instances(1)
    rig.say_ready()
    state = rig.state()
    assert state is not None
    assert (state.status, state.reason) == ("running", "")
    rig.stop()


def test_port_gives_the_log_of_what_runs(rig: DeployerRig) -> None:
    """The last lines, also of instances that have ended."""
    rig.port.apply(program(rig.home, "print('one')\nprint('two')\nraise SystemExit(3)"))
    rig.until(lambda state: state is not None and bool(state.reason), "its end")
    assert list(rig.port.logs(NAME, 2))[:2] == ["one", "two"]
    rig.stop()


def test_port_kills_what_ignores_its_drain_time(rig: DeployerRig) -> None:
    """A program that ignores SIGTERM is killed when its time is over, children and all."""
    spawn = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', " + repr(STUBBORN) + "])\n"
    rig.port.apply(program(rig.home, spawn + STUBBORN))
    rig.until(lambda _: rig.printed("up"), "the program")
    rig.stop(at_once=False)
    assert rig.pids() == []
    assert processes_of(rig.home) == ()


def test_port_takes_over_what_a_deployer_before_it_started(rig: DeployerRig) -> None:
    """Instances outlive their deployer; the next one knows them, keeps them, and notices their end."""
    spec = program(rig.home, STAYS)
    rig.port.apply(spec)
    rig.until_instances(1)
    (pid,) = rig.pids()
    rig.restart()
    rig.port.apply(spec)
    rig.turn()
    assert rig.pids() == [pid]
    kill(pid)
    rig.until(lambda _: rig.pids() not in ([], [pid]), "another instance")
    rig.stop()


def test_port_gives_each_instance_a_port(rig: DeployerRig) -> None:
    """The first gets the port that was asked for, the next one another; each finds its own in PORT."""
    wanted = process.free_port()
    rig.port.apply(
        program(
            rig.home,
            "import os\nprint('port', os.environ['PORT'], flush=True)\n" + STAYS,
            port=wanted,
            min_instances=2,
            max_instances=2,
        )
    )
    rig.until_instances(2)
    state = rig.state()
    assert state is not None
    ports = [one.port for one in state.instances]
    assert wanted in ports
    assert len(set(ports)) == 2
    for port in ports:
        rig.until(lambda _, port=port: rig.printed(f"port {port}"), f"the one at {port}")  # type: ignore[misc]
    rig.restart()
    state = rig.state()
    assert state is not None
    assert sorted(one.port for one in state.instances) == sorted(ports), "known after a restart too"
    rig.stop()


def test_port_ends_a_program_that_takes_too_much_memory(rig: DeployerRig) -> None:
    """It is ended, counted as a crash with the peak, and nothing bounds its address space."""
    source = (
        "print(open('/proc/self/limits').read().split('Max address space')[1].split()[0], flush=True)\n"
        "hold = bytearray(300 << 20)\n" + STAYS
    )
    rig.port.apply(program(rig.home, source, memory=64 << 20))
    rig.until(lambda state: state is not None and bool(state.reason), "its end")
    state = rig.state()
    assert state is not None
    assert "it took more than its 64 MiB of memory" in state.reason
    assert "MiB at its peak" in state.reason
    assert rig.printed("unlimited")
    rig.stop()


def test_port_starts_a_program_again_that_is_not_alive(rig: DeployerRig) -> None:
    """A liveness probe that fails so often ends the program, and the reason is told."""
    alive = ProbeSpec("exec", command=("test", "!", "-e", "sick"), period_ms=50, timeout_ms=2_000, failures=2)
    folder = rig.home.root / "program"
    folder.mkdir()
    source = f"import os\nos.chdir({str(folder)!r})\nopen('up', 'w')\n" + STAYS
    probe = replace(alive, command=("test", "!", "-e", str(folder / "sick")))
    rig.port.apply(program(rig.home, source, liveness=probe))
    rig.until(lambda _: (folder / "up").exists(), "the program")
    (pid,) = rig.pids()
    (folder / "sick").touch()
    rig.until(lambda state: state is not None and "liveness" in state.reason, "its end")
    state = rig.state()
    assert state is not None
    assert "its liveness probe failed 2 times: test ends with exit code 1" in state.reason
    (folder / "sick").unlink()
    rig.until(lambda _: rig.pids() not in ([], [pid]), "another one")
    rig.stop()
    assert orphans(rig.home, ()) == []


def test_port_refuses_a_bundle_that_was_tampered_with(rig: DeployerRig) -> None:
    """A version whose bundle does not verify is refused, and the one before goes on running."""
    rig.port.apply(program(rig.home, STAYS))
    rig.until_instances(1)
    before = rig.pids()
    evil = program(rig.home, STAYS + "# evil\n", version=2)
    path = rig.home.bundles / evil.bundle / "main.py"
    path.chmod(0o644)
    path.write_text("print('evil')")
    rig.port.apply(evil)
    rig.turn()
    state = rig.state()
    assert state is not None
    assert (state.status, state.refused) == ("refused", True)
    assert "main.py is not what was signed" in state.reason
    assert rig.pids() == before
    rig.stop()

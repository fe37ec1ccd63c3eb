"""The local deployer: what only processes on this machine show, beside the contract of its port."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton_platform import process
from pelton_platform.deploy.home import Home
from support.deployers import NAME, STAYS, DeployerRig, orphans, processes_of, program
from support.local_platform import wait_for

STEPS = 12
"""So many of the steps of an apply are tried in a short run, spread over all of them."""

# Replaces a version, and dies at one of the things that it does to the machine.
DIES = """
import os, signal, sys
from pathlib import Path
from support.deployers import NAME, STAYS, DeployerRig, program
from pelton_platform.deploy.home import Home

seen, last = 0, int(sys.argv[2])
WATCHED = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "subprocess.Popen", "os.kill", "os.killpg",
           "signal.pidfd_send_signal", "shutil.rmtree", "os.posix_spawn", "os.fork", "fcntl.flock", "open"}

def step(event, arguments):
    global seen
    if event not in WATCHED or not armed:
        return
    if event == "open" and not str(arguments[0]).startswith(str(home.root)):
        return
    seen += 1
    if seen == last:
        os.kill(os.getpid(), signal.SIGKILL)

armed = False
home = Home(Path(sys.argv[1]))
sys.addaudithook(step)
rig = DeployerRig(home)
rig.port.apply(program(home, STAYS))
rig.until_instances(1)
rig.say_ready()
spec = program(home, STAYS + "# new", version=2)
armed = True
rig.port.apply(spec)
rig.until_instances(2)
rig.say_ready()
rig.until(lambda state: [one.version for one in state.instances] == [2], "the new one alone")
armed = False
print("steps", seen, flush=True)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home folder, whose processes are ended with the test."""
    home = Home(tmp_path / "home")
    home.prepare()
    yield home
    for left in processes_of(home):
        process.terminate(left, 0.0, group=True)


def dying(home: Home, step: int) -> subprocess.CompletedProcess[str]:
    """A deployer that dies at a step, 0 for never."""
    return subprocess.run(
        [sys.executable, "-c", DIES, str(home.root), str(step)],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def converges_after_death_at(home: Home, step: int) -> bool:
    """Let a deployer die at a step, and see what another one makes of it; False when it came to its end."""
    done = dying(home, step)
    if done.returncode == 0:
        return False
    assert done.returncode == -9, done.stderr
    rig = DeployerRig(home)
    rig.port.apply(program(home, STAYS + "# new", version=2))

    def is_there(state: object) -> bool:
        rig.say_ready()
        found = rig.state()
        return found is not None and [(one.version, one.state) for one in found.instances] == [(2, "ready")]

    rig.until(is_there, f"the new version alone, after a death at step {step}")
    state = rig.state()
    assert state is not None
    # What was ended may take a moment to be gone.
    known = [one.instance for one in state.instances]
    wait_for(lambda: not orphans(home, known), f"the end of orphans, after a death at step {step}")
    assert {folder.name for folder in home.instances.iterdir()} == {state.instances[0].instance}
    rig.stop()
    wait_for(lambda: not processes_of(home), f"the end of all, after a death at step {step}")
    return True


def test_deploy_converges_wherever_its_deployer_dies(home: Home, tmp_path: Path) -> None:
    """Killed at a step of an apply, spread over all of them: the next deployer brings it to its end."""
    done = dying(home, 0)
    assert done.returncode == 0, done.stderr
    for left in processes_of(home):
        process.terminate(left, 0.0, group=True)
    steps = int(done.stdout.split()[-1])
    assert steps >= STEPS
    for step in range(1, steps + 1, max(1, steps // STEPS)):
        folder = Home(tmp_path / f"home-{step}")
        folder.prepare()
        try:
            assert converges_after_death_at(folder, step)
        finally:
            for left in processes_of(folder):
                process.terminate(left, 0.0, group=True)


@pytest.mark.chaos_long
@pytest.mark.timeout(1200)
def test_deploy_converges_at_every_step_of_an_apply(tmp_path: Path) -> None:
    """The same at each single step."""
    step = 1
    while True:
        folder = Home(tmp_path / f"home-{step}")
        folder.prepare()
        try:
            if not converges_after_death_at(folder, step):
                break
        finally:
            for left in processes_of(folder):
                process.terminate(left, 0.0, group=True)
        step += 1
    assert step > STEPS


def test_deploy_forgets_a_folder_that_was_half_written(home: Home) -> None:
    """What a deployer that died was writing is no instance."""
    (home.instances / "half-written").mkdir()
    (home.instances / "half-written" / "state.json").write_text("{")
    rig = DeployerRig(home)
    rig.port.apply(program(home, STAYS))
    rig.until_instances(1)
    assert not (home.instances / "half-written").exists()
    rig.stop()


def test_deploy_program_sees_its_environment_and_nothing_else(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program gets settings, platform and machine variables, and none of the platform's own environment."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "private")
    source = "import os\nprint('env', sorted(os.environ), os.environ['FROM_SETTINGS'], flush=True)\n" + STAYS
    rig = DeployerRig(home)
    rig.port.apply(program(home, source))
    rig.until(lambda _: rig.printed("env"), "the program")
    line = next(line for line in rig.port.logs(NAME, 20) if line.startswith("env"))
    assert line.endswith(" yes")
    for name in ("PATH", "HOME", "PELTON_HOME", "PELTON_BOOTSTRAP_SERVERS", "PELTON_INSTANCE"):
        assert f"'{name}'" in line
    assert "AWS" not in line
    rig.stop()

"""Control groups in a folder that looks like those of the kernel, and what a machine has to give."""

from __future__ import annotations

from pathlib import Path

import pytest

from pelton.core.spec import ContainerSpec
from pelton_platform import cgroups
from pelton_platform.cgroups import Cgroups, Group
from pelton_platform.confinement import Confinement, Limits, ways
from pelton_platform.deploy.resources import Machine, limits_of, shortcomings

MIB = 2**20


def never() -> None:
    """Nobody is to be told."""
    raise AssertionError("memory was not exceeded")


@pytest.fixture
def v2(tmp_path: Path) -> tuple[Path, Path]:
    """A machine with control groups v2: its mount, and what it says of this process."""
    mount, own = tmp_path / "cgroup", tmp_path / "own"
    (mount / "user.slice" / "session").mkdir(parents=True)
    (mount / "cgroup.controllers").write_text("cpu io memory pids\n")
    (mount / "cgroup.subtree_control").write_text("cpu memory\n")
    (mount / "user.slice" / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (mount / "user.slice" / "session" / "cgroup.subtree_control").write_text("\n")
    own.write_text("0::/user.slice/session\n")
    return mount, own


@pytest.fixture
def v1(tmp_path: Path) -> tuple[Path, Path]:
    """A machine with control groups v1."""
    mount, own = tmp_path / "cgroup", tmp_path / "own"
    (mount / "memory" / "job").mkdir(parents=True)
    (mount / "cpu").mkdir()
    own.write_text("5:memory:/job\n4:cpu,cpuacct:/gone\n0::/\n")
    return mount, own


def test_v2_groups_are_made_in_the_nearest_folder_that_gives_both(v2: tuple[Path, Path]) -> None:
    """Our own group holds processes, so groups are made beside it."""
    found = cgroups.find(*v2)
    assert found == Cgroups(2, v2[0] / "user.slice", v2[0] / "user.slice")
    assert ways(found) == ("control groups v2", "control groups v2")


def test_v2_without_controllers_is_of_no_use(v2: tuple[Path, Path]) -> None:
    """Where no folder gives memory and CPU to groups in it, none is made."""
    for folder in (v2[0], v2[0] / "user.slice"):
        (folder / "cgroup.subtree_control").write_text("pids\n")
    assert cgroups.find(*v2) == Cgroups()


def test_v2_group_bounds_and_tells(v2: tuple[Path, Path]) -> None:
    """Limits, members, kills and peak stand in the files of the kernel."""
    found = cgroups.find(*v2)
    group = Group(found, "i-1", 64 * MIB, 1500)
    folder = v2[0] / "user.slice" / "pelton-i-1"
    group.add(4711)
    said = {file.name: file.read_text() for file in folder.iterdir()}
    assert said == {
        "memory.max": str(64 * MIB),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "150000 100000",
        "cgroup.procs": "4711",
    }
    assert (group.kills(), group.peak()) == (0, 0)
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\n")
    (folder / "memory.peak").write_text(f"{63 * MIB}\n")
    assert (group.kills(), group.peak()) == (2, 63 * MIB)


def test_v1_groups_are_made_below_our_own_else_at_the_top(v1: tuple[Path, Path]) -> None:
    """Each controller has a tree of its own; a group that is not there is passed over."""
    found = cgroups.find(*v1)
    assert found == Cgroups(1, v1[0] / "memory" / "job", v1[0] / "cpu")
    group = Group(found, "i-1", 64 * MIB, 500)
    group.add(4711)
    memory, cpu = v1[0] / "memory/job/pelton-i-1", v1[0] / "cpu/pelton-i-1"
    assert (memory / "memory.limit_in_bytes").read_text() == str(64 * MIB)
    assert (cpu / "cpu.cfs_quota_us").read_text() == "50000"
    assert (memory / "cgroup.procs").read_text() == (cpu / "cgroup.procs").read_text() == "4711"
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (memory / "memory.max_usage_in_bytes").write_text("77\n")
    assert (group.kills(), group.peak()) == (3, 77)


def test_v1_with_one_controller_leaves_the_other_to_looking(v1: tuple[Path, Path]) -> None:
    """What the machine does not give is held by the other way, and said."""
    (v1[0] / "memory" / "job").rmdir()
    (v1[0] / "memory").rmdir()
    found = cgroups.find(*v1)
    assert (found.version, found.memory) == (1, None)
    memory, cpu = ways(found)
    assert memory == "resident memory, looked at every 100 ms"
    assert cpu == "control groups v1"


def test_a_machine_without_control_groups_says_so(tmp_path: Path) -> None:
    """No mount, no word of the kernel, or nothing that can be written: no group."""
    assert cgroups.find(tmp_path / "none", tmp_path / "nothing") == Cgroups()
    (tmp_path / "own").write_text("0::/\n")
    assert cgroups.find(tmp_path / "none", tmp_path / "own") == Cgroups()
    assert ways(Cgroups())[0] == "resident memory, looked at every 100 ms"


def test_only_groups_of_ours_are_swept(v1: tuple[Path, Path]) -> None:
    """Empty groups whose name begins so go; others, and those that are in use, stay."""
    found = cgroups.find(*v1)
    base = v1[0] / "cpu"
    for name in ("pelton-web-1-f-1", "pelton-web-1", "pelton-web-2", "web-1"):
        (base / name).mkdir()
    (base / "pelton-web-1" / "cgroup.procs").write_text("1")
    cgroups.sweep(found, "web-1")
    left = {folder.name for folder in base.iterdir() if not folder.name.startswith("pelton-try")}
    assert left == {"pelton-web-1", "pelton-web-2", "web-1"}


def test_a_group_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    """A confinement whose group the kernel refuses falls back to looking; nothing fails for it."""
    nowhere = tmp_path / "nowhere"
    confinement = Confinement(Limits(64 * MIB, 500), "x", never, Cgroups(2, nowhere, nowhere))
    assert not confinement.exceeded()
    confinement.close()


MACHINE = Machine(2, 8 * 1024 * MIB, 1)


def spec(cpu: int = 0, memory: int = 0, gpu: str = "") -> ContainerSpec:
    """A container that asks for something."""
    return ContainerSpec("c", 1, (), "b", cpu=cpu, memory=memory, gpu=gpu, entrypoint=("x",))


@pytest.mark.parametrize(
    ("asks", "limits"),
    [
        (spec(), Limits(0, 0)),
        (spec(500, 64 * MIB), Limits(64 * MIB, 500)),
        (spec(2000, 8 * 1024 * MIB), Limits(0, 0)),
        (spec(64_000, 2**50), Limits(0, 0)),
    ],
)
def test_limits_are_what_is_asked_up_to_what_there_is(asks: ContainerSpec, limits: Limits) -> None:
    """Who asks for all the machine has, or more, gets all of it, which needs no limit."""
    assert limits_of(asks, MACHINE) == limits


def test_what_the_machine_does_not_have_is_said() -> None:
    """Each shortcoming names what was asked and what was found."""
    assert shortcomings(spec(2000, 8 * 1024 * MIB, "1"), MACHINE) == ()
    assert shortcomings(spec(4000, 16 * 1024 * MIB, "A100:2"), MACHINE) == (
        "asks for 4 cores, and this machine has 2",
        "asks for 16,384 MiB of memory, and this machine has 8,192 MiB",
        "asks for the GPU 'A100:2', and this machine shows 1 of NVIDIA",
    )
    assert shortcomings(spec(gpu="A100"), Machine(2, 1, 0)) == (
        "asks for the GPU 'A100', and this machine shows none of NVIDIA",
    )

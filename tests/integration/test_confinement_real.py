"""Limits of memory and CPU with real processes, by each way that this machine has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pelton_platform import usage
from pelton_platform.cgroups import Cgroups
from pelton_platform.confinement import Confinement, Limits, available
from support.executor_rig import executor_of
from support.local_platform import wait_for

pytestmark = pytest.mark.integration

MIB = 2**20
LOOKING = Cgroups()
"""A machine that gives no control groups."""

needs_groups = pytest.mark.skipif(
    available().memory is None, reason="this machine gives no control groups; the other way is tried"
)


@contextmanager
def confined(
    limits: Limits, code: str, groups: Cgroups | None
) -> Iterator[tuple[subprocess.Popen[bytes], Confinement]]:
    """A Python program within limits."""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        confinement = Confinement(limits, f"test-{os.getpid()}-{child.pid}", child.kill, groups)
        try:
            confinement.hold(child.pid)
            assert child.stdin is not None
            child.stdin.write(b"go\n")
            child.stdin.flush()
            yield child, confinement
        finally:
            child.kill()
            child.wait()
            confinement.close()


@pytest.mark.parametrize(
    "groups", [pytest.param(None, marks=needs_groups), LOOKING], ids=["groups", "looking"]
)
def test_who_takes_too_much_memory_is_ended(groups: Cgroups | None) -> None:
    """Also when it is a child of it that takes it; the peak is known."""
    hold = "input()\nhold = bytearray(200 << 20)\nimport time\ntime.sleep(60)\n"
    with confined(Limits(memory=64 * MIB), hold, groups) as (child, confinement):
        assert child.wait(30) == -signal.SIGKILL
        assert confinement.exceeded()
        assert confinement.peak() > 60 * MIB
    spawn = f"import subprocess, sys\ninput()\nsubprocess.run([sys.executable, '-c', {hold[8:]!r}])\n"
    with confined(Limits(memory=64 * MIB), spawn, groups) as (child, confinement):
        child.wait(30)
        assert confinement.exceeded()


@pytest.mark.parametrize(
    "groups", [pytest.param(None, marks=needs_groups), LOOKING], ids=["groups", "looking"]
)
def test_who_stays_below_is_left_alone(groups: Cgroups | None) -> None:
    """A program within its memory comes to its end, and a large address space is no memory."""
    code = "import mmap\ninput()\nm = mmap.mmap(-1, 1 << 30)\nhold = bytearray(8 << 20)\nprint(len(m))\n"
    with confined(Limits(memory=128 * MIB), code, groups) as (child, confinement):
        assert child.wait(30) == 0
        assert not confinement.exceeded()


@needs_groups
def test_cpu_is_held_by_a_control_group() -> None:
    """Half a core is half a core, whatever the program would take."""
    with confined(Limits(cpu=500), "input()\nwhile True: pass", None) as (child, _):
        stat = Path(f"/proc/{child.pid}/cgroup").read_text()
        assert f"pelton-test-{os.getpid()}-{child.pid}" in stat
        before, pause = usage.measure([child.pid])[child.pid].cpu_s, threading.Event()
        pause.wait(2.0)
        spent = usage.measure([child.pid])[child.pid].cpu_s - before
        assert spent < 1.5


def test_cpu_is_held_by_the_cores_a_process_may_run_on() -> None:
    """Where there are no control groups a process that may use one core runs on one."""
    with confined(Limits(cpu=700), "input()\nimport time\ntime.sleep(60)", LOOKING) as (child, _):
        assert len(os.sched_getaffinity(child.pid)) == 1


def test_usage_counts_a_tree() -> None:
    """Memory and CPU of a process with all that descends from it."""
    spin = "sum(range(3_000_000)); hold = bytearray(64 << 20); print('up', flush=True); input()"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {spin!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = usage.measure([child.pid, 2**22])
        assert found[child.pid].processes == 2
        assert found[child.pid].memory > 64 * MIB
        wait_for(lambda: usage.measure([child.pid])[child.pid].cpu_s > 0.01, "its CPU time")
        assert found[2**22] == usage.Usage(0, 0.0, 0)
        child.communicate(b"\n")


@pytest.mark.parametrize(
    "groups", [pytest.param(None, marks=needs_groups), LOOKING], ids=["groups", "looking"]
)
def test_an_executor_that_takes_too_much_memory_ends_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: Cgroups | None
) -> None:
    """Its end says so, with the peak, and that nobody asked for it; the next one serves."""
    if groups is not None:
        monkeypatch.setattr("pelton_platform.confinement.available", lambda: groups)
    source = """
        def run(size):
            hold = bytearray(size << 20)
            import time
            if size > 100: time.sleep(30)
            return len(hold)
    """
    with executor_of(tmp_path, source, limits=Limits(memory=96 * MIB)) as rig:
        assert rig.call(1).value == MIB
        run = rig.begin(300)
        end = rig.wait_exit()
        assert (end.out_of_memory, end.asked, end.runs) == (True, False, frozenset({run}))
        assert "the executor took more than its 96 MiB of memory" in end.reason
        assert end.peak_memory > 90 * MIB
        rig.start()
        assert rig.call(1).value == MIB

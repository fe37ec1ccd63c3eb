"""What `pelton_platform.process` promises about identities, signals, groups, parents and ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pelton_platform import process

STUBBORN = (
    "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
)
OBEDIENT = "import time; print(1, flush=True); time.sleep(60)"


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Children to be ended with the test, whatever happens."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def start(children: list[subprocess.Popen[bytes]], program: str) -> subprocess.Popen[bytes]:
    """Start a Python program that prints a line when it is ready, and wait for the line."""
    child = process.spawn([sys.executable, "-c", program], stdout=subprocess.PIPE)
    children.append(child)
    assert child.stdout is not None
    assert child.stdout.readline()
    return child


def identity_of(child: subprocess.Popen[bytes]) -> process.ProcessIdentity:
    identity = process.identify(child.pid)
    assert identity is not None
    return identity


def wait_until(condition: object, seconds: float = 10.0) -> None:
    """Wait for a condition, looking every 10 ms."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.01)


def test_embedded_identity_survives_a_file_and_names_one_process() -> None:
    """An identity read back from JSON is equal, alive, and different from one with another birth."""
    me = process.own_identity()
    assert process.ProcessIdentity.from_json(me.to_json()) == me
    assert process.is_alive(me)
    assert not process.is_alive(replace(me, birth="another"))
    with pytest.raises(ValueError, match="not a process identity"):
        process.ProcessIdentity.from_json({"pid": "1"})


def test_embedded_recycled_pid_is_never_signalled(children: list[subprocess.Popen[bytes]]) -> None:
    """A process that has the pid but not the birth is neither signalled, nor its group, nor waited for."""
    child = start(children, OBEDIENT)
    stranger = replace(identity_of(child), birth="of somebody who had this pid before")
    assert process.send_signal(stranger, signal.SIGKILL) is False
    assert process.send_group_signal(stranger, signal.SIGKILL) is False
    assert process.wait_gone(stranger, 5.0) is True
    assert process.terminate(stranger, 0.1, group=True) is True
    assert child.poll() is None


def test_embedded_terminate_is_graceful_first(children: list[subprocess.Popen[bytes]]) -> None:
    """A program that obeys SIGTERM ends by it, one that ignores it is killed after the grace time."""
    assert process.terminate(identity_of(start(children, OBEDIENT)), 10.0) is True
    stubborn = start(children, STUBBORN)
    assert process.terminate(identity_of(stubborn), 0.2) is False
    assert stubborn.wait() == -signal.SIGKILL


def test_embedded_stopped_process_can_be_terminated(children: list[subprocess.Popen[bytes]]) -> None:
    """A frozen process still ends in its own way, since it is continued to see SIGTERM."""
    handler = "import signal,sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); "
    child = start(children, handler + OBEDIENT)
    child.send_signal(signal.SIGSTOP)
    assert process.terminate_child(child, 10.0) == 7


def test_embedded_zombie_counts_as_gone(children: list[subprocess.Popen[bytes]]) -> None:
    """A child that ended but was not waited for is not alive, and waiting for it returns at once."""
    child = start(children, OBEDIENT)
    identity = identity_of(child)
    child.kill()
    assert process.wait_gone(identity, 10.0)
    assert process.identify(child.pid) == identity
    assert not process.is_alive(identity)


def test_embedded_released_child_leaves_no_zombie(children: list[subprocess.Popen[bytes]]) -> None:
    """A child that nobody looks at any more is waited for; who kept it still gets its exit code."""
    child = start(children, OBEDIENT)
    identity = identity_of(child)
    process.release(child)
    assert process.is_alive(identity)
    process.send_signal(identity, signal.SIGKILL)
    wait_until(lambda: process.identify(identity.pid) != identity)
    assert process.terminate_child(child, 0.0) == -signal.SIGKILL


def test_embedded_released_child_may_outlive_the_interpreter() -> None:
    """A program that lets go of a running child ends without Python's complaint about a forgotten one."""
    program = (
        "import gc, subprocess, sys\nfrom pelton_platform import process\n"
        "nobody = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}\n"
        "child = process.spawn([sys.executable, '-c', 'import time; time.sleep(60)'], **nobody)\n"
        "process.release(child)\nprint(child.pid)\ndel child\ngc.collect()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, check=True
    )
    left = process.identify(int(ended.stdout))
    assert left is not None
    process.terminate(left, 0.0)
    assert ended.stderr == ""


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux shows a process as a zombie while threads run"
)
def test_embedded_process_lives_while_a_thread_does(children: list[subprocess.Popen[bytes]]) -> None:
    """A process whose first thread ended while another holds a port is not gone before the port is free."""
    port = process.free_port()
    program = (
        "import ctypes,socket,threading,time\n"
        f"s=socket.create_server(('127.0.0.1',{port}))\n"
        "threading.Thread(target=time.sleep,args=(60,)).start()\n"
        "print('ready',flush=True); ctypes.CDLL(None).pthread_exit(None)"
    )
    child = process.spawn([sys.executable, "-c", program], stdout=subprocess.PIPE)
    children.append(child)
    identity = identity_of(child)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    stat = Path("/proc", str(child.pid), "stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
    assert process.is_alive(identity)
    assert not process.wait_gone(identity, 0.05)
    assert not process.port_is_free(port)
    child.kill()
    assert process.wait_gone(identity, 10.0)
    assert process.port_is_free(port)


def test_embedded_wait_gone_says_when_time_is_over(children: list[subprocess.Popen[bytes]]) -> None:
    """Waiting for a process that runs on returns False."""
    assert process.wait_gone(identity_of(start(children, OBEDIENT)), 0.05) is False


def test_embedded_group_ends_as_a_whole(children: list[subprocess.Popen[bytes]]) -> None:
    """A grandchild that ignores SIGTERM, and takes its time to die, is gone with its group."""
    stubborn = f"ballast = bytearray(b'x' * (256 << 20))\n{STUBBORN}"
    program = (
        "import subprocess,sys,time\n"
        f"c=subprocess.Popen([sys.executable,'-c',{stubborn!r}],stdout=subprocess.PIPE)\n"
        "c.stdout.readline(); print(c.pid, flush=True); time.sleep(60)"
    )
    leader = process.spawn([sys.executable, "-c", program], stdout=subprocess.PIPE)
    children.append(leader)
    assert leader.stdout is not None
    grandchild = process.identify(int(leader.stdout.readline()))
    assert grandchild is not None
    assert {member.pid for member in process.group_members(leader.pid)} == {leader.pid, grandchild.pid}
    process.terminate_child(leader, 5.0)
    assert not process.is_alive(grandchild)
    assert process.group_members(leader.pid) == ()


def test_embedded_orphans_are_found_by_their_environment(children: list[subprocess.Popen[bytes]]) -> None:
    """A process is found by a variable it was started with, and not by another value of it."""
    env = {**os.environ, "PELTON_TEST_MARK": "here"}
    child = process.spawn([sys.executable, "-c", OBEDIENT], env=env, stdout=subprocess.PIPE)
    children.append(child)
    assert child.stdout is not None
    assert child.stdout.readline()
    assert process.processes_with_environment("PELTON_TEST_MARK", "here") == (identity_of(child),)
    assert process.processes_with_environment("PELTON_TEST_MARK", "elsewhere") == ()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent death signal")
def test_embedded_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    """SIGKILL of the parent ends the child too, which keeps the pid that spawn returned."""
    program = (
        "import sys,time\nfrom pelton_platform import process\n"
        f"c=process.spawn([sys.executable,'-c',{OBEDIENT!r}],die_with_parent=True)\n"
        "print(c.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = process.identify(int(parent.stdout.readline()))
        assert child is not None
        assert parent.stdout.readline() == b"1\n"
        assert process.is_alive(child)
        parent.kill()
        assert process.wait_gone(child, 10.0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent death signal")
def test_embedded_child_outlives_the_thread_that_asked_for_it(
    children: list[subprocess.Popen[bytes]],
) -> None:
    """A child that dies with its parent process does not die with the thread that called spawn."""

    def ask() -> None:
        child = process.spawn([sys.executable, "-c", OBEDIENT], stdout=subprocess.PIPE, die_with_parent=True)
        children.append(child)
        assert child.stdout is not None
        # The child asks for the signal before it is the program that prints.
        assert child.stdout.readline()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    (child,) = children
    assert process.wait_gone(identity_of(child), 0.2) is False


def test_embedded_missing_program_is_an_error() -> None:
    """Starting what does not exist raises, or ends the wrapper with a message that names it."""
    with pytest.raises(FileNotFoundError):
        process.spawn(["/nowhere/at/all"])
    if sys.platform == "linux":
        child = process.spawn(["/nowhere/at/all"], stderr=subprocess.PIPE, die_with_parent=True)
        assert b"/nowhere/at/all: No such file" in child.communicate(timeout=10)[1]
        assert child.returncode == 1


def test_embedded_free_ports_differ_and_can_be_used() -> None:
    """Ports are distinct, free, outside the ephemeral range, and seen as taken while a server listens."""
    ports = process.free_ports(5)
    assert len(set(ports)) == 5
    assert all(port < 60_000 for port in ports)
    with socket.create_server((process.LOOPBACK, ports[0])):
        assert not process.port_is_free(ports[0])
    wait_until(lambda: process.port_is_free(ports[0]))

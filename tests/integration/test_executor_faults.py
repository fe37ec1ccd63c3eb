"""Whatever user code does to its executor is one executor's end, told once; nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pelton_platform import process
from pelton_platform.coordinator import executors
from pelton_platform.executor.outbox import CHANNEL_LOST_EXIT
from pelton_platform.executor.reader import PARENT_GONE_EXIT
from support.executor_rig import Rig, executor_of, pool_of, wait_for_file

WAITING = """
    import pathlib, time
    def run(name="here", *rest):
        pathlib.Path(name).touch()
        while not pathlib.Path("go").exists(): time.sleep(0.005)
        return name
"""


def answers_elsewhere(folder: Path, how: Any) -> None:
    """While `how` is going on in one executor, another of the same pool answers quickly."""
    with executor_of(
        folder,
        """
        import ctypes, pathlib, signal, time
        def run(how):
            if how == "answer": return 1
            if how == "ignore":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            pathlib.Path(how).touch()
            if how == "held": ctypes.PyDLL(None).usleep(30_000_000)
            if how in ("loop", "ignore"):
                while True: pass
        """,
    ) as rig:
        stuck = rig.executor
        run = rig.begin(how)
        wait_for_file(folder / "bundle" / how)
        other = rig.start()
        assert rig.call("answer").value == 1
        rig.pool.interrupt(stuck, run, 0.05)
        rig.wait(lambda: rig.exit_of(stuck) is not None)
        end = rig.exit_of(stuck)
        assert end is not None
        assert (end.code, end.asked) == (-signal.SIGKILL, True)
        assert "did not end in time" in end.reason
        assert run not in rig.ended
        rig.executor = other
        assert rig.call("answer").value == 1


@pytest.mark.parametrize("how", ["held", "loop", "ignore"])
def test_user_code_that_does_not_yield_is_ended_after_its_grace(tmp_path: Path, how: str) -> None:
    """The GIL held by C code, an endless loop, signals ignored: the pool and other executors go on."""
    answers_elsewhere(tmp_path, how)


def test_an_interrupt_that_is_heard_in_time_costs_no_executor(tmp_path: Path) -> None:
    """The grace is over, but the run had ended."""
    source = """
    import asyncio
    async def run(x):
        await asyncio.sleep(3600 if x else 0)
        return x
    """
    with executor_of(tmp_path, source, kind="async", slots=2) as rig:
        run = rig.begin(True)
        rig.call(False)
        rig.pool.interrupt(rig.executor, run, 0.3)
        rig.end_of(run)
        # It has ended before the second one is heard, too.
        rig.pool.interrupt(rig.executor, run, 0.1)
        with pytest.raises(AssertionError):
            rig.wait(lambda: bool(rig.exits), seconds=0.6)
        assert rig.call(False).value is False


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("os._exit(9)", 9),
        ("os._exit(0)", 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.abort()", -signal.SIGABRT),
    ],
)
def test_an_executor_that_dies_is_told_once_with_its_cause(tmp_path: Path, how: str, code: int) -> None:
    """What had ended before is known, what was running is not, and the next executor starts at once."""
    source = f"""
    import os, signal
    def run(x):
        if x: {how}
        return x
    """
    with executor_of(tmp_path, source, slots=2) as rig:
        dead = rig.executor
        assert rig.call(0).value == 0
        run = rig.begin(1)
        end = rig.wait_exit()
        assert (end.code, end.asked, end.ready, end.broken) == (code, False, True, None)
        assert end.pid > 0
        assert ("exit code" in end.reason) == (code >= 0)
        assert run not in rig.ended
        assert end.runs == {run}
        assert rig.pool.pids() == {}
        assert not rig.pool.send(dead, [[2, 1, 1]])
        began = time.monotonic()
        rig.start()
        assert time.monotonic() - began < 5
        assert rig.call(0).value == 0
        assert len(rig.exits) == 1


def test_outcomes_before_a_death_are_delivered_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that was written to the channel arrives, then the exit, however slowly the pool reads."""
    source = """
    import os, time
    def run(i):
        if i == 100:
            time.sleep(0.2)
            os._exit(1)
        return "x" * 1000
    """
    monkeypatch.setattr(executors, "_READ_BYTES", 4096)
    with executor_of(tmp_path, source) as rig:
        identity = process.identify(rig.pid)
        assert identity is not None
        with rig.deaf():
            first = [rig.begin(i) for i in range(101)][:100]
            assert process.wait_gone(identity, 10.0)
        rig.wait_exit()
        assert all(run in rig.ended for run in first)


def test_what_an_executor_started_ends_with_it(tmp_path: Path) -> None:
    """Children and forks of user code are in its group; forks do not speak for it."""
    source = """
    import os, pathlib, subprocess, time
    def run(how):
        if how == "die":
            child = subprocess.Popen(["sleep", "1000"])
            pathlib.Path("pid").write_text(str(child.pid))
            os._exit(1)
        if how == "fork":
            if os.fork() == 0: return "the child"
            os.wait()
            return "the parent"
        child = subprocess.Popen(["sleep", "1000"])
        grandchild = os.fork()
        if grandchild == 0:
            while True: time.sleep(1)
        return [child.pid, grandchild]
    """
    with executor_of(tmp_path, source) as rig:
        assert rig.call("fork").value == "the parent"
        pids = rig.call("start").value
        identities = [process.identify(pid) for pid in pids]
        rig.pool.kill(rig.executor, "for the test")
        end = rig.wait_exit()
        assert "for the test" in end.reason
        assert not [line for line in rig.lines("stderr") if "channel" in line]
        rig.start()
        rig.begin("die")
        assert rig.wait_exit().code == 1
        identities.append(process.identify(int((tmp_path / "bundle" / "pid").read_text())))
        for identity in identities:
            assert identity is None or process.wait_gone(identity, 10.0)


def test_user_code_that_closes_the_channel_ends_its_executor(tmp_path: Path) -> None:
    """All descriptors closed: the outcome cannot be told, and is not written into a socket of the user's."""
    source = """
    import os, pathlib, select, socket, threading
    def run():
        os.closerange(3, 65536)
        pairs = [socket.socketpair() for _ in range(32)]
        ends = [end for pair in pairs for end in pair]
        def watch():
            if select.select(ends, [], [])[0]: pathlib.Path("leaked").touch()
        threading.Thread(target=watch).start()
        return 1
    """
    with executor_of(tmp_path, source) as rig:
        rig.begin()
        with pytest.raises(AssertionError):
            wait_for_file(tmp_path / "bundle" / "leaked", seconds=1.0)
        end = rig.wait_exit()
        # Who finds out first: the one that tells the outcome, or the one that listens.
        assert end.code in (CHANNEL_LOST_EXIT, PARENT_GONE_EXIT)
        assert not end.asked


def test_an_executor_that_ends_its_channel_but_lives_on_is_killed(tmp_path: Path) -> None:
    """Nobody could ever talk to it again."""
    source = """
    import os, socket, time
    def run():
        for fd in map(int, os.listdir("/proc/self/fd")):
            try: socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_WR)
            except OSError: pass
        time.sleep(1000)
    """
    with executor_of(tmp_path, source) as rig:
        rig.begin()
        end = rig.wait_exit()
        assert "channel" in end.reason


@pytest.mark.parametrize(
    "rubbish",
    [
        "b'\\xff' * 100",
        "bytes(4)",
        "b'\\x03\\0\\0\\0\\x91\\x91\\x63'",
        "b'\\x04\\0\\0\\0\\x91\\x92\\x03\\xc0'",
        "b'\\x02\\0\\0\\0\\xc1\\xc1'",
    ],
)
def test_rubbish_on_the_channel_costs_that_executor_only(tmp_path: Path, rubbish: str) -> None:
    """User code has the descriptor too; the pool kills and tells, and starts the next one."""
    source = f"""
    import os, socket, time
    def run(x):
        for fd in map(int, os.listdir("/proc/self/fd")):
            try: end = socket.socket(fileno=os.dup(fd))
            except OSError: continue
            if x and end.family == socket.AF_UNIX: end.send({rubbish})
        if x: time.sleep(1000)
        return x
    """
    with executor_of(tmp_path, source) as rig:
        rig.begin(1)
        end = rig.wait_exit()
        assert end.code == -signal.SIGKILL
        assert "rubbish" in end.reason
        assert not end.asked
        rig.start()
        assert rig.call(0).value == 0


def test_changed_folders_signals_and_limits_stay_inside(tmp_path: Path) -> None:
    """The parent's folder, signal handlers and limits are its own; the executor goes on."""
    source = """
    import os, resource, signal, sys
    def run():
        os.chdir("/")
        os.environ["LEAK"] = "1"
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD): signal.signal(number, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        sys.stdout = sys.stderr = None
        return 1
    """
    before = (os.getcwd(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGCHLD))
    with executor_of(tmp_path, source) as rig:
        assert rig.call().value == 1
        assert rig.call().value == 1
        assert (os.getcwd(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGCHLD)) == before
        assert "LEAK" not in os.environ


def test_a_stop_that_is_not_heard_becomes_a_kill(tmp_path: Path) -> None:
    """A call that runs longer than the grace is ended with its executor."""
    with executor_of(tmp_path, WAITING) as rig:
        rig.begin()
        wait_for_file(tmp_path / "bundle" / "here")
        rig.pool.stop(rig.executor, 0.1)
        end = rig.wait_exit()
        assert (end.code, end.asked) == (-signal.SIGKILL, True)
        assert "grace" in end.reason


def test_a_frozen_executor_is_ended_all_the_same(tmp_path: Path) -> None:
    """SIGSTOP does not keep it from being killed."""
    with executor_of(tmp_path, WAITING) as rig:
        os.kill(rig.pid, signal.SIGSTOP)
        rig.pool.stop(rig.executor, 0.1)
        assert rig.wait_exit().code == -signal.SIGKILL


def test_more_than_a_channel_takes_is_kept_and_written_later(tmp_path: Path) -> None:
    """`send` returns at once while the executor is frozen; nothing is lost or reordered."""
    source = "order = []\ndef run(i, ballast):\n    order.append(i)\n    return order if i == 199 else None\n"
    with executor_of(tmp_path, source, slots=1) as rig:
        os.kill(rig.pid, signal.SIGSTOP)
        began = time.monotonic()
        runs = [rig.begin(i, b"x" * 100_000) for i in range(200)]
        assert time.monotonic() - began < 5
        os.kill(rig.pid, signal.SIGCONT)
        assert rig.end_of(runs[-1]).value == list(range(200))


BROKEN = {
    "raises": ("raise ValueError('no model')", "ValueError", "no model"),
    "exits": ("import sys; sys.exit('bye')", "SystemExit", "bye"),
    "syntax": ("def run(:", "SyntaxError", ""),
    "missing": ("def other(): pass", "pelton_platform.executor.loading.LoadError", "has no 'run'"),
    "no function": ("run = 7", "pelton_platform.executor.loading.LoadError", "not a function"),
    "import": ("import no_such_module_here", "ModuleNotFoundError", "no_such_module_here"),
}


@pytest.mark.parametrize("how", list(BROKEN))
def test_code_that_cannot_be_loaded_is_told_with_its_traceback(tmp_path: Path, how: str) -> None:
    """BROKEN with the user's frames only, then the end; what it printed before arrives too."""
    text, kind, words = BROKEN[how]
    with pool_of(tmp_path, f"print('loading')\n{text}\n") as rig:
        rig.executor = rig.pool.start()
        end = rig.wait_exit()
        assert end.broken is not None
        assert not end.ready
        assert end.broken.type == kind
        assert words in end.broken.message
        assert words in end.reason
        if how in ("raises", "exits", "import"):
            assert "worker.py" in end.broken.traceback
            assert "importlib" not in end.broken.traceback
        if how != "syntax":
            assert "loading" in rig.lines("stdout")


def test_a_module_whose_name_is_taken_by_python_is_refused_by_name(tmp_path: Path) -> None:
    """Another module of that name would be run in its place; the message says what to do."""
    with pool_of(tmp_path, "", module="selectors") as rig:
        (tmp_path / "bundle" / "selectors.py").write_text("def run(): return 1\n")
        rig.executor = rig.pool.start()
        end = rig.wait_exit()
        assert end.broken is not None
        assert "rename the file" in end.broken.message


def test_files_of_the_bundle_do_not_replace_modules_of_the_executor(tmp_path: Path) -> None:
    """A bundle with a socket.py of its own still runs."""
    with pool_of(tmp_path, "def run(): return 1\n") as rig:
        for name in ("socket", "json", "queue", "msgspec", "pelton"):
            (tmp_path / "bundle" / f"{name}.py").write_text("raise RuntimeError('shadowed')\n")
        rig.start()
        assert rig.call().value == 1


def test_starts_after_broken_loads_are_spaced_and_a_good_one_ends_that(tmp_path: Path) -> None:
    """Broken code is not loaded in a hot loop, and repaired code starts without more waiting."""
    with pool_of(tmp_path, "raise ValueError\n") as rig:
        times = []
        for _ in range(4):
            began = time.monotonic()
            rig.executor = rig.pool.start()
            rig.wait_exit()
            times.append(time.monotonic() - began)
        assert times[2] >= 0.5
        assert times[3] >= 1.0
        (tmp_path / "bundle" / "worker.py").write_text("def run(): return 1\n")
        rig.start()
        assert rig.call().value == 1
        rig.pool.stop(rig.executor, 10.0)
        rig.wait_exit()
        began = time.monotonic()
        rig.start()
        assert time.monotonic() - began < times[3] + 1.0


def test_an_executor_waiting_for_its_start_can_be_stopped(tmp_path: Path) -> None:
    """It never starts, and its end is told."""
    with pool_of(tmp_path, "raise ValueError\n") as rig:
        for _ in range(5):
            rig.executor = rig.pool.start()
            if rig.executor < 5:
                rig.wait_exit()
        rig.pool.kill(rig.executor)
        end = rig.wait_exit()
        assert (end.pid, end.asked) == (0, True)


def test_a_missing_bundle_is_told_as_broken(tmp_path: Path) -> None:
    """The executor cannot be started at all."""
    with pool_of(tmp_path, "") as rig:
        (tmp_path / "bundle" / "worker.py").unlink()
        (tmp_path / "bundle").rmdir()
        rig.executor = rig.pool.start()
        end = rig.wait_exit()
        assert end.broken is not None
        assert "bundle" in end.reason


def test_stop_while_loading_exits_at_once(tmp_path: Path) -> None:
    """Nothing runs that could be finished."""
    source = "import pathlib, time\npathlib.Path('loading').touch()\ntime.sleep(1000)\ndef run(): pass\n"
    with pool_of(tmp_path, source) as rig:
        rig.executor = rig.pool.start()
        wait_for_file(tmp_path / "bundle" / "loading")
        rig.pool.stop(rig.executor, 60.0)
        end = rig.wait_exit()
        assert (end.code, end.asked, end.ready) == (0, True, False)


def test_executors_hold_no_keys_no_kafka_settings_and_no_foreign_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment is a short list plus what the container gives; descriptors 0 to 2 and the channel."""
    for name in (
        "PELTON_KEY_FILE",
        "PELTON_KAFKA_SASL_PASSWORD",
        "PELTON_BOOTSTRAP_SERVERS",
        "PELTON_HOME",
        "CLOUD_TOKEN",
    ):
        monkeypatch.setenv(name, "secret")
    read, write = os.pipe()
    os.set_inheritable(write, True)
    source = """
    import os, sys
    def link(fd):
        try: return os.readlink(f"/proc/self/fd/{fd}").split(":")[0]
        except OSError: return "the listing itself"
    def run():
        return dict(os.environ), sorted(link(fd) for fd in os.listdir("/proc/self/fd")), sorted(sys.modules)
    """
    given = {"DATABASE_URL": "x", "PELTON_KEY_FILE": "given"}
    with executor_of(tmp_path, source, env=given) as rig:
        env, fds, modules = rig.call().value
        assert env["DATABASE_URL"] == "x"
        assert "PATH" in env
        assert not [name for name in env if name.startswith("PELTON")]
        assert "secret" not in env.values()
        assert "CLOUD_TOKEN" not in env
        assert fds == sorted(["/dev/null", "pipe", "pipe", "socket", "the listing itself"])
        assert not [
            name for name in modules if name.startswith(("confluent_kafka", "pelton.transport.kafka"))
        ]
        environ = Path(f"/proc/{rig.pid}/environ").read_bytes()
        assert b"secret" not in environ
    os.close(read)
    os.close(write)


def test_an_executor_dies_with_its_parent(tmp_path: Path) -> None:
    """SIGKILL of the coordinator ends its executors at once, idle or in C code that holds the GIL."""
    program = f"""
import sys, threading
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from support.executor_rig import executor_of
source = '''
import ctypes, pathlib
def run(busy):
    pathlib.Path("here").touch()
    if busy: ctypes.PyDLL(None).usleep(60_000_000)
'''
def main():
    with executor_of(Path({str(tmp_path)!r}), source) as rig:
        idle = rig.pid
        rig.start()
        rig.begin(True)
        print(idle, rig.pid, flush=True)
        threading.Event().wait()
# Not the main thread: the death signal must not fire when a thread that asked for an executor ends.
threading.Thread(target=main).start()
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        identities = [process.identify(pid) for pid in pids]
        wait_for_file(tmp_path / "bundle" / "here")
        parent.kill()
        for identity in identities:
            assert identity is not None
            assert process.wait_gone(identity, 10.0)
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()


def test_an_executor_ends_when_its_channel_does(tmp_path: Path) -> None:
    """Where no death signal exists, end of file does the same, also in the middle of a call."""
    with executor_of(tmp_path, WAITING) as rig:
        identity = process.identify(rig.pid)
        assert identity is not None
        rig.begin()
        wait_for_file(tmp_path / "bundle" / "here")
        close_channel(rig)
        assert rig.wait_exit().code == 4


def close_channel(rig: Rig) -> None:
    """Ends the parent's side of the channel as the end of the parent would."""
    import socket

    rig.pool._executors[rig.executor].channel.socket.shutdown(socket.SHUT_WR)


def test_close_leaves_nothing_behind(tmp_path: Path) -> None:
    """Threads, descriptors and processes of a pool are gone when it is closed."""
    import threading

    with executor_of(tmp_path, WAITING):
        # The thread that starts processes lives on for the next pool.
        pass
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with executor_of(tmp_path, WAITING) as rig:
            identity = process.identify(rig.pid)
            rig.pool.close(5.0)
            assert [end.code for end in rig.exits] == [0]
            assert identity is not None
            assert not process.is_alive(identity)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors

"""Real executors answer calls: values, failures, poison, slots, context."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from pelton.core.call import call_id_text
from support.executor_rig import INSTANCE, executor_of, invocation, new_call_id, pool_of


@dataclasses.dataclass
class Ticket:
    """What a caller passes."""

    text: str


ECHO = {
    "sync": "def run(x): return x\n",
    "async": "async def run(x): return x\n",
}
STREAM = {
    "generator": "def run(n):\n    for i in range(n): yield i\n",
    "async-generator": "async def run(n):\n    for i in range(n): yield i\n",
}


@pytest.mark.parametrize("kind", list(ECHO))
def test_values_come_back_as_they_are(tmp_path: Path, kind: str) -> None:
    """Falsy values included, with their exact types and the time the caller submitted them."""
    values: list[Any] = [None, 0, "", [], False, {}, (), b"", 1.5, {"a": [1, (2, 3)]}, 2**80]
    with executor_of(tmp_path, ECHO[kind], kind=kind, slots=4) as rig:
        for value in values:
            ended = rig.call(value)
            assert ended.failure is None
            assert ended.value == value
            assert type(ended.value) is type(value)
            assert ended.submitted_ms == 77


@pytest.mark.parametrize("kind", list(STREAM))
@pytest.mark.parametrize("length", [0, 1, 1000])
def test_streams_come_back_whole_and_in_order(tmp_path: Path, kind: str, length: int) -> None:
    """Empty and one-item streams too; the outcome follows the last chunk and holds None."""
    with executor_of(tmp_path, STREAM[kind], kind=kind) as rig:
        run = rig.begin(length)
        ended = rig.end_of(run)
        assert (ended.value, ended.failure) == (None, None)
        assert rig.values(run) == list(range(length))


RAISING = """
    import asyncio

    class Mute(Exception):
        def __str__(self): raise ValueError("no words")

    class Heavy(Exception):
        def __reduce__(self): raise TypeError("cannot be pickled")

    def deep(n): return deep(n + 1)

    def fail(how):
        if how == "value": raise ValueError("bad word")
        if how == "mute": raise Mute()
        if how == "heavy": raise Heavy("h")
        if how == "base": raise BaseException("b")
        if how == "exit": raise SystemExit(3)
        if how == "interrupt": raise KeyboardInterrupt()
        if how == "stop": raise StopIteration(1)
        if how == "astop": raise StopAsyncIteration(1)
        if how == "generator": raise GeneratorExit()
        if how == "memory": raise MemoryError()
        if how == "recursion": deep(0)
        if how == "long": raise ValueError("x" * 1_000_000)
        if how == "surrogate": raise ValueError("\\udcff")
        if how == "large": return b"x" * 600_000
        if how == "type": return __import__("threading").Lock()
        if how == "nested":
            inside = []
            for _ in range(100_000): inside = [inside]
            return inside
        return "fine"
"""
FAILING = {
    "value": "ValueError",
    "mute": "worker.Mute",
    "heavy": "worker.Heavy",
    "base": "BaseException",
    "exit": "SystemExit",
    "interrupt": "KeyboardInterrupt",
    "stop": "StopIteration",
    "astop": "StopAsyncIteration",
    "generator": "GeneratorExit",
    "memory": "MemoryError",
    "recursion": "RecursionError",
    "long": "ValueError",
    "surrogate": "ValueError",
    "large": "pelton.errors.PayloadTooLarge",
    "type": "pelton.errors.UnsupportedType",
    "nested": "pelton.errors.UnsupportedType",
}
CODES = {"memory": "RESOURCE_EXHAUSTED"}
OF_VALUES = {"large", "type", "nested"}


@pytest.mark.parametrize("kind", ["sync", "async", "generator", "async-generator"])
def test_every_way_to_fail_is_a_failure_and_the_executor_lives(tmp_path: Path, kind: str) -> None:
    """One executor, all ways after each other, and at the end it still answers."""
    last = {
        "sync": "    def run(how): return fail(how)\n",
        "async": "    async def run(how):\n        await asyncio.sleep(0)\n        return fail(how)\n",
        "generator": "    def run(how):\n        yield 1\n        yield fail(how)\n",
        "async-generator": "    async def run(how):\n        yield 1\n        yield fail(how)\n",
    }[kind]
    with executor_of(tmp_path, RAISING + "\n" + last, kind=kind, slots=2) as rig:
        for how, name in FAILING.items():
            failure = rig.call(how).failure
            assert failure is not None, how
            expected = {name}
            if how in ("stop", "astop") and kind != "sync":
                # Python turns them into RuntimeError where they would end an iteration or a coroutine.
                expected.add("RuntimeError")
            assert failure[0] in expected, how
            code = "INVALID_ARGUMENT" if how in OF_VALUES else CODES.get(how, "UNKNOWN")
            assert failure[3:] == (code, False, -1), how
            assert len(failure[1].encode()) <= 8 * 1024
            assert len(failure[2].encode()) <= 16 * 1024
            if how not in OF_VALUES:
                assert "in fail" in failure[2], how
                assert "pelton" not in failure[2], how
        run = rig.begin("nothing")
        ended = rig.end_of(run)
        assert ended.failure is None
        assert "fine" in (ended.value, *rig.values(run))


def test_bodies_that_are_not_the_call_are_poison(tmp_path: Path) -> None:
    """Undecodable, of another call, of another function: the record is refused and the executor goes on."""
    with executor_of(tmp_path, ECHO["sync"]) as rig:
        call_id = new_call_id()
        bad = [
            b"",
            b"not avro",
            invocation(call_id, 1)[:-2],
            invocation(new_call_id(), 1),
            invocation(call_id, 1, function="other"),
        ]
        for body in bad:
            reason = rig.end_of(rig.send_body(call_id, body)).poison
            assert reason, body
        assert rig.call(1).value == 1


def test_arguments_that_do_not_bind_are_the_callers_mistake(tmp_path: Path) -> None:
    """Code INVALID_ARGUMENT and Python's own words."""
    with executor_of(tmp_path, ECHO["sync"]) as rig:
        failure = rig.call(1, 2).failure
        assert failure is not None
        assert failure[0] == "TypeError"
        assert "takes 1 positional argument but 2 were given" in failure[1]
        assert failure[3] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_context_inside_of_an_attempt(tmp_path: Path, kind: str) -> None:
    """Call id, attempt, delivery, function, instance and deadline are those of the frame."""
    prefix = "async " if kind == "async" else ""
    source = f"""
    from pelton import context
    {prefix}def run():
        c = context()
        return [c.call_id, c.attempt, c.delivery, c.function, c.instance, c.deadline]
    """
    with executor_of(tmp_path, source, kind=kind, slots=2) as rig:
        run = rig.begin(attempt=3, delivery=4, deadline_ms=1_700_000_000_000)
        call_id, attempt, delivery, function, instance, deadline = rig.end_of(run).value
        assert call_id == call_id_text(rig.call_ids[run])
        assert (attempt, delivery, function, instance) == (3, 4, "under-test", INSTANCE)
        assert deadline.timestamp() == 1_700_000_000


MEETING = {
    "sync": """
    import threading
    meeting = threading.Barrier(PARTIES)
    def run(i):
        meeting.wait(15)
        return i
    """,
    "async": """
    import asyncio
    waiting = []
    async def run(i):
        waiting.append(i)
        while len(waiting) < PARTIES: await asyncio.sleep(0.001)
        return i
    """,
}


@pytest.mark.parametrize("kind", list(MEETING))
def test_all_slots_run_at_the_same_time(tmp_path: Path, kind: str) -> None:
    """Calls that wait for each other all get a slot, however quickly they came."""
    with executor_of(tmp_path, MEETING[kind].replace("PARTIES", "32"), kind=kind, slots=32) as rig:
        runs = [rig.begin(i) for i in range(32)]
        assert [rig.end_of(run).value for run in runs] == list(range(32))


COUNTING = {
    "sync": """
    import threading, time
    lock, now, most = threading.Lock(), 0, 0
    def run(i):
        global now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock: now -= 1
        return most
    """,
    "async": """
    import asyncio
    now, most = 0, 0
    async def run(i):
        global now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return most
    """,
}


@pytest.mark.parametrize("kind", list(COUNTING))
def test_never_more_than_slots_run_at_the_same_time(tmp_path: Path, kind: str) -> None:
    """More runs than slots wait inside of the executor."""
    with executor_of(tmp_path, COUNTING[kind], kind=kind, slots=3) as rig:
        runs = [rig.begin(i) for i in range(24)]
        assert max(rig.end_of(run).value for run in runs) == 3


def test_with_one_slot_user_code_runs_on_the_main_thread(tmp_path: Path) -> None:
    """Code that sets signal handlers works; other slots do not disturb it."""
    source = """
    import signal, threading
    def run():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        return threading.current_thread() is threading.main_thread()
    """
    with executor_of(tmp_path, source) as rig:
        assert rig.call().value is True


def test_context_variables_of_one_call_do_not_reach_the_next(tmp_path: Path) -> None:
    """What the module set at import is there, what a call sets dies with it."""
    source = """
    import contextvars
    mark = contextvars.ContextVar("mark")
    mark.set("module")
    def run():
        seen = mark.get("none")
        mark.set("call")
        return seen
    """
    with executor_of(tmp_path, source) as rig:
        assert [rig.call().value for _ in range(3)] == ["module"] * 3


def test_annotated_dataclasses_arrive_as_themselves(tmp_path: Path) -> None:
    """The class comes from the function's annotations, never from a name in the data."""
    source = """
    import dataclasses
    @dataclasses.dataclass
    class Ticket:
        text: str
    def run(ticket: Ticket) -> str:
        return f"{type(ticket).__module__}.{type(ticket).__name__}:{ticket.text}"
    """

    with executor_of(tmp_path, source) as rig:
        assert rig.call(Ticket("hello")).value == "worker.Ticket:hello"


def test_decorated_functions_run_bare(tmp_path: Path) -> None:
    """The executor calls the function inside of Pelton's wrapper, and keeps the wrappers under it."""
    source = """
    import functools
    import pelton
    def twice(f):
        @functools.wraps(f)
        def g(x): return 2 * f(x)
        return g
    @pelton.function(name="under-test")
    @twice
    def run(x): return x + 1
    """
    with executor_of(tmp_path, source) as rig:
        assert rig.call(20).value == 42


def test_an_interrupted_async_call_is_cancelled_and_the_others_are_not(tmp_path: Path) -> None:
    """The task sees CancelledError at its await; the executor goes on."""
    source = """
    import asyncio
    async def run(wait):
        try:
            await asyncio.sleep(3600 if wait else 0)
        except asyncio.CancelledError:
            print("cleaned up")
            raise
        return "done"
    """
    with executor_of(tmp_path, source, kind="async", slots=4) as rig:
        run = rig.begin(True)
        assert rig.call(False).value == "done"
        rig.pool.interrupt(rig.executor, run, 60.0)
        failure = rig.end_of(run).failure
        assert failure is not None
        assert failure[3] == "CANCELLED"
        assert rig.call(False).value == "done"
        rig.wait(lambda: "cleaned up" in rig.lines())


def test_background_tasks_that_exit_do_not_end_the_executor(tmp_path: Path) -> None:
    """SystemExit in a task of user code leaves the loop; the executor takes it up again."""
    source = """
    import asyncio
    kept = []
    async def leave():
        raise SystemExit(7)
    async def run(x):
        if x: kept.append(asyncio.create_task(leave()))
        await asyncio.sleep(0.01)
        return x
    """
    with executor_of(tmp_path, source, kind="async", slots=2) as rig:
        assert rig.call(True).value is True
        assert rig.call(False).value is False
        assert rig.exits == []


def test_stop_finishes_what_runs_and_exits_with_zero(tmp_path: Path) -> None:
    """Running and queued calls end, exit handlers of user code run, the exit code is 0."""
    source = """
    import atexit, pathlib, time
    atexit.register(lambda: pathlib.Path("left").touch())
    def run(i):
        time.sleep(0.05)
        return i
    """
    as_task = source.replace("import atexit", "import asyncio, atexit").replace("def run", "async def run")
    for kind, text in (("sync", source), ("async", as_task.replace("time.sleep", "await asyncio.sleep"))):
        (tmp_path / kind).mkdir()
        with executor_of(tmp_path / kind, text, kind=kind, slots=2) as rig:
            runs = [rig.begin(i) for i in range(5)]
            rig.pool.stop(rig.executor, 30.0)
            assert [rig.end_of(run).value for run in runs] == list(range(5))
            end = rig.wait_exit()
            assert (end.code, end.asked, end.ready) == (0, True, True)
            assert end.peak_memory > 5_000_000
            assert (tmp_path / kind / "bundle" / "left").exists()


def test_an_isolated_executor_runs_beside_the_shared_one(tmp_path: Path) -> None:
    """Two processes, one slot in the isolated one, each with its own end."""
    with pool_of(tmp_path, "import os\ndef run(): return os.getpid()\n", slots=4) as rig:
        shared = rig.start()
        shared_pid = rig.call().value
        isolated = rig.start(isolated=True)
        isolated_pid = rig.call().value
        assert rig.pool.pids() == {shared: shared_pid, isolated: isolated_pid}
        assert shared_pid != isolated_pid != os.getpid()
        rig.pool.stop(isolated, 10.0)
        rig.wait_exit()
        assert rig.exits[0].isolated
        rig.executor = shared
        assert rig.call().value == shared_pid

"""Cancelled calls through real instances: waiting, running, nested, in every moment, with the real client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.client import session
from pelton.client.futures import CallFuture
from pelton.core.call import call_id_text, parse_call_id
from pelton.core.spec import FunctionKind, ParameterSpec
from pelton.errors import CallCancelled, FunctionError
from pelton.protocol.codec import decode_invocation
from pelton.references import function_ref
from pelton.transport.kafka.calls import KafkaTransport
from support.embedded_broker import Broker
from support.worker_instance import Platform, Worker, platform_on, wait_until

pytestmark = pytest.mark.integration

ANY = (ParameterSpec("args", "VAR_POSITIONAL", False), ParameterSpec("kwargs", "VAR_KEYWORD", False))

SOURCE = """
import asyncio, os, time
from pelton import context, function_ref
from pelton.errors import CallCancelled

def note(text):
    with open(os.environ["JOURNAL"], "a") as journal:
        journal.write(text + "\\n")

async def sleeper(key, answer=None):
    note(f"started {key}")
    try:
        await asyncio.sleep(300)
    except asyncio.CancelledError:
        note(f"cancelled {key} {context().cancelled}")
        if answer is not None:
            return answer
        raise

def looker(key, end):
    note(f"started {key}")
    while not context().cancelled:
        time.sleep(0.01)
    note(f"saw {key}")
    if end == "raise":
        raise ValueError("stopped in the middle")
    return end

def deaf(key, seconds):
    note(f"started {key} {os.getpid()}")
    time.sleep(seconds)
    note(f"ended {key}")
    return os.getpid()

def rows(key, n):
    note(f"started {key}")
    try:
        for number in range(n):
            yield number
            time.sleep(0.01)
    finally:
        note(f"closed {key}")

async def arows(key, n):
    try:
        for number in range(n):
            yield number
            await asyncio.sleep(0.01)
    finally:
        note(f"closed {key}")

def parent(key, kind):
    note(f"parent {key}")
    try:
        return function_ref(kind)(f"child-of-{key}")
    except CallCancelled as error:
        note(f"parent of {key} heard: {context().cancelled}")
        raise

async def aparent(key):
    note(f"parent {key}")
    return await function_ref("sleeper").async_call(f"child-of-{key}")

def canceller(key):
    future = function_ref("sleeper").async_call(key)
    future.accepted.result(10)
    asked = future.cancel()
    try:
        future.result(20)
    except CallCancelled:
        return [asked, future.cancelled(), future.cancel()]

def leaver(key):
    for number in function_ref("rows")(key, 100_000):
        if number == 3:
            return number
"""

SYNC, ASYNC = FunctionKind.SYNC, FunctionKind.ASYNC
FUNCTIONS = {
    "sleeper": ASYNC,
    "looker": SYNC,
    "deaf": SYNC,
    "rows": FunctionKind.GENERATOR,
    "arows": FunctionKind.ASYNC_GENERATOR,
    "parent": SYNC,
    "aparent": ASYNC,
    "canceller": SYNC,
    "leaver": SYNC,
}


@pytest.fixture(scope="module")
def platform(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """All functions of this module with two slots each; this process is a client of it."""
    with platform_on(broker.bootstrap_servers, tmp_path_factory.mktemp("cancel")) as platform:
        platform.deploy(SOURCE, FUNCTIONS, slots=2, partitions=2, parameters=ANY)
        session.install(KafkaTransport(platform.config))
        try:
            yield platform
        finally:
            session.close()


@pytest.fixture(scope="module")
def instance(platform: Platform) -> Worker:
    """The instance that most tests share."""
    return platform.start_ready()


def begin(platform: Platform, function: str, key: str, *args: object) -> CallFuture[object]:
    """A call that has begun to run."""
    future: CallFuture[object] = function_ref(function).async_call(key, *args)
    wait_until(lambda: bool(platform.ran(key)), what=f"{function} begins")
    return future


def no_dead_letter(platform: Platform, future: CallFuture[object], function: str) -> bool:
    """Whether a cancelled call left none: it was not given up."""
    identity = parse_call_id(future.call_id)
    return all(letter.call_id != identity for letter in platform.dead_letters(function))


# ---- what runs ----


def test_a_running_async_call_gets_a_cancelled_error(platform: Platform, instance: Worker) -> None:
    """It is told at once, `context()` says so too, and its caller gets `CallCancelled` with the reason."""
    future = begin(platform, "sleeper", "a1")
    began = time.monotonic()
    assert future.cancel()
    with pytest.raises(CallCancelled, match="its caller cancelled the future") as caught:
        future.result(20)
    assert time.monotonic() - began < 4, "that took the executor's life instead of telling it"
    assert platform.ran("cancelled a1") == ["cancelled a1 True"]
    assert (caught.value.code, caught.value.attempt) == ("CANCELLED", 1)
    assert future.cancelled()
    assert future.cancel() is False
    assert no_dead_letter(platform, future, "sleeper")


def test_what_a_cancelled_call_returns_all_the_same_is_its_value(
    platform: Platform, instance: Worker
) -> None:
    """A function that catches the cancellation and returns has succeeded."""
    future = begin(platform, "sleeper", "a2", "partial")
    assert future.cancel()
    assert future.result(20) == "partial"
    assert not future.cancelled()


@pytest.mark.parametrize("end", ["done", "raise"])
def test_a_running_sync_call_sees_that_it_is_cancelled(
    platform: Platform, instance: Worker, end: str
) -> None:
    """`context().cancelled` turns true; what it returns counts, what it raises is part of the message."""
    future = begin(platform, "looker", f"s-{end}", end)
    assert future.cancel()
    if end == "done":
        assert future.result(20) == "done"
    else:
        with pytest.raises(CallCancelled, match="ended with ValueError: stopped in the middle") as caught:
            future.result(20)
        assert "looker" in caught.value.traceback


def test_a_deaf_call_loses_its_executor_after_the_grace(platform: Platform, instance: Worker) -> None:
    """It ends after 5 s with its executor; it is not run again, and the function goes on in a new one."""
    future = begin(platform, "deaf", "d1", 120)
    pid = int(platform.ran("started d1")[0].split()[-1])
    began = time.monotonic()
    assert future.cancel()
    with pytest.raises(CallCancelled):
        future.result(30)
    assert 4.9 < time.monotonic() - began < 15
    assert function_ref("deaf")("d2", 0) != pid
    assert len(platform.ran("started d1")) == 1
    assert not platform.ran("ended d1")
    assert no_dead_letter(platform, future, "deaf")


@pytest.mark.parametrize("function", ["rows", "arows"])
def test_leaving_a_stream_closes_the_generator(platform: Platform, instance: Worker, function: str) -> None:
    """`break` is enough: the generator is closed at its next chunk, long before its end."""
    key = f"left-{function}"
    for number in function_ref(function)(key, 100_000):
        if number == 5:
            break
    wait_until(lambda: bool(platform.ran(f"closed {key}")), what="the generator is closed")


def test_ctrl_c_in_a_plain_call_cancels_it(platform: Platform, instance: Worker, tmp_path: Path) -> None:
    """A real program, a real SIGINT: the call ends in the instance, and the program says what it did."""
    program = (
        "import pelton\n"
        f"pelton.connect({platform.config.bootstrap_servers!r}, namespace={platform.namespace!r})\n"
        "pelton.function_ref('sleeper')('ctrl-c')\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: bool(platform.ran("started ctrl-c")), what="the call begins")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=20)
    finally:
        child.kill()
    assert "pelton: interrupted; cancelling call " in said
    assert child.returncode in (1, 130, -signal.SIGINT)
    wait_until(lambda: bool(platform.ran("cancelled ctrl-c")), what="the call is cancelled")


# ---- what waits ----


def test_a_waiting_call_never_starts(platform: Platform, instance: Worker) -> None:
    """Both slots are taken: the cancelled call behind them ends now, and nothing of it runs."""
    busy = [begin(platform, "looker", f"busy-{number}", "done") for number in range(2)]
    waiting = [function_ref("looker").async_call(f"waits-{number}", "done") for number in range(4)]
    for future in waiting:
        future.accepted.result(10)
    for future in waiting[:3]:
        assert future.cancel()
    for future in waiting[:3]:
        with pytest.raises(CallCancelled) as caught:
            future.result(20)
        assert caught.value.attempt == 0
    for future in [*busy, waiting[3]]:
        future.cancel()
    assert [future.result(30) for future in busy] == ["done", "done"]
    assert not platform.ran("started waits-0")
    assert not platform.ran("started waits-1")
    assert not platform.ran("started waits-2")


def test_cancelling_what_is_unknown_or_over_does_nothing(platform: Platform, instance: Worker) -> None:
    """The function serves on, and the value of the call that had ended stays."""
    done = function_ref("deaf").async_call("over", 0)
    value = done.result(20)
    transport = session.current().transport
    for call_id in (os.urandom(16), parse_call_id(done.call_id)):
        transport.cancel(call_id, "r", lambda error: None)
    assert session.flush(10) == 0
    function_ref("deaf")("after", 0)
    assert function_ref("deaf").attach(done.call_id).result(20) == value


# ---- calls that call ----


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_descendants_go_along(platform: Platform, instance: Worker, kind: str) -> None:
    """The parent is cancelled by its id alone; the child is told, both end as cancelled."""
    if kind == "sync":
        future = begin(platform, "parent", "p-sync", "sleeper")
    else:
        future = begin(platform, "aparent", "p-async")
    wait_until(lambda: bool(platform.ran(f"started child-of-p-{kind}")), what="the child runs")
    assert future.cancel()
    with pytest.raises(CallCancelled):
        future.result(20)
    wait_until(lambda: bool(platform.ran(f"cancelled child-of-p-{kind}")), what="the child is told")
    outcomes = [
        history.outcome
        for history in platform.outcomes("sleeper").values()
        if history.outcome is not None and history.outcome.failure is not None
    ]
    assert any(future.call_id in outcome.failure.message for outcome in outcomes if outcome.failure)


def test_a_function_cancels_what_it_called(platform: Platform, instance: Worker) -> None:
    """`future.cancel()` inside a function: through the channel, with the same answers."""
    assert function_ref("canceller")("inner") == [True, True, False]
    assert platform.ran("started inner") in ([], ["started inner"])


def test_a_function_that_leaves_a_stream_cancels_it(platform: Platform, instance: Worker) -> None:
    """A nested stream is left like any other."""
    assert function_ref("leaver")("nested-left") == 3
    wait_until(lambda: bool(platform.ran("closed nested-left")), what="the nested generator is closed")


def test_a_cancelled_child_is_an_error_of_its_parent(platform: Platform, instance: Worker) -> None:
    """Somebody cancels the child alone: the parent hears it, and fails with it as with any error."""
    future = begin(platform, "parent", "p-alone", "sleeper")
    wait_until(lambda: bool(platform.ran("started child-of-p-alone")), what="the child runs")
    records = platform.read(platform.topics.invocations("sleeper"))
    asked = [decode_invocation(record.value) for record in records]
    (child,) = [each.call_id for each in asked if each.parent == parse_call_id(future.call_id)]
    session.current().transport.cancel(child, "somebody else", lambda error: None)
    with pytest.raises(FunctionError, match="somebody else") as caught:
        future.result(20)
    assert not isinstance(caught.value, CallCancelled)
    assert platform.ran("parent of p-alone heard") == ["parent of p-alone heard: False"]


# ---- instances that come and go ----


def test_a_cancellation_older_than_the_instance_counts(broker: Broker, tmp_path: Path) -> None:
    """Asked for while nobody serves; the instance that comes reads it first, and again after a restart."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        platform.deploy(SOURCE, {"looker": SYNC}, slots=2, partitions=2, parameters=ANY)
        session.install(KafkaTransport(platform.config))
        try:
            looker = function_ref("looker")
            futures = [looker.async_call(f"old-{number}", "done") for number in range(20)]
            for future in futures:
                future.accepted.result(10)
            for future in futures:
                assert future.cancel()
            assert session.flush(10) == 0
            first = platform.start_ready()
            for future in futures:
                with pytest.raises(CallCancelled):
                    future.result(30)
            assert first.end() == 0
            late = looker.async_call("late", "done")
            late.accepted.result(10)
            late.cancel()
            assert session.flush(10) == 0
            platform.start_ready()
            with pytest.raises(CallCancelled):
                late.result(30)
            assert not platform.ran("started")
        finally:
            session.close()


def test_a_cancelled_call_whose_instance_is_killed_does_not_run_again(broker: Broker, tmp_path: Path) -> None:
    """Told and killed before it could end: the next owner reads the request before it starts anything."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        platform.deploy(SOURCE, {"deaf": SYNC}, slots=2, partitions=2, parameters=ANY)
        session.install(KafkaTransport(platform.config))
        try:
            first = platform.start_ready()
            future = begin(platform, "deaf", "k1", 120)
            other = begin(platform, "deaf", "k2", 1)
            assert future.cancel()
            assert session.flush(10) == 0
            first.kill()
            platform.start_ready()
            with pytest.raises(CallCancelled):
                future.result(40)
            assert isinstance(other.result(40), int)
            assert len(platform.ran("started k1")) == 1
        finally:
            session.close()


def test_a_call_that_moves_while_it_is_cancelled_ends_once(broker: Broker, tmp_path: Path) -> None:
    """A second instance joins while calls run and are cancelled: whoever has them, each ends as cancelled."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        platform.deploy(SOURCE, {"sleeper": ASYNC}, slots=16, partitions=4, parameters=ANY)
        session.install(KafkaTransport(platform.config))
        try:
            platform.start_ready()
            sleeper = function_ref("sleeper")
            futures = [sleeper.async_call(f"m-{number}") for number in range(12)]
            wait_until(lambda: len(platform.ran("started m-")) == 12, what="all run")
            second = platform.start()
            for future in futures[:6]:
                future.cancel()
            wait_until(lambda: len(platform.owners("sleeper")) == 2, what="both own partitions")
            for future in futures[6:]:
                future.cancel()
            for future in futures:
                with pytest.raises(CallCancelled):
                    future.result(30)
            assert len(platform.ran("started m-")) == 12, "one of them was started again"
            assert second.child.poll() is None
        finally:
            session.close()
        for future in futures:
            history = platform.history("sleeper", parse_call_id(future.call_id))
            kinds = [result.kind.name for result in history.results]
            assert kinds.count("OUTCOME") == 1, (call_id_text(parse_call_id(future.call_id)), kinds)

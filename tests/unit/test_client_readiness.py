"""Readiness and patience: what is missing, said in words, early enough."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pelton.client import readiness, session
from pelton.client.connection import Connection
from pelton.client.readiness import missing, wait_ready
from pelton.errors import NotReady
from pelton.references import function_ref
from support.callers import (
    ScriptedDirectory,
    ScriptedTransport,
    chunk,
    container_of,
    deployer,
    spec_of,
    status_of,
)

SPEC = spec_of("classify")


@pytest.fixture
def directory() -> ScriptedDirectory:
    """An empty directory."""
    return ScriptedDirectory()


@pytest.fixture
def connection() -> Iterator[Connection]:
    """This process's connection over a scripted transport; `classify` is deployed and nobody serves it."""
    transport = ScriptedTransport()
    transport.scripted.change(SPEC, container_of(SPEC))
    yield session.install(transport)
    session.close()


def test_a_live_deployer_is_enough_when_instances_start_on_demand(directory: ScriptedDirectory) -> None:
    """min_instances=0: whoever starts instances must be alive."""
    directory.change(SPEC, container_of(SPEC))
    assert missing(directory, "classify") == [
        "No deployer is alive to start instances; start one with `pelton up`.",
        "No instance of container 'classify' is alive.",
    ]
    directory.change(deployer())
    assert missing(directory, "classify") == []


def test_instances_that_must_be_there_are_waited_for(directory: ScriptedDirectory) -> None:
    """min_instances=1: an instance has to be ready, of the current version, and serve the function."""
    directory.change(SPEC, container_of(SPEC, min_instances=1), deployer())
    assert missing(directory, "classify") == ["No instance of container 'classify' is alive."]
    directory.change(replace(status_of(SPEC), version=0))
    assert missing(directory, "classify") == ["No instance of container 'classify' is alive."]
    directory.change(status_of(SPEC, "starting", "loading the model"))
    assert missing(directory, "classify") == ["Instance classify-1 is starting: loading the model."]
    directory.change(status_of(SPEC))
    assert missing(directory, "classify") == []


def test_instances_that_fail_are_told(directory: ScriptedDirectory) -> None:
    """A function whose only instance cannot start is not ready, although a deployer lives."""
    directory.change(SPEC, container_of(SPEC), deployer(), status_of(SPEC, "failed", "No module named 'x'"))
    assert missing(directory, "classify") == ["Instance classify-1 is failed: No module named 'x'."]


def test_missing_specs_are_told(directory: ScriptedDirectory) -> None:
    """An unknown name, a version that is not there yet, a container that is not there."""
    assert missing(directory, "clasify") == ["Function 'clasify' is not deployed; no others are."]
    directory.change(SPEC)
    assert "close name: classify" in missing(directory, "clasify")[0]
    assert missing(directory, "classify", 2) == [
        "Function 'classify' is deployed in version 1, not yet in version 2."
    ]
    assert "Container 'classify'" in missing(directory, "classify")[0]


def test_waiting_ends_when_the_function_appears(directory: ScriptedDirectory) -> None:
    """An unknown name is waited for."""
    timer = threading.Timer(0.05, lambda: directory.change(SPEC, container_of(SPEC), deployer()))
    timer.start()
    wait_ready(directory, "classify", None, 10)
    timer.join()


def test_waiting_says_after_a_while_what_is_missing(
    directory: ScriptedDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr with close names, then NotReady with the reasons when time runs out."""
    monkeypatch.setattr(readiness, "QUIET_SECONDS", 0.01)
    directory.change(SPEC)
    with pytest.raises(NotReady, match=r"not ready within 0\.05 s") as caught:
        wait_ready(directory, "clasify", None, 0.05)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pelton: waiting for function 'clasify': Function 'clasify' is not deployed; "
        "deployed ones with a close name: classify."
    ]
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.reasons == (lines[0].partition("'clasify': ")[2],)


def test_wait_ready_of_a_function_asks_the_directory(connection: Connection) -> None:
    """Through the connection of the process, for the version that is referred to."""
    with pytest.raises(NotReady, match="No deployer is alive"):
        function_ref("classify").wait_ready(timeout=0.01)
    scripted = connection.directory
    assert isinstance(scripted, ScriptedDirectory)
    scripted.change(deployer())
    function_ref("classify").wait_ready(timeout=1)
    with pytest.raises(NotReady, match="not yet in version 2"):
        function_ref("classify", version=2).wait_ready(timeout=0.01)


def looked_at(connection: Connection, ahead_ms: int = 6000) -> None:
    """The patience of a connection looks at its calls when they are this old."""
    assert isinstance(connection.transport, ScriptedTransport)
    connection.transport.ahead_ms += ahead_ms
    connection._patience.look()


def test_a_call_nobody_starts_is_explained(
    connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """After 5 s one line for all calls of a function says why, and is not repeated."""
    futures = [function_ref("classify").async_call(n) for n in range(3)]
    looked_at(connection, 4000)
    assert capsys.readouterr().err == ""
    looked_at(connection)
    line = capsys.readouterr().err
    assert line.startswith("pelton: 3 calls of 'classify' not known to have started in 5 s: No deployer")
    futures.append(function_ref("classify").async_call(4))
    looked_at(connection)
    assert capsys.readouterr().err == ""


def test_waiting_its_turn_is_told_apart_from_nobody_there(
    connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """A live instance whose slots are taken is another reason than no instance."""
    scripted = connection.directory
    assert isinstance(scripted, ScriptedDirectory)
    scripted.change(deployer(), status_of(SPEC))
    future = function_ref("classify").async_call(1)
    looked_at(connection)
    assert "All 2 slots of 1 live instance(s) of at most 1 are taken" in capsys.readouterr().err
    assert not future.done()


def test_calls_that_started_or_ended_are_not_mentioned(
    connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what waits is worth a line."""
    transport = connection.transport
    assert isinstance(transport, ScriptedTransport)
    ended = function_ref("classify").async_call(1)
    transport.answer(transport.last.call_id, 1)
    started = function_ref("classify").async_call(2)
    transport.deliver(transport.last.call_id, chunk(transport.last.call_id, 0, "x"))
    looked_at(connection)
    assert capsys.readouterr().err == ""
    assert ended.done()
    assert started.running()


def test_one_thread_watches_and_leaves_when_nothing_is_left(connection: Connection) -> None:
    """No thread per call, and none that outlives its work."""
    futures = [function_ref("classify").async_call(n) for n in range(50)]
    watching = [thread for thread in threading.enumerate() if thread.name == "pelton-patience"]
    assert len(watching) == 1
    session.close()
    watching[0].join(5)
    assert not watching[0].is_alive()
    assert all(future.done() for future in futures)

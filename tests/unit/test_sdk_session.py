"""Process-wide connection: light to import, refused where it must be, anew after forks, flushed at exit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pelton
from pelton.client import session
from pelton.client.connection import Connection
from pelton.errors import DefinitionError, PlatformNotRunning, UnsupportedOption
from pelton.references import function_ref
from support.callers import ScriptedTransport, spec_of

TESTS = Path(__file__).parents[1]


def run(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that can import the support code of tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PELTON_")}
    environment["PYTHONPATH"] = str(TESTS)
    return subprocess.run(
        [sys.executable, *arguments, "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )


def test_importing_pelton_loads_almost_nothing() -> None:
    """No Kafka client, no codec, no asyncio, no logging; names come on first use."""
    done = run("import sys, pelton; print(*sys.modules)")
    loaded = set(done.stdout.split())
    heavy = {"confluent_kafka", "fastavro", "msgspec", "asyncio", "logging", "threading", "dataclasses"}
    assert not heavy & (loaded - set(run("import sys; print(*sys.modules)").stdout.split()))
    assert "pelton.decorators" not in loaded


def test_declaring_and_referring_load_no_kafka_client() -> None:
    """A worker file is imported in executors, which have no client."""
    done = run(
        """
        import sys
        from pelton import *
        @function
        def f(x): ...
        function_ref("g"); logger.info
        print("confluent_kafka" in sys.modules, "fastavro" in sys.modules)
        """
    )
    assert done.stdout.strip() == "False False"


def test_every_public_name_is_there() -> None:
    """`__all__`, `dir()` and attribute access agree; an unknown name is an AttributeError."""
    for name in pelton.__all__:
        assert getattr(pelton, name) is not None
    assert set(pelton.__all__) <= set(dir(pelton))
    with pytest.raises(AttributeError, match="no attribute 'functoin'"):
        pelton.functoin


def test_without_a_platform_the_contexts_tried_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call says where it looked and how to start a platform."""
    monkeypatch.delenv("PELTON_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setenv("PELTON_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlatformNotRunning, match="pelton up"):
        function_ref("f")(1)


def test_a_refusal_holds_until_it_is_lifted() -> None:
    """Executors and deploy loads refuse every use of the platform with an error of their own."""
    transport = ScriptedTransport()
    transport.scripted.change(spec_of("f"))
    session.install(transport)
    before = session.refuse(lambda: DefinitionError("not here"))
    try:
        for use in (
            lambda: function_ref("f")(1),
            lambda: function_ref("f").submit(1),
            lambda: function_ref("f").wait_ready(),
            lambda: function_ref("f").map([1]),
            session.connect,
        ):
            with pytest.raises(DefinitionError, match="not here"):
                use()
    finally:
        session.refuse(before)
    function_ref("f").submit(1)
    assert len(transport.sent) == 1
    session.close()


def test_connecting_is_refused_where_an_instance_provides_the_connection() -> None:
    """User code in an executor has no way to a platform but the one of its instance."""
    transport = ScriptedTransport()
    transport.scripted.change(spec_of("f"))
    session.close()
    session.provide(lambda: Connection(transport))
    try:
        function_ref("f").submit(1)
        assert len(transport.sent) == 1
        with pytest.raises(UnsupportedOption, match="leave it out"):
            session.connect("localhost:1")
    finally:
        session.provide(None)
        session.close()


PROGRAM = """
    from support.callers import ScriptedTransport, spec_of
    from pelton.client import session
    from pelton import function_ref
    from pelton.errors import SubmitFailed
    transport = ScriptedTransport()
    transport.scripted.change(spec_of("f"))
    session.install(transport)
"""


def test_the_end_of_a_program_flushes_and_counts_aloud() -> None:
    """What Kafka did not acknowledge, or refused, is told, and the program has failed."""
    done = run(
        PROGRAM
        + """
    a, b = function_ref("f").submit(1), function_ref("f").submit(2)
    transport.accept(list(transport.sent)[0], SubmitFailed("no broker"))
    transport.unacknowledged = 1
    """
    )
    assert done.returncode == 1
    assert "1 call(s) of 'f' were not accepted by Kafka: no broker" in done.stderr
    assert "1 call(s) were not acknowledged by Kafka within 10 s" in done.stderr


def test_a_program_with_open_calls_ends() -> None:
    """Waiting threads of the library never keep a program alive, and a clean end is silent."""
    done = run(
        PROGRAM + "    future = function_ref('f').async_call(1)\n    transport.accept(transport.last.call_id)"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_connects_anew() -> None:
    """The parent's connection is left alone in the child: its threads did not come along."""
    done = run(
        PROGRAM
        + """
    import os
    future = function_ref("f").async_call(1)
    child = os.fork()
    if child == 0:
        os.environ["PELTON_HOME"] = "/nonexistent"
        os.chdir("/")
        try:
            session.current()
        except Exception as error:
            os.write(1, type(error).__name__.encode())
        session.install(ScriptedTransport())
        os.write(1, b" %d" % len(session.current().calls))
        os._exit(0)
    os.waitpid(child, 0)
    transport.accept(transport.last.call_id)
    assert session.current().transport is transport and len(session.current().calls) == 1
    """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("PlatformNotRunning 0", "", 0)


def test_worker_processes_flush_what_they_sent() -> None:
    """Processes of `multiprocessing` leave without atexit; their sends are flushed all the same."""
    done = run(
        """
        import multiprocessing, sys
        from support.callers import ScriptedTransport, spec_of

        class Loud(ScriptedTransport):
            def close(self, timeout_s):
                print("flushed", flush=True)
                return 0

        def work():
            import pelton.transport.kafka.calls as calls
            from pelton.client import session
            calls.KafkaTransport = lambda config: Loud()
            import os
            os.environ["PELTON_BOOTSTRAP_SERVERS"] = "127.0.0.1:1"
            session.current()

        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
        """
    )
    assert (done.stdout, done.stderr) == ("flushed\n", "")

"""The commands of `pelton` as people type them, against one running platform."""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pelton_platform import process
from support.local_platform import LocalPlatform, local_platform, wait_for

# Processes of a whole platform start and stop here, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)

UNKNOWN_CALL = "01a2052e-499b-7007-b552-cae39d3dd46b"

WORDS = """
    import pelton

    @pelton.function
    def join(*words: str, sep: str = " ") -> str:
        \"\"\"Joins words.

        More about it.
        \"\"\"
        print("joining", len(words))
        pelton.logger.info("joined", count=len(words))
        return sep.join(map(str, words))

    @pelton.function
    def spell(word: str):
        for letter in word:
            yield letter

    @pelton.function
    def fail() -> None:
        raise ValueError("bad luck")

    @pelton.function
    def kinds(*values):
        return [type(value).__name__ for value in values]
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """One platform for the module, with the functions of WORDS."""
    with local_platform(tmp_path_factory.mktemp("cli")) as running:
        running.deploy("words.py", WORDS)
        yield running


def test_cli_call_prints_the_value(platform: LocalPlatform) -> None:
    """Arguments are JSON or text, key=value is a keyword, and the value comes on stdout as it is."""
    assert platform.run("call", "join", "a", "2", "sep=-").stdout == "a-2\n"
    assert platform.run("call", "kinds", "1", "1.5", "true", "null", "[1]", '"5"', "x").stdout == (
        '["int", "float", "bool", "NoneType", "list", "str", "str"]\n'
    )
    answer = platform.json("call", "join", "a", "b")
    assert answer["value"] == "a b"
    assert re.fullmatch(r"[0-9a-f-]{36}", answer["call_id"])


def test_cli_call_prints_a_stream_chunk_by_chunk(platform: LocalPlatform) -> None:
    """Each chunk is a line; with --json each one an object, and the end is one as well."""
    assert platform.run("call", "spell", "abc").stdout == "a\nb\nc\n"
    lines = [json.loads(line) for line in platform.run("call", "spell", "ab", "--json").stdout.splitlines()]
    assert lines[:2] == [{"chunk": 0, "value": "a"}, {"chunk": 1, "value": "b"}]
    assert lines[2]["chunks"] == 2


def test_cli_call_shows_its_logs(platform: LocalPlatform) -> None:
    """With --logs what the call prints and logs comes on stderr, the value alone on stdout."""
    done = platform.run("call", "join", "a", "--logs")
    assert done.stdout == "a\n"
    assert "stdout joining 1" in done.stderr
    assert "joined count=1" in done.stderr


def test_cli_failed_call_is_told_with_its_remote_traceback(platform: LocalPlatform) -> None:
    """An exception of user code gives exit code 1, its own words, and the remote traceback, not ours."""
    failed = platform.run("call", "fail", code=1)
    assert failed.stdout == ""
    assert "error: ValueError: bad luck (UNKNOWN, call " in failed.stderr
    assert 'raise ValueError("bad luck")' in failed.stderr
    assert "pelton_platform/cli" not in failed.stderr
    error = platform.json("call", "fail", code=1)["error"]
    assert (error["message"], error["code"], error["attempt"]) == ("bad luck", "UNKNOWN", 1)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("call", "jion"), "Function 'jion' is not deployed; deployed ones with a close name: join"),
        (("call", "spell"), "missing 1 required positional argument: 'word'. Nothing was sent"),
        (("calls", "show", UNKNOWN_CALL), "nothing is known of call"),
        (("calls", "ls", "--function", "nope"), "function 'nope' is not deployed"),
        (("deploy", "nothing.py"), "is no Python file"),
    ],
)
def test_cli_mistakes_are_one_line(platform: LocalPlatform, words: tuple[str, ...], complaint: str) -> None:
    """What Pelton knows to be wrong is one line on stderr and exit code 1, never a traceback."""
    failed = platform.run(*words, code=1)
    assert complaint in failed.stderr
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
    assert failed.stdout == ""


def test_cli_functions_are_listed(platform: LocalPlatform) -> None:
    """`functions` names each one with version, kind, container and the first line of its description."""
    rows = {row["name"]: row for row in platform.json("functions")}
    assert {"join", "spell", "fail", "kinds"} <= set(rows)
    assert rows["join"]["description"] == "Joins words."
    assert (rows["spell"]["kind"], rows["spell"]["container"]) == ("generator", "spell")
    text = platform.run("functions").stdout
    assert re.search(r"^join +1 +sync +join +0 +Joins words\.$", text, re.MULTILINE)


def test_cli_ps_names_live_executors(platform: LocalPlatform) -> None:
    """`ps` shows instances with the pids of coordinator and executors, and containers at rest."""
    platform.run("call", "join", "a")

    def ready() -> list[dict[str, object]]:
        rows = platform.json("ps")
        return [row for row in rows if row["container"] == "join" and row["state"] == "ready"]

    row = wait_for(ready, "a ready instance")[0]
    executors = row["executors"]
    assert isinstance(executors, list)
    assert executors
    for pid in (row["pid"], *executors):
        assert isinstance(pid, int)
        assert process.identify(pid) is not None
    assert str(executors[0]) in platform.run("ps").stdout


@pytest.mark.parametrize("hours", [-30, 30])
def test_cli_goes_by_the_clock_of_the_broker(platform: LocalPlatform, hours: int) -> None:
    """On a machine whose clock is off by more than a day instances, calls and lines are still found."""
    assert platform.run("call", "join", "a", "clock").stdout == "a clock\n"
    program = (
        "import time; real = time.time_ns; "
        f"time.time_ns = lambda: real() + {hours * 3600} * 10**9; "
        "from pelton_platform.cli.main import main; main()"
    )

    def said(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            env=platform.env,
            cwd=platform.work,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    rows = json.loads(said("ps", "--json"))
    assert [row["state"] for row in rows if row["container"] == "join"] == ["ready"]
    listed = said("calls", "ls", "--function", "join", "--since", "1h")
    assert "succeeded" in listed
    assert "-" not in listed.splitlines()[1].split()[4]
    assert "joined" in said("logs", "join", "--since", "1h")


def test_cli_logs_by_function_and_by_call(platform: LocalPlatform) -> None:
    """`logs` finds lines by function and by call id, and with --json all that is known of a line."""
    first = platform.json("call", "join", "a")["call_id"]
    second = platform.json("call", "join", "a", "b")["call_id"]
    wait_for(
        lambda: {first, second} <= {line["call_id"] for line in lines_of(platform, "join")},
        "the lines of both calls",
    )
    texts = [(line["text"], line["fields"]) for line in lines_of(platform, second)]
    assert ("joining 2", {}) in texts
    assert ("joined", {"count": "2"}) in texts
    assert all("joining 1" not in text for text, _ in texts)


def lines_of(platform: LocalPlatform, name: str) -> list[dict[str, Any]]:
    """The log lines of a function or call."""
    return [json.loads(line) for line in platform.run("logs", name, "--json").stdout.splitlines()]


def test_cli_logs_are_followed(platform: LocalPlatform) -> None:
    """`logs -f` prints what comes until Ctrl-C."""
    with platform.start("logs", "join", "-f", "--tail", "0") as command:
        output = command.stdout
        assert output is not None
        try:
            # Called again and again: the first ones may come before the command follows.
            def comes() -> bool:
                platform.run("call", "join", "a")
                return bool(select.select([output], [], [], 1.0)[0])

            wait_for(comes, "a followed line", 60)
            line = output.readline()
        finally:
            command.send_signal(signal.SIGINT)
            command.communicate(timeout=20)
    assert "join" in line
    assert command.returncode == 130


def test_cli_calls_from_submit_to_result(platform: LocalPlatform) -> None:
    """`call --submit` prints an id; ls, show and result tell the same story of it, also for failures."""
    call = platform.run("call", "join", "x", "y", "--submit").stdout.strip()
    platform.await_state(call, "succeeded")
    assert platform.run("calls", "result", call).stdout == "x y\n"
    assert platform.json("calls", "result", call)["value"] == "x y"
    shown = platform.json("calls", "show", call)
    assert (shown["function"], shown["attempt"], shown["error"]) == ("join", 1, None)
    failed = platform.json("call", "fail", code=1)["call_id"]
    assert "ValueError: bad luck" in platform.run("calls", "result", failed, code=1).stderr
    states = {row["call_id"]: row["state"] for row in platform.json("calls", "ls")}
    assert (states[call], states[failed]) == ("succeeded", "failed")
    only = platform.json("calls", "ls", "--state", "failed", "--function", "fail")
    assert {row["state"] for row in only} == {"failed"}
    streamed = [
        json.loads(line) for line in platform.run("call", "spell", "ab", "--json").stdout.splitlines()
    ]
    assert platform.run("calls", "result", streamed[-1]["call_id"]).stdout == "a\nb\n"


def test_cli_running_and_waiting_calls_are_told_apart(platform: LocalPlatform, tmp_path: Path) -> None:
    """With one slot taken by a long call, ls shows that one as running and the next as waiting."""
    gate = tmp_path / "gate"
    platform.deploy(
        "slow.py",
        f"""
        import os, time, pelton

        @pelton.function
        def slow() -> str:
            while not os.path.exists({str(gate)!r}):
                time.sleep(0.01)
            return "done"
        """,
    )
    first = platform.run("call", "slow", "--submit").stdout.strip()

    platform.await_state(first, "running")
    second = platform.run("call", "slow", "--submit").stdout.strip()
    platform.await_state(second, "waiting")
    rows = {row["name"]: row for row in platform.json("functions")}
    assert rows["slow"]["unfinished"] == 2
    assert f"call {second} is waiting" in platform.run("calls", "result", second, code=1).stderr
    gate.touch()
    for call in (first, second):
        platform.await_state(call, "succeeded")


def test_cli_doctor_is_content(platform: LocalPlatform) -> None:
    """On a sound platform every check passes, the broker answers and the clocks agree."""
    findings = {one["check"]: one for one in platform.json("doctor")}
    assert set(findings) >= {
        "python", "java", "jars", "home", "disk", "payloads", "port", "orphans", "platform", "broker",
        "clock",
    }  # fmt: skip
    assert {one["state"] for one in findings.values()} <= {"ok", "warning"}
    assert findings["broker"]["state"] == "ok"
    assert "ok   broker" in platform.run("doctor").stdout


def test_cli_version(platform: LocalPlatform) -> None:
    """`version` names Pelton and Python."""
    assert platform.json("version")["pelton"] == "0.1.0"


def test_cli_help_loads_little() -> None:
    """`pelton --help` loads neither the Kafka client nor pydantic, structlog or rich: it answers at once."""
    program = (
        "import sys\nfrom pelton_platform.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'confluent_kafka', 'pydantic', 'structlog', 'rich', 'psutil', 'fastavro'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)

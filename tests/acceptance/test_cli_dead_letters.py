"""Retries and dead letters as people meet them: the example of the guide, and `pelton dlq`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton_platform import process
from support.local_platform import LocalPlatform, local_platform, wait_for

pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).parents[2]
LUCK = """
    import pathlib
    import pelton

    HERE = pathlib.Path(__LUCK__)

    @pelton.function
    def draw(number: int) -> int:
        if not (HERE / "lucky").exists():
            raise (ValueError if number % 2 else KeyError)(f"bad luck {number}")
        return number

    class Word:
        def __init__(self, text): self.text = text

    @pelton.function
    def keep(word):
        if not (HERE / "lucky").exists():
            raise RuntimeError("bad luck")
        return word.text
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """One platform for the module."""
    with local_platform(tmp_path_factory.mktemp("dlq")) as running:
        yield running


def test_example_of_the_guide_retries(platform: LocalPlatform, tmp_path: Path) -> None:
    """Three attempts, one after the other; the service of timers runs beside, and comes back when it dies."""
    folder = tmp_path / "retries"
    shutil.copytree(ROOT / "docs/examples/retries", folder)
    platform.run("deploy", str(folder / "orders.py"))
    assert platform.run("call", "reserve", "o1", str(tmp_path)).stdout.strip() == "3"
    assert (tmp_path / "o1").read_text().split() == ["1", "2", "3"]
    failed = platform.run("call", "status", "o1", code=1).stderr
    assert "URLError" in failed
    assert "attempt 3" in failed
    pid = wait_for(lambda: platform.state().cron_pid, "the cron service", 60, platform.logs)
    platform.kill(pid)
    again = wait_for(
        lambda: platform.state().cron_pid not in (0, pid) and platform.state().cron_pid,
        "another cron service",
        60,
        platform.logs,
    )
    assert process.identify(again) is not None


def test_dead_letters_are_listed_replayed_and_forgotten(platform: LocalPlatform, tmp_path: Path) -> None:
    """By function, type and code; replayed once, under new ids, with the outcome of a new call."""
    platform.deploy("luck.py", LUCK.replace("__LUCK__", json.dumps(str(tmp_path))))
    for number in range(4):
        platform.run("call", "draw", str(number), code=1)
    found = platform.json("dlq", "ls", "draw")
    assert len(found) == 4
    messages = {each["reason"]["message"] for each in found}
    assert messages == {"'bad luck 0'", "bad luck 1", "'bad luck 2'", "bad luck 3"}
    assert len(platform.json("dlq", "ls", "draw", "--type", "KeyError")) == 2
    assert platform.json("dlq", "ls", "draw", "--code", "UNAVAILABLE") == []
    assert platform.json("dlq", "ls", "draw", "--until", "1h") == []
    shown = platform.run("dlq", "show", found[0]["call_id"]).stdout
    assert "KeyError" in shown or "ValueError" in shown
    assert "Traceback" in shown
    lines = platform.run("dlq", "export", "-", "--function", "draw").stdout.splitlines()
    assert {json.loads(line)["call_id"] for line in lines} == {each["call_id"] for each in found}
    (tmp_path / "lucky").touch()
    plan = platform.json("dlq", "replay", "draw", "--type", "ValueError", "--dry-run")
    assert plan == {"dry_run": True, "functions": {"draw": 2}, "skipped": 0}
    rows = platform.json("dlq", "replay", "draw", "--type", "ValueError")
    assert [row["error"] for row in rows] == [None, None]
    values = {platform.run("calls", "result", row["replayed_as"], code=None).stdout for row in rows}
    wait_for(
        lambda: all(
            platform.json("calls", "show", row["replayed_as"])["state"] == "succeeded" for row in rows
        ),
        f"the replayed calls ({values})",
        60,
        platform.logs,
    )
    assert platform.json("dlq", "replay", "draw", "--type", "ValueError")["skipped"] == 2
    assert len(platform.json("dlq", "ls", "draw")) == 2
    states = sorted(each["state"] for each in platform.json("dlq", "ls", "draw", "--all"))
    assert states == ["dead", "dead", "replayed", "replayed"]
    assert platform.json("dlq", "purge", "draw", "--yes") == {"purged": 4}
    assert platform.json("dlq", "ls", "draw", "--all") == []
    unknown = platform.run("dlq", "ls", "nobody", code=1).stderr
    assert "function 'nobody' is not deployed" in unknown


def test_dead_letters_with_pickled_arguments_are_signed_anew(platform: LocalPlatform, tmp_path: Path) -> None:
    """A signature is for one call: the new one gets its own."""
    folder = platform.write("pickled/words.py", LUCK.replace("__LUCK__", json.dumps(str(tmp_path)))).parent
    platform.run("deploy", str(folder / "words.py"))
    script = platform.write(
        "pickled/ask.py",
        """
        import pelton

        class Word:
            def __init__(self, text): self.text = text

        try:
            pelton.function_ref("keep")(Word("kept"))
        except pelton.errors.FunctionError as error:
            print(error)
        """,
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=platform.env, capture_output=True, text=True, check=True
    )
    assert "bad luck" in done.stdout
    (tmp_path / "lucky").touch()
    (row,) = platform.json("dlq", "replay", "keep")
    assert row["error"] is None
    wait_for(
        lambda: platform.json("calls", "show", row["replayed_as"])["state"] == "succeeded",
        "the replayed call",
        60,
        platform.logs,
    )
    assert platform.run("calls", "result", row["replayed_as"]).stdout.strip() == "kept"


def test_call_past_its_deadline_is_stopped(platform: LocalPlatform) -> None:
    """While it runs, and in what it calls: the caller hears soon, and the function goes on for others."""
    platform.deploy(
        "slow.py",
        """
        import time
        import pelton

        @pelton.function(max_concurrent_requests=2)
        def slow(seconds: float, deeper: bool = False) -> str:
            if deeper:
                return slow(seconds)
            time.sleep(seconds)
            return "done"
        """,
    )
    script = platform.write(
        "late/ask.py",
        """
        import time
        import pelton

        slow = pelton.function_ref("slow")
        print(slow.options(timeout=60)(0.01, deeper=True))
        for deeper in (False, True):
            began = time.monotonic()
            try:
                slow.options(timeout=1.0)(60, deeper)
            except pelton.errors.CallTimeout as error:
                print(error.code, time.monotonic() - began < 20)
        print(slow(0.01))
        """,
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=platform.env, capture_output=True, text=True, check=True
    )
    expected = ["done", "DEADLINE_EXCEEDED True", "DEADLINE_EXCEEDED True", "done"]
    assert done.stdout.splitlines() == expected, done.stderr

"""`pelton deploy`: what changes, what is refused, and what the deployer makes of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pelton.protocol.topics import TopicPlan
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.producer import RecordProducer
from pelton_platform import process
from support.interpreters import bare_environment
from support.local_platform import LocalPlatform, local_platform, wait_for

# Processes of a whole platform start and stop here, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)

EXAMPLES = Path(__file__).parents[2] / "docs/examples"

VERSIONED = """
    import pelton

    @pelton.function
    def answer() -> str:
        return "{text}"
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """One platform for the module that stops idle instances soon."""
    settings = {"PELTON_KEEP_WARM": "3s", "PELTON_DRAIN": "5s"}
    with local_platform(tmp_path_factory.mktemp("deploys"), settings) as running:
        yield running


def changes(report: dict[str, Any]) -> dict[tuple[str, str], tuple[int, str]]:
    """Version and change by kind and name."""
    return {(one["kind"], one["name"]): (one["version"], one["change"]) for one in report["changes"]}


def test_cli_deploy_only_what_changed(platform: LocalPlatform) -> None:
    """The same file changes nothing, an edit makes a version that answers, a dry run writes nothing."""
    first = platform.deploy("answer.py", VERSIONED.format(text="one"))
    assert changes(first) == {
        ("function", "answer"): (1, "created"),
        ("container", "answer"): (1, "created"),
    }
    assert len(first["topics"]) == 4
    again = platform.deploy("answer.py", VERSIONED.format(text="one"))
    assert changes(again) == {
        ("function", "answer"): (1, "unchanged"),
        ("container", "answer"): (1, "unchanged"),
    }
    assert not again["changed"]
    file = str(platform.write("answer/answer.py", VERSIONED.format(text="two")))
    bundles = sorted(os.listdir(platform.home.bundles))
    dry = platform.json("deploy", file, "--dry-run")
    assert changes(dry)[("function", "answer")] == (2, "changed")
    assert sorted(os.listdir(platform.home.bundles)) == bundles
    assert platform.run("call", "answer").stdout == "one\n"
    assert changes(platform.json("deploy", file))[("function", "answer")] == (2, "changed")
    wait_for(lambda: {one["version"] for one in platform.instances("answer")} <= {2}, "the new version", 60)
    assert platform.run("call", "answer").stdout == "two\n"


def test_cli_deploy_refuses_before_anything_is_written(platform: LocalPlatform, tmp_path: Path) -> None:
    """Missing packages, secrets, large folders, leaving links and failing files are refused by name."""
    (tmp_path / "outside.py").write_text("")
    cases = {
        "packages": (
            "pelton.Container(name='x', image=pelton.Image.debian_slim().pip_install(['six==0.0.0.1']),"
            " entrypoint=['true']).run()",
            "there is no version of six==0.0.0.1",
        ),
        "stored": (
            "pelton.Container(name='x', secrets=[pelton.Secret('db')], entrypoint=['true']).run()",
            "the platform has no secret db: pelton secret set db",
        ),
        "unset": (
            "unset = pelton.Secret.from_env('NOT_SET')\n"
            "pelton.Container(name='x', secrets=[unset], entrypoint=['true']).run()",
            "export NOT_SET and deploy again",
        ),
        "failing": ("print(1 / 0)", "ZeroDivisionError: division by zero ("),
        "empty": ("x = 1", "defines nothing to deploy"),
    }
    for name, (source, complaint) in cases.items():
        file = platform.write(f"{name}/{name}.py", f"import pelton\n{source}\n")
        failed = platform.run("deploy", str(file), code=1)
        assert complaint in failed.stderr
        assert "Traceback" not in failed.stderr
    file = platform.write("leaving/leaving.py", VERSIONED.format(text="x"))
    os.symlink(tmp_path / "outside.py", file.with_name("link.py"))
    assert "link.py is a link to" in platform.run("deploy", str(file), code=1).stderr
    file = platform.write("large/large.py", VERSIONED.format(text="x"))
    file.with_name("model.bin").write_bytes(bytes(2_000_000))
    large = platform.run("deploy", str(file), code=1, env={"PELTON_BUNDLE_LIMIT_MIB": "1"})
    assert "model.bin (1.9 MiB)" in large.stderr
    assert "x" not in {row["container"] for row in platform.json("ps")}


def test_cli_deploy_warns_and_goes_on(platform: LocalPlatform) -> None:
    """Another Python version and containers that were not run are warnings."""
    report = platform.deploy(
        "warned.py",
        """
        import pelton

        old = pelton.Container(name="old", image=pelton.Image.debian_slim(python="3.1"))
        pelton.Container(name="forgotten", entrypoint=["true"])

        @pelton.function(container=old)
        def warned() -> int:
            return 1
        """,
    )
    assert any("instead of 3.1, which" in warning for warning in report["warnings"])
    assert any("'forgotten' is defined and not deployed" in warning for warning in report["warnings"])
    assert platform.run("call", "warned").stdout == "1\n"


def test_cli_secret_from_env_reaches_the_executor_and_nothing_else(platform: LocalPlatform) -> None:
    """A captured secret arrives in its variable, lies in a private file, and a new value is a new version."""
    source = """
        import os
        import pelton

        key = pelton.Secret.from_env("API_KEY")
        box = pelton.Container(name="vault", secrets=[key], env={"MODE": "test"})

        @pelton.function(container=box)
        def peek() -> str:
            return os.environ["API_KEY"] + " " + os.environ["MODE"]
    """
    platform.deploy("vault.py", source, env={"API_KEY": "s3cret-one"})
    assert platform.run("call", "peek").stdout == "s3cret-one test\n"
    assert platform.home.secrets_file.stat().st_mode & 0o077 == 0
    second = platform.deploy("vault.py", source, env={"API_KEY": "s3cret-two"})
    assert changes(second)[("container", "vault")] == (2, "changed")
    assert changes(second)[("function", "peek")] == (1, "unchanged")
    wait_for(lambda: {one["version"] for one in platform.ready("vault")} <= {2}, "the new version", 60)
    assert platform.run("call", "peek").stdout == "s3cret-two test\n"
    broker_data = platform.home.broker / "records"
    for segment in broker_data.glob("*/*.log"):
        assert b"s3cret" not in segment.read_bytes() or ".results-" in segment.parent.name


def test_cli_tampered_bundle_is_refused(platform: LocalPlatform) -> None:
    """Code that was changed in the store is not run: it is refused, visibly, until the next deploy."""
    report = platform.deploy("tampered.py", VERSIONED.replace("answer", "sound").format(text="sound"))
    path = platform.home.bundles / report["bundle"] / "tampered.py"
    path.chmod(0o644)
    path.write_text("import pelton\n@pelton.function\ndef sound(): return 'evil'\n")
    call = platform.run("call", "sound", "--submit").stdout.strip()

    def refusal() -> str:
        rows = [row for row in platform.json("ps") if row["container"] == "sound"]
        return str(rows[0].get("reason") or "")

    reason = wait_for(refusal, "the refusal")
    assert "tampered.py is not what was signed; deploy again" in reason
    assert '"alarm": true' in (platform.home.logs / "deployer.log").read_text()
    again = platform.deploy("tampered.py", VERSIONED.replace("answer", "sound").format(text="sound"))
    assert changes(again) == {("function", "sound"): (1, "unchanged"), ("container", "sound"): (2, "changed")}
    platform.await_state(call, "succeeded")
    assert platform.run("calls", "result", call).stdout == "sound\n"


def test_cli_crash_loop_is_visible(platform: LocalPlatform) -> None:
    """A program that ends again and again is restarted with a pause, and `ps` says how it ended."""
    file = platform.write(
        "crashing/crashing.py",
        """
        import pelton

        program = "raise SystemExit('no database here')"
        pelton.Container(name="crashing", entrypoint=["python", "-c", program]).run()
        """,
    )
    failed = platform.run("deploy", str(file), code=1)
    assert "no database here" in failed.stderr

    def row() -> dict[str, Any] | None:
        rows = [row for row in platform.json("ps") if row["container"] == "crashing"]
        return rows[0] if rows and "times in a row" in str(rows[0].get("reason")) else None

    found = wait_for(row, "the crash loop in ps", 60)
    assert found is not None
    assert "exit code 1: no database here" in found["reason"]
    assert "no database here" in platform.run("logs", "crashing").stdout


def test_cli_plain_program_runs_in_its_snapshot_and_finds_the_platform(platform: LocalPlatform) -> None:
    """A program runs in its snapshot's folder, calls functions, is logged, and comes back when killed."""
    platform.deploy("answer.py", VERSIONED.format(text="two"))
    folder = platform.work / "program"
    platform.write(
        "program/main.py",
        """
        import os, signal, sys
        from pelton import function_ref

        print("in", os.getcwd(), open("data.txt").read(), os.environ["PELTON_BOOTSTRAP_SERVERS"], flush=True)
        answer = function_ref("answer")
        answer.wait_ready()
        print("answer", answer(), "pid", os.getpid(), flush=True)
        print("to stderr", file=sys.stderr, flush=True)
        signal.pause()
        """,
    )
    platform.write("program/data.txt", "some data")
    report = platform.deploy(
        "program.py",
        """
        import pelton

        pelton.Container(name="program", entrypoint=["python", "main.py"]).run()
        """,
    )
    (folder / "main.py").write_text("changed after the deploy")

    def output() -> list[dict[str, Any]]:
        lines = platform.run("logs", "program", "--json").stdout.splitlines()
        return [json.loads(line) for line in lines]

    def said(text: str) -> list[dict[str, Any]]:
        return [line for line in output() if line["text"].startswith(text)]

    wait_for(lambda: said("answer two") and said("to stderr"), "the program's lines", 60)
    first = said("in ")[0]
    where = platform.home.bundles / report["bundle"]
    assert first["text"] == f"in {where} some data {platform.state().bootstrap_servers}"
    assert (said("to stderr")[0]["source"], first["source"]) == ("stderr", "stdout")
    rows = [row for row in platform.json("ps") if row["container"] == "program"]
    pid = rows[0]["pid"]
    assert said("answer two")[0]["text"].endswith(f"pid {pid}")
    platform.kill(pid)
    wait_for(lambda: len(said("answer two")) == 2, "the program again", 60)


def test_cli_instances_follow_the_load(platform: LocalPlatform, tmp_path: Path) -> None:
    """Waiting calls start instances up to max, and they stop one keep-warm time after they were needed."""
    gate = tmp_path / "gate"
    platform.deploy(
        "scaled.py",
        f"""
        import os, time, pelton

        box = pelton.Container(name="scaled", max_instances=2)

        @pelton.function(container=box)
        def scaled() -> int:
            while not os.path.exists({str(gate)!r}):
                time.sleep(0.01)
            return os.getpid()
        """,
    )
    assert platform.instances("scaled") == []
    calls = [platform.run("call", "scaled", "--submit").stdout.strip() for _ in range(4)]
    wait_for(lambda: len(platform.ready("scaled")) == 2, "two instances", 60)
    assert len(platform.instances("scaled")) == 2
    gate.touch()
    for call in calls:
        platform.await_state(call, "succeeded")
    wait_for(lambda: platform.instances("scaled") == [], "no instance", 60)


def test_cli_new_version_is_ready_before_the_old_one_stops(platform: LocalPlatform) -> None:
    """A redeploy of a container with min_instances=1 never leaves it without a ready instance."""
    source = """
        import pelton

        box = pelton.Container(name="always", min_instances=1)

        @pelton.function(container=box)
        def always() -> int:
            return {number}
    """
    platform.deploy("always.py", source.format(number=1))
    old = wait_for(lambda: platform.ready("always"), "the instance", 60)
    file = platform.write("always/always.py", source.format(number=2))
    platform.run("deploy", str(file), "--no-wait")
    counts: list[int] = []

    def replaced() -> bool:
        counts.append(len(platform.ready("always")))
        return {one["version"] for one in platform.instances("always")} == {2}

    wait_for(replaced, "the replacement", 60)
    assert min(counts) >= 1
    assert process.identify(old[0]["pid"]) is None
    assert platform.run("call", "always").stdout == "2\n"


def test_cli_killed_instance_is_replaced(platform: LocalPlatform) -> None:
    """An instance that is killed is started again at once, and goes on with the calls."""
    platform.deploy(
        "kept.py",
        """
        import pelton

        box = pelton.Container(name="kept", min_instances=1)

        @pelton.function(container=box)
        def kept() -> str:
            return "here"
        """,
    )
    old = wait_for(lambda: platform.ready("kept"), "the instance", 60)[0]
    platform.kill(old["pid"], signal.SIGKILL)
    new = wait_for(
        lambda: [one for one in platform.ready("kept") if one["pid"] != old["pid"]], "another instance", 60
    )
    assert process.identify(new[0]["pid"]) is not None
    assert platform.run("call", "kept").stdout == "here\n"


def test_cli_nested_example_of_the_guide(platform: LocalPlatform) -> None:
    """The guide's functions call each other on one instance with four slots, and give its answers."""
    report = platform.json("deploy", str(EXAMPLES / "nested/word_count.py"))
    assert sum(kind == "function" for kind, _ in changes(report)) == 5
    assert platform.json("call", "depth", "20")["value"] == 20
    text = "the cat and the hat\nthe cat\n\nand the rest"
    assert platform.json("call", "most-common", text, "2")["value"] == ["the", "cat"]
    other = "a cat\nthe cat\nthe dog and the rest"
    assert platform.json("call", "compare", text, other)["value"] == ["cat", "the"]
    call = platform.json("call", "compare", text, other)["call_id"]
    shown = platform.json("calls", "show", call)
    tree = {one["call_id"]: one for one in shown["tree"]}
    assert Counter(one["function"] for one in tree.values()) == {
        "compare": 1,
        "most-common": 2,
        "lines-of": 2,
        "count-words": 6,
    }
    assert {one["state"] for one in tree.values()} == {"succeeded"}
    assert {tree[one["parent"]]["function"] for one in tree.values() if one["parent"]} == {
        "compare",
        "most-common",
    }
    nested = next(one["call_id"] for one in tree.values() if one["function"] == "count-words")
    drawn = platform.run("calls", "show", nested).stdout
    assert f"count-words  succeeded  {nested}  <- this call" in drawn
    assert f"\ncompare  succeeded  {call}\n" in drawn
    assert drawn.count("├─ ") + drawn.count("└─ ") == 10


def test_cli_cancelling_example_of_the_guide(platform: LocalPlatform) -> None:
    """The guide's functions: one returns what it has, one ends where it waits, one leaves a stream."""
    platform.json("deploy", str(EXAMPLES / "cancelling/simulate.py"))
    pi, market = (
        platform.run("call", *words, "--submit").stdout.strip()
        for words in (["estimate-pi"], ["watch-market", "tea"])
    )
    for call in (pi, market):
        platform.await_state(call, "running")
    said = platform.run("cancel", pi, market, "--reason", "the guide says so")
    assert said.stdout.splitlines() == [f"{pi}  succeeded", f"{market}  cancelled"]
    assert 2 < float(platform.run("calls", "result", pi).stdout) < 4
    refused = platform.run("calls", "result", market, code=1).stderr
    assert "the call was cancelled: pelton cancel: the guide says so (CANCELLED)" in refused
    assert "no longer watching" in platform.run("logs", market).stdout
    assert platform.json("call", "first-above", "100", "100")["value"] > 100
    left = platform.json("calls", "ls", "--function", "prices")[0]["call_id"]
    platform.await_state(left, "cancelled")
    assert {row["call_id"] for row in platform.json("calls", "ls", "--state", "cancelled")} == {market, left}


def test_cli_cancel_says_what_became_of_each(platform: LocalPlatform) -> None:
    """Ended calls, unknown ids, ids that are none, and one that waits for an instance that cannot come."""
    platform.deploy("answer.py", VERSIONED.format(text="three"))
    ended = platform.json("call", "answer")["call_id"]
    unknown = "01a2052e-499b-7007-b552-cae39d3dd46b"
    rows = platform.json("cancel", ended, unknown, code=1)
    assert [row["state"] for row in rows] == ["succeeded", "unknown"]
    assert rows[0]["error"] is None
    assert "nothing is known of it" in rows[1]["error"]
    assert f"call {ended} of answer had ended" in platform.run("cancel", ended).stderr
    assert "badly formed" in platform.run("cancel", "no-id", code=2).stderr
    platform.deploy(
        "broken.py",
        """
        import os
        import pelton

        @pelton.function
        def broken() -> None:
            pass

        if "PELTON_HOME" not in os.environ:
            raise RuntimeError("it cannot be loaded where it runs")
        """,
    )
    waiting = platform.run("call", "broken", "--submit").stdout.strip()
    said = platform.run("cancel", waiting, "--no-wait")
    assert said.stdout == f"{waiting}  waiting\n"
    platform.await_state(waiting, "cancelled")


def test_cli_new_consumer_is_deployed_and_consumes(platform: LocalPlatform) -> None:
    """The files are made, deployed as they are, and records become calls; nothing is overwritten."""
    platform.deploy(
        "lengths.py",
        """
        import pelton

        @pelton.function
        def length(value) -> int:
            return len(value)
        """,
    )
    words = ("new", "consumer", "length-feed", "--topic", "words", "--function", "length")
    made = platform.json(*words)
    before = (platform.work / made["program"]).read_text()
    again = platform.run(*words, code=2)
    assert "is there already" in again.stderr
    assert (platform.work / made["program"]).read_text() == before
    refused = platform.run("new", "consumer", "no name", "--topic", "t", "--function", "f", code=2)
    assert "cannot name a container" in refused.stderr
    config = ConnectionConfig(platform.state().bootstrap_servers)
    admin, producer = Admin(config), RecordProducer(config)
    try:
        admin.create_topics([TopicPlan("words", 2, 1)])
        platform.json("deploy", made["deploy"])
        for text in ("one", "three"):
            producer.send("words", json.dumps(text).encode(), on_report=lambda *report: None)
        assert producer.flush(20) == 0

        def ended() -> bool:
            rows = platform.json("calls", "ls", "--function", "length")
            return [row["state"] for row in rows] == ["succeeded"] * 2

        wait_for(ended, "both records became calls", 90, platform.logs)
    finally:
        producer.close(1)
        admin.close()


def deployed_and_run(platform: LocalPlatform, file: Path) -> subprocess.CompletedProcess[str]:
    """An example: deployed by the command, then run as a program of its own."""
    platform.json("deploy", str(file))
    return subprocess.run(
        [sys.executable, str(file)],
        env=bare_environment() | platform.env,
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_cli_payloads_example_of_the_guide(platform: LocalPlatform) -> None:
    """An image of 34 MiB goes in and comes back; the platform keeps it in its home folder."""
    done = deployed_and_run(platform, EXAMPLES / "payloads/images.py")
    assert (done.stdout, done.returncode) == ("(4000, 3000, 3) 7 7 0\n", 0), done.stderr
    kept = list((platform.home.root / "payloads" / "brighten").iterdir())
    assert [path.stat().st_size > 36_000_000 for path in kept] == [True, True]
    assert list((platform.home.root / "payloads" / ".drafts").iterdir()) == []


def test_cli_class_example_of_the_guide(platform: LocalPlatform) -> None:
    """Methods are called and streamed as functions; the object is made and ended with its executor."""
    done = deployed_and_run(platform, EXAMPLES / "classes/spelling.py")
    assert (done.stdout, done.returncode) == ("partition\n['has', 'topcs']\n", 0), done.stderr
    assert platform.run("call", "Speller-correct", "ofset").stdout == "offset\n"
    wait_for(lambda: not platform.instances("Speller"), "no instance is left", 60)
    said = platform.run("logs", "Speller-correct").stdout
    assert said.count("words loaded") == said.count("words dropped") == 1


def test_cli_key_order_example_of_the_guide(platform: LocalPlatform) -> None:
    """Bookings of an account start in order, from the example itself and from the command line."""
    done = deployed_and_run(platform, EXAMPLES / "ordering/accounts.py")
    assert (done.stdout, done.returncode) == ("alice: -350\n", 0), done.stderr
    ids = [
        platform.run("call", "book", "bob", str(n), "--key", "bob", "--submit").stdout for n in range(1, 4)
    ]
    assert platform.json("call", "book", "bob", "4", "--key", "bob")["value"] == "bob: +4"
    said = platform.run("logs", "book").stdout
    assert re.findall(r"alice ([+-]\d+)", said) == ["+500", "-200", "+50", "-350"]
    assert re.findall(r"bob ([+-]\d+)", said) == ["+1", "+2", "+3", "+4"]
    assert len(set(ids)) == 3
    platform.json("deploy", str(EXAMPLES / "quickstart/greet.py"))
    refused = platform.run("call", "greet", "Ada", "--key", "k", code=1).stderr
    assert "function 'greet' has no key order as deployed" in refused
    assert "Nothing was sent" in refused

"""Plain programs and resources, as people deploy, hold and watch them, on one platform."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic, TopicPartition

from pelton_platform import process
from support.interpreters import bare_environment
from support.local_platform import LocalPlatform, local_platform, wait_for
from support.tree import ROOT

# Processes of a whole platform start and stop here, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)

WEB = """
    import http.server, os, sys

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/die":
                os._exit(9)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.path} of {os.environ['PELTON_INSTANCE']}".encode())
        def log_message(self, *words): ...

    print("listening at", os.environ["PORT"], flush=True)
    http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Page).serve_forever()
"""

SCRIPT = """
    import itertools, os, sys, urllib.request
    import pelton

    web = pelton.Container(
        name="web", entrypoint=["python", "web.py"], port={port}, env={{"COLOUR": "green"}},
        min_instances=1, max_instances=3, readiness=pelton.Probe.http("/ok", period=0.1),
    ).run()
    info = web.wait(60)
    print("status", info.status, info.version, [one.port for one in info.instances])
    print("page", urllib.request.urlopen(info.web_url).status)
    base = info.web_url.partition("/containers")[0]
    print("answer", urllib.request.urlopen(base + "/c/web/hi?x=1").read().decode())
    done = web.exec([sys.executable, "-c", "import os; print(os.environ['COLOUR'], os.environ['PORT'])"])
    print("exec", done.code, done.stdout.strip())
    print("fails", web.exec(["sh", "-c", "echo no >&2; exit 3"]))
    try:
        web.exec(["sleep", "30"], timeout=0.3)
    except TimeoutError as error:
        print("late", error)
    web.scale(3)
    print("scaled", web.wait(60).status, len(web.info.instances), web.info.reason)
    print("logs", sum("listening" in line for line in web.logs()))
    print("follows", next(web.logs(follow=True)))
    web.stop()
    info = web.wait(60)
    print("stopped", info.status, len(info.instances), urllib.request.urlopen(info.web_url).status)
    web.scale(None)
    print("again", web.wait(60).status)
    try:
        pelton.Handle("nobody").scale(1)
    except pelton.errors.DeployError as error:
        print("nobody", error)
    print("unknown", pelton.Handle("nobody").info.status)
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """One platform for all of them that looks at less for shorter."""
    settings = {"PELTON_KEEP_WARM": "1s", "PELTON_COOL_DOWN": "1s"}
    with local_platform(tmp_path_factory.mktemp("containers"), settings) as running:
        yield running


def script(platform: LocalPlatform, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Runs a script as people do."""
    done = subprocess.run(
        [sys.executable, name],
        cwd=folder,
        env=bare_environment() | {"PELTON_HOME": str(platform.home.root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + platform.logs()
    return done


def gateway(platform: LocalPlatform) -> str:
    """Address of the gateway."""
    return str(json.loads(platform.home.context_file.read_text())["gateway"])


def fetch(address: str) -> Any:
    """A page as JSON."""
    request = urllib.request.Request(address, headers={"Accept": "application/json"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
        return json.load(answer)


def test_handle_holds_a_container(platform: LocalPlatform, tmp_path: Path) -> None:
    """`run()` deploys and returns a handle: what it tells and does is so, and the gateway leads there."""
    port = process.free_port()
    (tmp_path / "web.py").write_text(textwrap.dedent(WEB))
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT.format(port=port)))
    lines = script(platform, tmp_path, "script.py").stdout.splitlines()
    said = {line.partition(" ")[0]: line.partition(" ")[2] for line in lines}
    assert said["status"] == f"running 1 [{port}]"
    assert said["page"] == "200"
    assert said["answer"].startswith("/hi?x=1 of web-")
    assert said["exec"] == f"0 green {port}"
    assert said["fails"] == "ExecResult(code=3, stdout='', stderr='no\\n')"
    assert said["late"] == "sleep took longer than 0.3 s and was ended"
    assert said["scaled"] == "running 3 set by hand"
    assert said["logs"] == "3"
    assert said["follows"].startswith("listening at")
    assert said["stopped"] == "stopped 0 200"
    assert said["again"] == "running"
    assert said["nobody"].startswith("there is no container 'nobody'")
    assert said["unknown"] == "unknown"


def test_example_of_the_guide_does_what_it_says(platform: LocalPlatform, tmp_path: Path) -> None:
    """Run as a script it prints what it did; the guide shows its code, and the gateway leads to it."""
    folder = tmp_path / "containers"
    shutil.copytree(ROOT / "docs/examples/containers", folder)
    lines = script(platform, folder, "deploy_web.py").stdout.splitlines()
    assert lines[0] == f"running {gateway(platform)}/containers/hits"
    assert re.fullmatch(r"port \d+", lines[1])
    assert lines[2] == "2 instances"
    with urllib.request.urlopen(f"{gateway(platform)}/c/hits/") as answer:
        assert re.fullmatch(r"1 hits at hits-[0-9a-f]+\n", answer.read().decode())
    guide = (ROOT / "docs/guides/containers.md").read_text(encoding="utf-8")
    [shown] = [
        block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "Container(" in block
    ]
    assert shown.strip() in (folder / "deploy_web.py").read_text(encoding="utf-8")
    platform.run("delete", "hits")


def test_crash_loop_says_why(platform: LocalPlatform) -> None:
    """A program that ends again and again: deploy, ps and the page of the gateway tell its last words."""
    platform.write("broken/main.py", "raise SystemExit('no database at db:5432')")
    platform.write(
        "broken/app.py",
        "import pelton\npelton.Container(name='broken', entrypoint=['python', 'main.py']).run()\n",
    )
    done = platform.run("deploy", "broken/app.py", code=1)
    assert "no database at db:5432" in done.stderr
    page = wait_for(
        lambda: (
            (found := fetch(f"{gateway(platform)}/containers/broken"))["status"] == "crash-loop" and found
        ),
        "the crash loop",
        30,
        platform.logs,
    )
    assert "it ended with exit code 1: no database at db:5432" in page["reason"]
    assert "times in a row; a new start every" in page["reason"]
    rows = platform.json("ps")
    assert any("no database" in str(row.get("reason")) for row in rows if row["container"] == "broken")
    platform.run("delete", "broken", "--force")


def test_memory_of_a_call_is_bounded(platform: LocalPlatform) -> None:
    """A call that takes more than its function may ends RESOURCE_EXHAUSTED with the peak; others go on."""
    platform.deploy(
        "eat.py",
        """
        import pelton

        @pelton.function(memory="128Mi", cpu="500m", max_concurrent_requests=4)
        def eat(mib: int) -> int:
            import time
            hold = bytearray(mib << 20)
            time.sleep(0.2)
            return len(hold)
        """,
    )
    assert platform.run("call", "eat", "10").stdout.strip() == str(10 * 2**20)
    done = platform.run("call", "eat", "400", code=None)
    assert done.returncode != 0
    assert "RESOURCE_EXHAUSTED" in done.stderr
    assert "more than its 128 MiB of memory" in done.stderr
    assert "MiB at its peak" in done.stderr
    platform.write(
        "eat/several.py",
        """
        import pelton
        eat = pelton.function_ref("eat")
        calls = {mib: eat.async_call(mib) for mib in (5, 300, 6, 7)}
        for mib, call in calls.items():
            try:
                print(mib, call.result(timeout=100) >> 20)
            except pelton.errors.CallFailed as error:
                print(mib, error.code)
        """,
    )
    done = subprocess.run(
        [sys.executable, "several.py"],
        cwd=platform.work / "eat",
        env=bare_environment() | {"PELTON_HOME": str(platform.home.root)},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert done.stdout.splitlines() == ["5 5", "300 RESOURCE_EXHAUSTED", "6 6", "7 7"]


def test_more_than_the_machine_has_is_said_or_refused(platform: LocalPlatform) -> None:
    """Capped with a warning in deploy and ps; refused where that is asked for, before anything changes."""
    source = """
        import pelton

        @pelton.function(cpu=900, memory="32Ti", gpu="A100:8")
        def huge() -> str:
            return "done"
    """
    path = platform.write("huge/huge.py", source)
    done = platform.run("deploy", str(path), "--strict-resources", code=1)
    assert "container 'huge' asks for 900 cores, and this machine has" in done.stderr
    assert "deploy without --strict-resources" in done.stderr
    assert "huge" not in {row["name"] for row in platform.json("functions")}
    done = platform.run("deploy", str(path))
    assert done.stderr.count("it gets what there is") == 3
    assert platform.run("call", "huge").stdout.strip() == "done"
    (row,) = [row for row in platform.json("ps") if row["container"] == "huge"]
    assert [note.partition(",")[0] for note in row["notes"]] == [
        "asks for 900 cores",
        f"asks for {32 * 2**20:,} MiB of memory".partition(",")[0],
        "asks for the GPU 'A100:8'",
    ]


def test_program_is_scaled_by_its_lag(platform: LocalPlatform) -> None:
    """From none to one for each so many unread records, and back to none; `ps --watch` tells why."""
    servers = platform.state().bootstrap_servers
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic("orders", 3, 1)])["orders"].result(15)
    platform.write("readers/main.py", "import time\nwhile True: time.sleep(0.05)\n")
    platform.write(
        "readers/app.py",
        """
        import pelton
        pelton.Container(
            name="readers", entrypoint=["python", "main.py"], min_instances=0, max_instances=5,
            scale_on=pelton.KafkaLag("orders", "readers", per_instance=10),
        ).run()
        """,
    )
    platform.run("deploy", "readers/app.py")
    assert platform.instances("readers") == []
    producer = Producer({"bootstrap.servers": servers})
    for number in range(25):
        producer.produce("orders", b"x", partition=number % 3)
    assert producer.flush(20) == 0
    wait_for(lambda: len(platform.ready("readers")) == 3, "three readers", 60, platform.logs)
    watch = platform.start("ps", "--watch", "--json")
    try:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
    finally:
        process_of = process.identify(watch.pid)
        assert process_of is not None
        process.terminate(process_of, 5.0)
        watch.communicate()
    (row,) = [row for row in first["containers"] if row["container"] == "readers"]
    assert (row["status"], row["ready"], row["wanted"], row["waiting"]) == ("running", 3, 3, 25)
    assert row["decision"] == "25 records unread in 3 partitions"
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "readers"})
    done = [TopicPartition("orders", number, 9 - (number > 0)) for number in range(3)]
    consumer.commit(offsets=done, asynchronous=False)
    consumer.close()
    wait_for(lambda: platform.instances("readers") == [], "the end of all", 60, platform.logs)


def test_program_is_scaled_by_its_cpu(platform: LocalPlatform) -> None:
    """A program that uses more than 70 % of what it may gets another instance, and the reason says so."""
    platform.write("busy/main.py", "while True: pass\n")
    platform.write(
        "busy/app.py",
        """
        import pelton
        pelton.Container(
            name="busy", entrypoint=["python", "main.py"], cpu="200m", min_instances=1, max_instances=2
        ).run()
        """,
    )
    platform.run("deploy", "busy/app.py")
    wait_for(lambda: len(platform.ready("busy")) == 2, "the second instance", 90, platform.logs)
    page = fetch(f"{gateway(platform)}/containers/busy")
    assert re.search(r"\d+% of their CPU used by|instances start", page["scaling"]["reason"])
    platform.run("delete", "busy")


def test_gateway_that_was_killed_answers_again(platform: LocalPlatform) -> None:
    """The next request starts it; nobody is refused."""
    assert fetch(f"{gateway(platform)}/healthz") == {"status": "ok"}
    pid = wait_for(lambda: platform.state().gateway_pid, "its pid")
    platform.kill(pid)
    assert fetch(f"{gateway(platform)}/healthz") == {"status": "ok"}
    wait_for(lambda: platform.state().gateway_pid not in (0, pid), "another pid")


def test_commands_scale_stop_and_enter(platform: LocalPlatform) -> None:
    """The commands do what the handle does, and say what is wrong with what they are told."""
    platform.write("idle/main.py", "import time\nwhile True: time.sleep(0.05)\n")
    platform.write(
        "idle/app.py",
        "import pelton\npelton.Container(name='idle', entrypoint=['python', 'main.py']).run()\n",
    )
    platform.run("deploy", "idle/app.py")
    info = platform.json("scale", "idle", "2")
    assert (info["status"], info["wanted"], info["reason"]) == ("running", 2, "set by hand")
    one = platform.ready("idle")[0]["instance"]
    entered = platform.run(
        "exec", "--instance", one, "idle", "--", "sh", "-c", "echo $PELTON_INSTANCE; exit 7", code=7
    )
    assert entered.stdout.strip() == one
    assert (
        "no-such-program: No such file"
        in platform.run("exec", "idle", "--", "no-such-program", code=127).stderr
    )
    assert (
        "has no instance 'none'"
        in platform.run("exec", "--instance", "none", "idle", "--", "ls", code=1).stderr
    )
    assert platform.json("stop", "idle")["status"] == "stopped"
    assert "no ready instance" in platform.run("exec", "idle", "--", "ls", code=1).stderr
    # A deploy takes the number back, although nothing else is new.
    platform.run("deploy", "idle/app.py")
    assert len(platform.ready("idle")) == 1
    assert "nothing has changed" in platform.run("deploy", "idle/app.py").stderr
    assert "COUNT is a number" in platform.run("scale", "idle", "many", code=2).stderr
    assert "there is no container" in platform.run("scale", "nobody", "1", code=1).stderr

"""`pelton up` and `pelton down`: one platform per home, found by everybody, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pelton_platform import process
from pelton_platform.deploy.home import HOME_VARIABLE
from pelton_platform.supervisor.state import running
from support.local_platform import LocalPlatform, local_platform, wait_for

# Processes of a whole platform start and stop here, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)

GREET = """
    import os
    import pelton

    @pelton.function
    def greet(name: str) -> str:
        print("greeting", name)
        return f"hello {name} from {os.getpid()}"
"""


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[LocalPlatform]:
    """A platform that runs in the background."""
    with local_platform(tmp_path) as running_platform:
        yield running_platform


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[LocalPlatform]:
    """A platform that was not started yet."""
    with local_platform(tmp_path, up=False) as stopped:
        yield stopped


def test_platform_up_is_found_and_down_leaves_nothing(platform: LocalPlatform) -> None:
    """The context leads to it, secrets are private, a second up says where it runs, down ends it all."""
    context = json.loads(platform.home.context_file.read_text())
    named = {
        "namespace",
        "bootstrap_servers",
        "security",
        "key_file",
        "home",
        "store",
        "store_options",
        "gateway",
        "pid",
    }
    assert set(context) == named
    assert context["bootstrap_servers"].endswith(platform.env["PELTON_PORT"])
    for path in (platform.home.context_file, Path(context["key_file"])):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = platform.run("up", "--detach", code=3)
    assert f"pid {context['pid']}" in second.stderr
    assert context["bootstrap_servers"] in second.stderr
    assert platform.json("up", code=3)["already_running"] is True
    broker = platform.state().broker_pid
    assert broker in {one.pid for one in platform.processes()}
    # Flags of the settings come last, so they win over the usual ones.
    assert f" {platform.env['PELTON_JAVA_FLAGS']} -cp " in " ".join(psutil.Process(broker).cmdline())
    platform.run("down")
    assert platform.processes() == ()
    assert process.identify(broker) is None
    assert not platform.home.context_file.exists()
    assert "no platform runs" in platform.run("down").stderr
    gone = platform.run("functions", code=1)
    assert "Start one with `pelton up`" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_platform_purge_removes_the_home(platform: LocalPlatform) -> None:
    """`down --purge` stops it and removes everything; a folder that is no home is not touched."""
    platform.deploy("hello.py", GREET)
    platform.run("down", "--purge")
    assert not platform.home.root.exists()
    platform.home.root.mkdir()
    (platform.home.root / "thesis.txt").write_text("years of work")
    refused = platform.run("down", "--purge", code=1)
    assert "no home folder of Pelton" in refused.stderr
    assert (platform.home.root / "thesis.txt").exists()
    assert "not empty" in platform.run("up", "--detach", code=1).stderr


def test_platform_deployed_functions_survive_a_restart(platform: LocalPlatform) -> None:
    """After down and up what was deployed answers, and a call that waited is run."""
    platform.deploy("hello.py", GREET)
    assert platform.run("call", "greet", "you").stdout.startswith("hello you")
    platform.run("down")
    platform.run("up", "--detach")
    assert platform.run("call", "greet", "again").stdout.startswith("hello again")


def kill_supervisor(platform: LocalPlatform) -> list[int]:
    """Kill the supervisor and return the pids it leaves behind: those of instances, at least."""
    supervisor = platform.state().supervisor
    platform.kill(supervisor.pid)
    assert process.wait_gone(supervisor, 10.0)
    assert running(platform.home) is None
    orphans = [one.pid for one in platform.processes()]
    assert orphans
    return orphans


def test_platform_killed_supervisor_is_recognised(platform: LocalPlatform) -> None:
    """After SIGKILL of the supervisor doctor names the orphans, and the next up ends them."""
    platform.deploy("hello.py", GREET)
    platform.run("call", "greet", "you")
    orphans = kill_supervisor(platform)
    findings = {one["check"]: one for one in platform.json("doctor", code=1)}
    assert findings["orphans"]["state"] == "failed"
    assert "pelton doctor --fix" in findings["orphans"]["text"]
    assert findings["platform"]["state"] == "warning"
    up = platform.run("up", "--detach")
    assert "ending what an earlier platform left behind" in up.stderr
    assert not set(orphans) & {one.pid for one in platform.processes()}
    assert platform.run("call", "greet", "again").stdout.startswith("hello again")


@pytest.mark.parametrize("words", [("doctor", "--fix"), ("down",)])
def test_platform_orphans_are_ended_without_a_platform(idle: LocalPlatform, words: tuple[str, ...]) -> None:
    """What bears the home's name although no platform runs is ended by `doctor --fix` and by `down`."""
    idle.home.prepare()
    orphan = process.spawn(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**idle.env, HOME_VARIABLE: str(idle.home.root)},
    )
    try:
        wait_for(lambda: [one.pid for one in idle.processes()] == [orphan.pid], "the orphan's start")
        idle.run(*words, code=None)
        assert orphan.wait(10) == -signal.SIGTERM
    finally:
        if orphan.poll() is None:
            orphan.kill()
            orphan.wait()


def test_platform_in_the_foreground_stops_cleanly(idle: LocalPlatform) -> None:
    """`pelton up` shows progress on stderr, and Ctrl-C ends it with code 0 and nothing left behind."""
    with idle.start("up") as command:
        try:
            wait_for(idle.home.context_file.exists, "the start", 60)
            idle.deploy("hello.py", GREET)
            idle.run("call", "greet", "you")
            command.send_signal(signal.SIGINT)
            stdout, stderr = command.communicate(timeout=60)
        finally:
            if command.poll() is None:
                command.kill()
    assert command.returncode == 0, stderr
    assert stdout == ""
    for words in (
        "Apache Kafka at 127.0.0.1:",
        "ready after",
        "Ctrl-C",
        "greet: version 1, 1 ",
        "stopped",
    ):
        assert words in stderr
    assert idle.processes() == ()


def test_platform_interrupted_start_leaves_nothing(idle: LocalPlatform) -> None:
    """Ctrl-C while the broker starts ends what was started."""
    with idle.start("up") as command:
        wait_for(lambda: idle.home.supervisor_file.exists() and idle.processes(), "the first process", 60)
        command.send_signal(signal.SIGINT)
        _, stderr = command.communicate(timeout=60)
    assert command.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert idle.processes() == ()


def test_platform_parts_that_die_are_started_again(platform: LocalPlatform) -> None:
    """Broker and deployer are restarted; instances outlive the deployer and go on answering."""
    platform.deploy("hello.py", GREET)
    first = platform.run("call", "greet", "you").stdout
    instance = wait_for(lambda: platform.ready("greet"), "the ready instance")[0]["pid"]
    old = platform.state()
    platform.kill(old.deployer_pid)
    wait_for(lambda: platform.state().deployer_pid not in (0, old.deployer_pid), "a new deployer")
    wait_for(lambda: [one["pid"] for one in platform.ready("greet")] == [instance], "the takeover")
    assert platform.run("call", "greet", "you").stdout == first
    platform.kill(old.broker_pid)
    wait_for(lambda: platform.state().broker_pid not in (0, old.broker_pid), "a new broker")
    assert platform.run("call", "greet", "you").stdout.startswith("hello you")


def test_platform_port_in_use_is_said(idle: LocalPlatform) -> None:
    """A port that another program has is named with that program, and nothing stays behind."""
    import socket

    with socket.create_server(("127.0.0.1", int(idle.env["PELTON_PORT"]))):
        failed = idle.run("up", "--detach", code=1)
        findings = {one["check"]: one for one in idle.json("doctor", code=1)}
    assert f"port {idle.env['PELTON_PORT']}" in failed.stderr
    assert f"(pid {os.getpid()})" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert findings["port"]["state"] == "failed"
    assert f"(pid {os.getpid()})" in findings["port"]["text"]
    assert idle.processes() == ()


def test_platform_on_an_existing_kafka(tmp_path: Path) -> None:
    """`--bootstrap-servers` uses a Kafka that runs already, in its own namespace, and leaves it running."""
    from support.embedded_broker import running_broker

    with running_broker(tmp_path / "kafka") as broker, local_platform(tmp_path, up=False) as platform:
        platform.run(
            "up", "--detach", "--bootstrap-servers", broker.bootstrap_servers, "--namespace", "team-a"
        )
        assert platform.state().broker_pid == 0
        platform.deploy("hello.py", GREET)
        assert platform.run("call", "greet", "you").stdout.startswith("hello you")
        platform.run("down")
        assert broker.kafka.is_running()


def test_platform_unreachable_kafka_is_said(idle: LocalPlatform) -> None:
    """A Kafka that does not answer ends the start with one clear line."""
    address = f"127.0.0.1:{process.free_port()}"
    failed = idle.run("up", "--detach", "--bootstrap-servers", address, code=1)
    assert address in failed.stderr
    assert "Traceback" not in failed.stderr
    assert idle.processes() == ()

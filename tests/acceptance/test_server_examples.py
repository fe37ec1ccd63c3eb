"""The examples of servers and pools, run as their users would run them, against one platform."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.local_platform import LocalPlatform, local_platform, wait_for

# Processes of a whole platform start and stop here, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)

EXAMPLES = Path(__file__).parents[2] / "docs/examples/servers"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """One platform with the functions that the servers call."""
    with local_platform(tmp_path_factory.mktemp("servers")) as running:
        running.json("deploy", str(EXAMPLES / "texts.py"))
        yield running


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(platform: LocalPlatform, *words: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A server as a process group, which is asked to end, and has to."""
    log = platform.work / f"{words[0]}.log"
    with log.open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=EXAMPLES,
            env={**platform.env, "PYTHONDONTWRITEBYTECODE": "1", **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        yield child
        assert child.poll() is None, f"it ended by itself\n{log.read_text()}"
        child.terminate()
        child.wait(30)
    except BaseException:
        print(log.read_text())
        raise
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def get(port: int, path: str, *, post: bool = False) -> str:
    """What a server of this machine answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="POST" if post else "GET")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def await_server(child: subprocess.Popen[str], port: int, logs: LocalPlatform) -> None:
    """Waits until a port is listened on."""

    def listening() -> bool:
        assert child.poll() is None, "the server has ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listening, "the server listens", 60, logs.logs)


def test_server_example_fastapi(platform: LocalPlatform) -> None:
    """Awaited calls, a job that outlives its request, a stream, and one that its client leaves."""
    port = free_port()
    with server(platform, "uvicorn", "fastapi_app:app", "--port", str(port)) as child:
        await_server(child, port, platform)
        assert get(port, "/shout?text=hello") == '{"text":"HELLO"}'
        job = re.findall(r"[0-9a-f-]{36}", get(port, "/jobs?text=later", post=True))[0]
        assert get(port, f"/jobs/{job}") == '{"text":"LATER"}'
        assert get(port, "/letters?word=abc") == "a\nb\nc\n"
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /letters?word=" + b"x" * 6000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100)
        assert get(port, "/shout?text=again") == '{"text":"AGAIN"}'


def test_server_example_gunicorn_with_preload(platform: LocalPlatform) -> None:
    """The parent has connected before the fork; both workers call, and the server ends when it is told to."""
    port = free_port()
    words = ("gunicorn", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}", "gunicorn_app:app")
    with server(platform, *words) as child:
        await_server(child, port, platform)
        workers: set[str] = set()

        def both() -> bool:
            answer = get(port, "/?text=hello")
            found = re.fullmatch(r"HELLO \(worker (\d+) of (\d+)\)\n", answer)
            assert found is not None, answer
            assert int(found[2]) == child.pid
            workers.add(found[1])
            return len(workers) == 2

        wait_for(both, "both workers have answered", 60, platform.logs)


def test_server_example_celery(platform: LocalPlatform, tmp_path: Path) -> None:
    """A task in a process of the prefork pool calls functions and gets their values."""
    folder = {"CELERY_FOLDER": str(tmp_path / "celery")}
    words = ("celery", "--app", "celery_tasks", "worker", "--pool", "prefork", "--concurrency", "2")
    quiet = ("--without-heartbeat", "--without-gossip", "--without-mingle")
    with server(platform, *words, *quiet, **folder):
        program = (
            "from celery_tasks import shout_twice\n"
            "tasks = [shout_twice.delay(text) for text in ('a', 'b', 'c', 'd')]\n"
            "print([task.get(timeout=60) for task in tasks])\n"
        )
        said = subprocess.run(
            [sys.executable, "-c", program],
            cwd=EXAMPLES,
            env={**platform.env, "PYTHONDONTWRITEBYTECODE": "1", **folder},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert said.stdout == "[['A', 'A, A'], ['B', 'B, B'], ['C', 'C, C'], ['D', 'D, D']]\n", said.stderr


def test_server_example_threads_and_processes(platform: LocalPlatform) -> None:
    """64 threads share a connection; forked and spawned processes make their own; the program ends."""
    said = subprocess.run(
        [sys.executable, "pools.py"],
        cwd=EXAMPLES,
        env={**platform.env, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == ["A B", "fork 11", "spawn 11", "AND THE PARENT GOES ON"]
    assert "not acknowledged" not in said.stderr

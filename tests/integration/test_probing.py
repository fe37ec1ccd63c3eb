"""Probes against real ports and commands, and what becomes of an instance by them."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pelton.core.spec import ProbeSpec
from pelton_platform import process
from pelton_platform.deploy.probing import Health, ask, run_beside
from support.local_platform import wait_for

pytestmark = pytest.mark.integration


class Answers(BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self) -> None:
        """Answers."""
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def server() -> Iterator[int]:
    """A port with an HTTP server."""
    running = ThreadingHTTPServer((process.LOOPBACK, 0), Answers)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield running.server_port
    finally:
        running.shutdown()
        running.server_close()


def no_command(words: object, seconds: float) -> str:
    """No command is to be run."""
    raise AssertionError(words)


@pytest.mark.parametrize(
    ("status", "well"), [(200, True), (204, True), (302, True), (404, False), (503, False)]
)
def test_http_probe_goes_by_the_status(status: int, well: bool) -> None:
    """From 200 to 399 is well; redirects are not followed."""
    with server() as port:
        said = ask(ProbeSpec("http", path=f"/{status}"), port, no_command)
        assert said == ("" if well else f"GET /{status} at port {port} answers {status}")


def test_probes_of_a_port_nobody_listens_on() -> None:
    """Refused is said as such, with the port; the probe's own port counts more than the instance's."""
    port = process.free_port()
    assert ask(ProbeSpec("tcp"), port, no_command) == f"port {port}: Connection refused"
    assert ask(ProbeSpec("http", path="/"), port, no_command) == f"port {port}: Connection refused"
    with server() as other:
        assert ask(ProbeSpec("tcp", port=other), port, no_command) == ""


def test_probe_of_a_program_that_does_not_answer_takes_its_time_and_no_more() -> None:
    """A port that takes connections and says nothing is alive for tcp, and not for http."""
    with socket.create_server((process.LOOPBACK, 0)) as silent:
        port = silent.getsockname()[1]
        assert ask(ProbeSpec("tcp", timeout_ms=200), port, no_command) == ""
        said = ask(ProbeSpec("http", path="/", timeout_ms=200), port, no_command)
        assert said == f"port {port} does not answer within 0.2 s"


def test_command_of_a_probe_runs_where_its_program_does(tmp_path: Path) -> None:
    """Its folder and environment; exit code, last words and time are told, and nothing of it stays."""
    env = {"PATH": os.environ["PATH"], "WORD": "no"}
    run = partial(run_beside, env=env, folder=tmp_path)
    (tmp_path / "here").touch()
    assert run(["test", "-e", "here"], 5.0) == ""
    assert run(["sh", "-c", "echo first; echo $WORD database; exit 3"], 5.0) == (
        "sh ends with exit code 3: no database"
    )
    assert run(["no-such-program"], 5.0).startswith("no-such-program: ") or "exit code" in run(
        ["no-such-program"], 5.0
    )
    said = run(["sh", "-c", "echo $$ > pid; sleep 60 & wait"], 0.3)
    assert said == "sh takes longer than 0.3 s"
    assert process.group_members(int((tmp_path / "pid").read_text())) == ()


def test_health_follows_readiness() -> None:
    """Ready with the first success; not ready any more only after so many failures in a row."""
    wrong = ["starts"]
    health = Health(
        ProbeSpec("exec", command=("x",), period_ms=20, timeout_ms=100, failures=3),
        None,
        0,
        lambda words, seconds: wrong[0],
        lambda reason: None,
    )
    over = threading.Event()
    try:
        assert not health.ready
        health.start(over)
        wait_for(lambda: health.reason == "it is not ready: starts", "the reason")
        wrong[0] = ""
        wait_for(lambda: health.ready, "readiness")
        assert health.reason == ""
        wrong[0] = "full"
        wait_for(lambda: not health.ready, "the loss of it")
        assert health.reason == "it is not ready: full"
    finally:
        over.set()


def test_health_without_probes_is_ready_at_once() -> None:
    """A program of which nothing is known but that it runs is taken for ready."""
    assert Health(None, None, 0, no_command, lambda reason: None).ready


def test_liveness_is_asked_only_of_what_was_ready() -> None:
    """A program that takes its time to start is not ended for it; later, so many failures are its end."""
    dead: list[str] = []
    ready, wrong = [""], ["hangs"]
    health = Health(
        ProbeSpec("exec", command=("ready",), period_ms=20, timeout_ms=100, failures=1),
        ProbeSpec("exec", command=("alive",), period_ms=20, timeout_ms=100, failures=2),
        0,
        lambda words, seconds: ready[0] if words == ("ready",) else wrong[0],
        dead.append,
    )
    ready[0] = "loads"
    over = threading.Event()
    try:
        health.start(over)
        wait_for(lambda: health.reason == "it is not ready: loads", "the start")
        assert not over.wait(0.2)
        assert dead == []
        ready[0] = ""
        wait_for(lambda: dead == ["its liveness probe failed 2 times: hangs"], "its end")
    finally:
        over.set()

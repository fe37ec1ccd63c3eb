"""The gateway with real servers behind it: pages, the reverse proxy, web sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus

from pelton_platform import process
from pelton_platform.deploy.home import Home, write_json
from pelton_platform.deploy.port import READY, STARTING, ContainerState, InstanceState
from pelton_platform.supervisor.doorman import Doorman
from support.local_platform import wait_for

pytestmark = pytest.mark.integration

EVIL = "<script>alert(1)</script>"


class Program(BaseHTTPRequestHandler):
    """A program that tells what it was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Tells path and headers; some paths do something else."""
        if self.path == "/slow":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for _ in range(3):
                self.wfile.write(b"5\r\nchunk\r\n")
                self.wfile.flush()
                assert self.server.go.wait(10)  # type: ignore[attr-defined]
            self.wfile.write(b"0\r\n\r\n")
            return
        if self.path == "/break":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        moved = {"/old": "/new?x=1", "/away": "http://elsewhere.test/", "/there": "//elsewhere.test/"}
        self.answer(302 if self.path in moved else 200, b"", moved.get(self.path))

    def do_POST(self) -> None:
        """Tells the body too."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(201, body, None)

    def answer(self, status: int, body: bytes, location: str | None) -> None:
        """Sends what was asked as JSON."""
        port = cast(ThreadingHTTPServer, self.server).server_port
        told = {
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "size": len(body),
            "port": port,
        }
        data = json.dumps(told).encode()
        self.send_response(status)
        if location is not None:
            self.send_header("Location", location)
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Keep-Alive", "timeout=5")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def program() -> Iterator[ThreadingHTTPServer]:
    """A running program."""
    server = ThreadingHTTPServer((process.LOOPBACK, 0), Program)
    server.go = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Gateway:
    """A gateway process behind its door.

    Attributes:
        home: Home folder whose deployer's file it reads.
        door: The door.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.door = Doorman(None)
        self.tell()

    def tell(self, *containers: ContainerState) -> None:
        """Write what a deployer would."""
        states = {state.container: asdict(state) for state in containers}
        write_json(self.home.deployer_file, {"containers": states, "scaling": {}})

    def start(self) -> None:
        """Start the process, as the supervisor does."""
        self.door.start(self.home.root, self.home.logs / "gateway.log", "WARNING")

    def ask(
        self, path: str, method: str = "GET", body: Any = None, **headers: str
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Send a request; returns status, headers and body."""
        connection = http.client.HTTPConnection(self.door.address.removeprefix("http://"), timeout=20)
        try:
            connection.request(
                method, path, body, {name.replace("_", "-"): text for name, text in headers.items()}
            )
            answer = connection.getresponse()
            given = [(name.lower(), text) for name, text in answer.getheaders()]
            return answer.status, given, answer.read()
        finally:
            connection.close()

    def json(self, path: str, **headers: str) -> Any:
        """Ask for JSON."""
        return json.loads(self.ask(path, accept="application/json", **headers)[2])


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for all tests."""
    home = Home(tmp_path_factory.mktemp("gateway") / "home")
    home.prepare()
    made = Gateway(home)
    made.start()
    try:
        yield made
    finally:
        made.door.close()


def web(*ports: int, status: str = "running", reason: str = "", state: str = READY) -> ContainerState:
    """A container whose instances have these ports."""
    instances = tuple(InstanceState(f"web-{port}", 3, 1, state, reason, port) for port in ports)
    return ContainerState("web", 3, len(ports), instances, reason, status=status)


def test_gateway_is_well(gateway: Gateway) -> None:
    """A question for its health is answered."""
    assert gateway.ask("/healthz")[0] == 200
    assert gateway.json("/healthz") == {"status": "ok"}


def test_gateway_has_a_page_for_every_container(gateway: Gateway) -> None:
    """As JSON, HTML and text, and status 200 however the container is, also when there is none."""
    gateway.tell(web(8001, status="crash-loop", reason="it ended with exit code 1"))
    status, headers, text = gateway.ask("/containers/web")
    assert status == 200
    assert dict(headers)["content-type"].startswith("text/plain")
    assert text.decode().splitlines()[:2] == [
        "web: crash-loop, version 3, 1/1 ready",
        "  it ended with exit code 1",
    ]
    found = gateway.json("/containers/web")
    assert (found["status"], found["path"], found["instances"][0]["port"]) == ("crash-loop", "/c/web/", 8001)
    status, headers, page = gateway.ask("/containers/web", accept="text/html,application/xhtml+xml")
    assert status == 200
    assert dict(headers)["content-type"].startswith("text/html")
    assert b"it ended with exit code 1" in page
    assert [one["name"] for one in gateway.json("/containers")] == ["web"]
    status, _, text = gateway.ask("/containers/nobody")
    assert (status, text.decode().splitlines()[0]) == (200, "nobody: unknown, version 0, 0/0 ready")


def test_gateway_pages_take_words_for_words(gateway: Gateway) -> None:
    """What a program has printed, and names in a request, are text on a page and never a part of it."""
    gateway.tell(web(8001, status="starting", reason=EVIL))
    for path in ("/containers/web", "/containers/%3Cscript%3Ealert"):
        _, headers, page = gateway.ask(path, accept="text/html")
        assert b"<script>" not in page
        assert "default-src 'none'" in dict(headers)["content-security-policy"]


def test_gateway_answers_only_to_names_of_this_machine(gateway: Gateway) -> None:
    """A page elsewhere whose name was made to mean this machine reads nothing."""
    assert gateway.ask("/containers", host="evil.test")[0] == 400
    assert gateway.ask("/c/web/", host="evil.test")[0] == 400
    assert gateway.ask("/healthz", host="localhost:1")[0] == 200


def test_gateway_sends_requests_on_as_they_came(gateway: Gateway) -> None:
    """Path, query, method, body and headers arrive; those of one connection do not, others are added."""
    with program() as server:
        gateway.tell(web(server.server_address[1]))
        status, headers, body = gateway.ask(
            "/c/web/a%2Fb/c?x=1&y=%20", x_mine="yes", connection="x-hop", x_hop="no", te="trailers"
        )
        told = json.loads(body)
        assert (status, told["path"]) == (200, "/a%2Fb/c?x=1&y=%20")
        assert told["headers"]["x-mine"] == "yes"
        assert not {"x-hop", "te", "accept-encoding", "user-agent"} & told["headers"].keys() - {
            "accept-encoding"
        }
        assert told["headers"]["x-forwarded-for"] == process.LOOPBACK
        assert told["headers"]["x-forwarded-prefix"] == "/c/web"
        assert told["headers"]["host"] == gateway.door.address.removeprefix("http://")
        assert [text for name, text in headers if name == "set-cookie"] == ["a=1", "b=2"]
        assert "keep-alive" not in {name for name, _ in headers}
        status, _, body = gateway.ask("/c/web/up", "POST", b"x" * 3_000_000)
        assert (status, json.loads(body)["size"]) == (201, 3_000_000)
        status, _, body = gateway.ask("/c/web/up", "POST", iter([b"ab", b"cde"]))
        assert (status, json.loads(body)["size"]) == (201, 5)
        assert gateway.ask("/c/web")[0] == 307


def test_gateway_passes_on_what_comes_as_it_comes(gateway: Gateway) -> None:
    """A chunk is there before the program has written the next one."""
    with program() as server:
        gateway.tell(web(server.server_address[1]))
        connection = http.client.HTTPConnection(gateway.door.address.removeprefix("http://"), timeout=10)
        connection.request("GET", "/c/web/slow")
        answer = connection.getresponse()
        assert answer.read1(100) == b"chunk"
        server.go.set()  # type: ignore[attr-defined]
        assert answer.read() == b"chunkchunk"
        connection.close()


def test_gateway_moves_redirects_with_it(gateway: Gateway) -> None:
    """A redirect within the program stays within it from outside; one that leads away does as it says."""
    with program() as server:
        gateway.tell(web(server.server_address[1]))
        where = {
            path: dict(gateway.ask(f"/c/web/{path}")[1])["location"] for path in ("old", "away", "there")
        }
        assert where == {
            "old": "/c/web/new?x=1",
            "away": "http://elsewhere.test/",
            "there": "//elsewhere.test/",
        }


def test_gateway_shares_requests_out_and_passes_over_the_dead(gateway: Gateway) -> None:
    """Ready instances take turns; one that does not listen any more costs nobody a request."""
    with program() as first, program() as second:
        ports = {first.server_address[1], second.server_address[1]}
        gateway.tell(web(*ports, process.free_port()))
        assert {json.loads(gateway.ask("/c/web/")[2])["port"] for _ in range(6)} == ports


def test_gateway_says_why_nobody_answers(gateway: Gateway) -> None:
    """No ready instance, none that listens, none with a port: 503 with the reason, and when to come again."""
    gateway.tell(web(8001, status="starting", reason="it is not ready: connection refused", state=STARTING))
    status, headers, text = gateway.ask("/c/web/")
    assert (status, dict(headers)["retry-after"]) == (503, "1")
    assert text.decode() == (
        "container web has no instance that answers (starting): it is not ready: connection refused\n"
    )
    gateway.tell(web(0))
    assert b"it has no port" in gateway.ask("/c/web/")[2]
    assert gateway.ask("/c/nobody/")[0] == 503
    with program() as server:
        gateway.tell(web(server.server_address[1]))
        status, _, text = gateway.ask("/c/web/break")
        assert (status, b"broke off" in text) == (502, True)


async def _echo(connection: ServerConnection) -> None:
    assert connection.request is not None
    await connection.send(connection.request.path)
    async for message in connection:
        if message == "end":
            await connection.close(4001, "as you wish")
            return
        await connection.send(message)


def test_gateway_joins_web_sockets(gateway: Gateway) -> None:
    """Texts and bytes go both ways, with path, subprotocol and the code of the end."""

    async def talk() -> None:
        async with serve(_echo, process.LOOPBACK, 0, subprotocols=["chat"]) as server:  # type: ignore[list-item]
            gateway.tell(web(next(iter(server.sockets)).getsockname()[1]))
            address = gateway.door.address.replace("http", "ws")
            async with connect(f"{address}/c/web/room?a=1", subprotocols=["chat"], proxy=None) as client:  # type: ignore[list-item]
                assert client.subprotocol == "chat"
                assert await client.recv() == "/room?a=1"
                for message in ("hello", b"\x00\x01", "x" * 2**20):
                    await client.send(message)
                    assert await client.recv() == message
                await client.send("end")
                await client.wait_closed()
                assert (client.close_code, client.close_reason) == (4001, "as you wish")
            gateway.tell()
            with pytest.raises(InvalidStatus):
                await connect(f"{address}/c/web/room", proxy=None)

    asyncio.run(asyncio.wait_for(talk(), 30))


def test_gateway_is_started_by_who_knocks_and_again_when_it_died(tmp_path: Path) -> None:
    """Nobody is refused: connections wait for the process, and for the next one after a kill."""
    home = Home(tmp_path / "home")
    home.prepare()
    made = Gateway(home)
    try:
        assert not made.door.someone_knocks()
        assert made.door.pid == 0
        for _ in range(2):
            with socket.create_connection(
                (process.LOOPBACK, int(made.door.address.rpartition(":")[2]))
            ) as early:
                early.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                wait_for(made.door.someone_knocks, "the knock")
                made.start()
                assert not made.door.someone_knocks()
                answer = b""
                while data := early.recv(4096):
                    answer += data
                assert answer.startswith(b"HTTP/1.1 200")
            pid = made.door.pid
            identity = process.identify(pid)
            assert identity is not None
            process.terminate(identity, 0.0)
            wait_for(lambda: made.door.ended, "its end")
    finally:
        made.door.close()


def test_gateway_is_a_process_of_its_own() -> None:
    """It knows neither Kafka's client nor any other service of the platform."""
    code = (
        "import sys, pelton_platform.gateway.app\n"
        "print([m for m in sys.modules if m in ('confluent_kafka', 'fastavro') "
        "or m.startswith(('pelton_platform.coordinator', 'pelton_platform.supervisor'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

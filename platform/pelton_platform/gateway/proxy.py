"""The reverse proxy: requests and web sockets go on to a ready instance of a container, as they came."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final

import httpx
from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from pelton_platform import process, telemetry
from pelton_platform.gateway.directory import Backend, Directory

PREFIX: Final = "/c"
"""Where the programs of containers answer: `/c/NAME/...`."""

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one connection, which end at a proxy (RFC 9110, 7.6.1)."""

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CONNECT_S: Final = 5.0
_MAX_FRAME: Final = 16 * 1024 * 1024
_TRY_AGAIN: Final = 503
_BAD_GATEWAY: Final = 502
_GOING_AWAY: Final = 1013
_log = telemetry.get_logger(__name__)


class Proxy:
    """Sends requests on.

    Args:
        directory: Knows which instances are ready.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        # Nothing of the environment counts (proxies, .netrc): instances are on this machine.
        self._client = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=5.0),
        )
        # A request goes on with its own headers alone: who has not asked for compression gets none.
        for header in list(self._client.headers):
            del self._client.headers[header]

    async def close(self) -> None:
        """End all connections."""
        await self._client.aclose()

    async def request(self, request: Request) -> Response:
        """Answer a request by what an instance answers."""
        name = request.path_params["name"]
        backends = self._directory.backends(name)
        if not backends:
            return self._unavailable(name)
        for backend in backends:
            try:
                return await self._send(request, name, backend)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                # Nothing was sent, so another one may be asked.
                _log.warning("instance-not-reached", instance=backend.instance, reason=str(error))
            except httpx.TransportError as error:
                _log.warning("instance-broke-off", instance=backend.instance, reason=repr(error))
                return PlainTextResponse(f"{backend.instance} broke off: {error}\n", _BAD_GATEWAY)
        return self._unavailable(name)

    def _unavailable(self, name: str) -> Response:
        state = self._directory.state(name)
        why = state["reason"] or next((one["reason"] for one in state["instances"] if one["reason"]), "")
        if not why and state["instances"] and not any(one["port"] for one in state["instances"]):
            why = "it has no port; give the container port="
        text = (
            f"container {name} has no instance that answers ({state['status']}){': ' + why if why else ''}\n"
        )
        return PlainTextResponse(text, _TRY_AGAIN, {"Retry-After": "1"})

    async def _send(self, request: Request, name: str, backend: Backend) -> Response:
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        sent = self._client.build_request(
            request.method,
            f"http://{_target(request, name, backend)}",
            headers=_forwarded(request, name),
            content=_body(request) if has_body else None,
        )
        answer = await self._client.send(sent, stream=True)
        response = StreamingResponse(
            answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose)
        )
        response.raw_headers = [
            (key, _moved(value, name) if key.lower() == b"location" else value)
            for key, value in answer.headers.raw
            if key.decode("latin-1").lower() not in _of_connection(answer.headers)
        ]
        return response

    async def websocket(self, websocket: WebSocket) -> None:
        """Join a web socket with one of an instance."""
        name = websocket.path_params["name"]
        for backend in self._directory.backends(name):
            try:
                connection = await connect(
                    f"ws://{_target(websocket, name, backend)}",
                    additional_headers=[
                        (key, value)
                        for key, value in _forwarded(websocket, name)
                        if not key.startswith("sec-websocket-") and key not in ("host", "origin")
                    ],
                    origin=websocket.headers.get("origin"),  # type: ignore[arg-type]
                    subprotocols=[Subprotocol(one) for one in websocket.scope.get("subprotocols", ())]
                    or None,
                    proxy=None,
                    open_timeout=_CONNECT_S,
                    max_size=_MAX_FRAME,
                )
            except (OSError, TimeoutError, InvalidHandshake) as error:
                _log.warning("instance-not-reached", instance=backend.instance, reason=str(error))
                continue
            async with connection:
                await websocket.accept(connection.subprotocol)
                await _join(websocket, connection)
            return
        await websocket.close(_GOING_AWAY)


def _target(request: HTTPConnection, name: str, backend: Backend) -> str:
    """Address and path of a request at an instance, the path as it was written."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    path = raw.partition(b"?")[0].decode("latin-1").removeprefix(f"{PREFIX}/{name}") or "/"
    query = request.scope["query_string"].decode("latin-1")
    return f"{process.LOOPBACK}:{backend.port}{path}{'?' + query if query else ''}"


def _of_connection(headers: Mapping[str, str]) -> frozenset[str]:
    """Names of the headers that are of one connection alone."""
    named = (word.strip().lower() for word in headers.get("connection", "").split(","))
    return _HOP_BY_HOP.union(named)


def _forwarded(request: HTTPConnection, name: str) -> list[tuple[str, str]]:
    """The headers of a request as they go on."""
    left_out = _of_connection(request.headers) | {"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"}
    kept = [(key, value) for key, value in request.headers.items() if key not in left_out]
    return [
        *kept,
        ("x-forwarded-for", request.client.host if request.client else process.LOOPBACK),
        ("x-forwarded-host", request.headers.get("host", "")),
        ("x-forwarded-proto", {"ws": "http", "wss": "https"}.get(request.url.scheme, request.url.scheme)),
        ("x-forwarded-prefix", f"{PREFIX}/{name}"),
    ]


def _moved(location: bytes, name: str) -> bytes:
    """Where a redirect of a program leads, seen from outside."""
    if location.startswith(b"/") and not location.startswith(b"//"):
        return f"{PREFIX}/{name}".encode() + location
    return location


async def _body(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        yield chunk


async def _join(websocket: WebSocket, connection: ClientConnection) -> None:
    """Carry messages both ways until one side ends."""

    async def outwards() -> None:
        try:
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    await connection.close(message.get("code") or 1000)
                    return
                text = message.get("text")
                await connection.send(text if text is not None else message["bytes"])
        except ConnectionClosed:
            return

    async def inwards() -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                if isinstance(message, str):
                    await websocket.send_text(message)
                else:
                    await websocket.send_bytes(message)
        await websocket.close(_code_of(connection), connection.close_reason)

    await _first_of((outwards(), inwards()))


def _code_of(connection: ClientConnection) -> int:
    """The code by which an instance ended a web socket, as one that may be sent."""
    code = connection.close_code
    return 1011 if code is None or code in (1005, 1006, 1015) else code


async def _first_of(jobs: Iterable[object]) -> None:
    """Wait for one of some jobs, and end the others."""
    tasks = [asyncio.ensure_future(job) for job in jobs]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

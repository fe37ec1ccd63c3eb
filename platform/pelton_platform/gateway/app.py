"""The gateway's routes: health, the pages of containers, and the way to their programs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute

from pelton_platform.gateway.directory import Directory
from pelton_platform.gateway.pages import as_html, as_json, as_text
from pelton_platform.gateway.proxy import PREFIX, Proxy

METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

_HOSTS: Final = ["127.0.0.1", "localhost"]
# Whoever can make a browser believe that a name of theirs is this machine still reads nothing here.
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


def make_app(directory: Directory) -> Starlette:
    """Return the application of one gateway."""
    proxy = Proxy(directory)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"}, headers=_HEADERS)

    async def containers(request: Request) -> Response:
        found = [_known(directory, name) for name in directory.names()]
        if _wanted(request) == "json":
            return JSONResponse(found, headers=_HEADERS)
        return PlainTextResponse(
            "".join(map(as_text, found)) or "no container is deployed\n", headers=_HEADERS
        )

    async def container(request: Request) -> Response:
        data = _known(directory, request.path_params["name"])
        match _wanted(request):
            case "json":
                return JSONResponse(data, headers=_HEADERS)
            case "html":
                return HTMLResponse(as_html(data), headers=_HEADERS)
        return PlainTextResponse(as_text(data), headers=_HEADERS)

    async def to_root(request: Request) -> Response:
        return RedirectResponse(f"{PREFIX}/{request.path_params['name']}/")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await proxy.close()

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/containers", containers),
            Route("/containers/{name}", container),
            Route(PREFIX + "/{name}", to_root, methods=METHODS),
            Route(PREFIX + "/{name}/{path:path}", proxy.request, methods=METHODS),
            WebSocketRoute(PREFIX + "/{name}/{path:path}", proxy.websocket),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)],
        lifespan=lifespan,
    )


def _known(directory: Directory, name: str) -> dict[str, object]:
    state = directory.state(name)
    has_port = any(one["port"] for one in state["instances"])
    return as_json(name, state, directory.scaling(name), f"{PREFIX}/{name}/" if has_port else "")


def _wanted(request: Request) -> str:
    """What form of a page is asked for: browsers name HTML, programs JSON, and people at a shell nothing."""
    asked = request.query_params.get("format") or request.headers.get("accept", "")
    return next((form for form in ("json", "html") if form in asked), "text")

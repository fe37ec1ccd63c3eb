"""A WSGI application for gunicorn with `--preload`: the parent connects, and each worker connects anew.

Run it with `gunicorn --preload --workers 2 gunicorn_app:app`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from urllib.parse import parse_qs

from texts import shout

# Runs once, in the parent: a server without the function it needs does not start.
shout.wait_ready(timeout=60)
PARENT = os.getpid()


def app(environ: dict[str, str], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Calls with what the worker inherited; nothing has to be done after the fork."""
    text = parse_qs(environ["QUERY_STRING"]).get("text", [""])[0]
    answer = f"{shout(text)} (worker {os.getpid()} of {PARENT})\n"
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [answer.encode()]

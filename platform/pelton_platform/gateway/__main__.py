"""Runs the gateway: `python -m pelton_platform.gateway --home FOLDER --fd NUMBER`."""

from __future__ import annotations

import argparse
import logging
import socket
from pathlib import Path

import uvicorn

from pelton_platform import telemetry
from pelton_platform.deploy.home import Home
from pelton_platform.gateway.app import make_app
from pelton_platform.gateway.directory import Directory

_GRACE_S = 2


def main() -> None:
    """Serve on a socket that listens already until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--log-level", default="INFO")
    told = parser.parse_args()
    telemetry.set_up("gateway", level=told.log_level)
    # A line for each request is what access logs are for, and this one has none.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = uvicorn.Config(
        make_app(Directory(Home(told.home))),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    with socket.socket(fileno=told.fd) as listening:
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()

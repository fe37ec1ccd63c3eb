"""The gateway's door: a socket that listens from the start, and the process behind it, started by a knock."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from pathlib import Path

from pelton.errors import PeltonError
from pelton_platform import process

USUAL_PORT = 8750

_BACKLOG = 512
_GRACE_S = 5.0
_MAX_LOG_BYTES = 16 * 1024 * 1024


class Doorman:
    """Listens at the port of the gateway for as long as the platform runs.

    A platform whose gateway nobody uses has no process for it. One that ends is started again by the next
    request, and who has connected meanwhile waits instead of being refused.

    Args:
        port: Where to listen; None for the usual port, or any where that is taken.

    Raises:
        PeltonError: The port is in use.
    """

    def __init__(self, port: int | None) -> None:
        self._socket = _listen(port)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where the gateway answers."""
        host, port = self._socket.getsockname()
        return f"http://{host}:{port}"

    @property
    def pid(self) -> int:
        """Pid of the gateway, 0 when it does not run."""
        return self._child.pid if self._child is not None and self._child.poll() is None else 0

    @property
    def ended(self) -> bool:
        """Whether a gateway was started and has ended."""
        return self._child is not None and self._child.poll() is not None

    def someone_knocks(self) -> bool:
        """Say whether somebody has connected and nobody is there to answer."""
        return not self.pid and bool(select.select([self._socket], [], [], 0)[0])

    def start(self, home: Path, log: Path, log_level: str) -> None:
        """Start the gateway.

        Raises:
            OSError: It cannot be started.
        """
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
        number = self._socket.fileno()
        words = ["--home", str(home), "--fd", str(number), "--log-level", log_level]
        with log.open("ab") as output:
            self._child = process.spawn(
                [sys.executable, "-m", "pelton_platform.gateway", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(number,),
                die_with_parent=True,
            )

    def close(self) -> None:
        """End the gateway and listen no more."""
        self._socket.close()
        if self._child is not None:
            process.terminate_child(self._child, _GRACE_S)


def _listen(port: int | None) -> socket.socket:
    error = ""
    for candidate in (USUAL_PORT, process.free_port(), 0) if port is None else (port,):
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((process.LOOPBACK, candidate))
            listening.listen(_BACKLOG)
        except OSError as failed:
            listening.close()
            error = failed.strerror or str(failed)
            continue
        return listening
    raise PeltonError(
        f"the gateway cannot listen on port {port}: {error}; set PELTON_GATEWAY_PORT to another"
    )

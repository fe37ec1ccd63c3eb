"""Runs the platform of the demo: its own home folder, the `pelton` command, and a clean end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

import pelton
from pelton.core.spec import InstanceStatus

PELTON = str(Path(sys.executable).with_name("pelton"))


class DemoFailed(Exception):
    """The demo did not show what it promises; the message says what was missing."""


class Platform:
    """A platform in a folder of its own, driven through the `pelton` command like by any user."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home = home
        self._connection: pelton.Connection | None = None
        self.environment = {**os.environ, **environment, "PELTON_HOME": str(home)}

    def run(self, *arguments: str, quiet: bool = False) -> str:
        """Runs `pelton ARGUMENTS`; returns what it printed.

        Raises:
            DemoFailed: it ended with an exit code other than 0.
        """
        ended = subprocess.run(
            [PELTON, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if quiet else None,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            said = (ended.stderr or "") + ended.stdout
            raise DemoFailed(f"`pelton {' '.join(arguments)}` ended with {ended.returncode}\n{said}".rstrip())
        return ended.stdout

    def context(self) -> dict[str, Any]:
        """How to reach the platform."""
        found: dict[str, Any] = json.loads((self.home / "context.json").read_text())
        return found

    def workers(self) -> list[InstanceStatus]:
        """Ready instances of the ticket workers, as the platform's registry has them at this moment."""
        if self._connection is None:
            os.environ["PELTON_HOME"] = str(self.home)
            self._connection = pelton.connect()
        found = self._connection.directory.instances("ticket-workers")
        return [status for status in found if status.state == "ready"]

    def last_words(self, lines: int = 20) -> str:
        """The ends of all logs."""
        told = []
        for path in sorted((self.home / "logs").rglob("*.log")):
            end = path.read_text(errors="replace").splitlines()[-lines:]
            told.append("\n".join((f"--- {path.name}", *end)))
        return "\n".join(told)

    def disconnect(self) -> None:
        """Leaves the platform, before it is stopped."""
        if self._connection is not None:
            self._connection = None
            pelton.close()

    def processes(self) -> list[psutil.Process]:
        """Every process that runs with this platform's home folder in its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("PELTON_HOME") == str(self.home)
                mine = mine or any(str(self.home) in part for part in process.cmdline())
            except psutil.Error:
                continue
            if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def left_behind(self, within_s: float = 10.0) -> list[str]:
        """Processes still there after some time; none, if all is well."""
        until = time.monotonic() + within_s
        while (left := self.processes()) and time.monotonic() < until:
            psutil.wait_procs(left, timeout=0.2)
        return [f"{process.pid} {process.name()}" for process in left]

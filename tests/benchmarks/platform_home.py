"""A platform of the benchmarks' own, driven by the `pelton` command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pelton.transport.config import ConnectionConfig, find_context
from pelton_platform.deploy.home import Home
from pelton_platform.supervisor.state import read_state

PELTON = str(Path(sys.executable).with_name("pelton"))


class PlatformHome:
    """A home folder and the commands on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        os.environ["PELTON_HOME"] = str(self.home)

    def run(self, *arguments: str) -> str:
        """Runs a command.

        Raises:
            RuntimeError: it failed.
        """
        ended = subprocess.run([PELTON, *arguments], capture_output=True, text=True, check=False)
        if ended.returncode:
            said = ended.stderr + ended.stdout
            raise RuntimeError(f"pelton {' '.join(arguments)} ended with {ended.returncode}: {said}")
        return ended.stdout

    def instances(self, container: str) -> list[dict[str, Any]]:
        """Ready instances of a container."""
        found = json.loads(self.run("ps", "--json"))
        return [x for x in found if x["container"] == container and x["state"] == "ready"]

    def wait_for_instances(self, container: str, count: int, within_s: float = 60) -> None:
        """Waits until so many are ready."""
        until = time.monotonic() + within_s
        while len(self.instances(container)) < count:
            if time.monotonic() > until:
                raise TimeoutError(f"{container} has no {count} instances after {within_s:g} s")

    def unfinished(self, function: str) -> int:
        """Calls of a function without an end, as its commits say."""
        found = json.loads(self.run("functions", "--json"))
        return int(next(x["unfinished"] for x in found if x["name"] == function))

    def connection(self) -> ConnectionConfig:
        """How to reach its Kafka."""
        return find_context()

    def cron_pid(self) -> int:
        """Of the service that fires timers."""
        state = read_state(Home(self.home))
        if state is None or not state.cron_pid:
            raise RuntimeError("the cron service does not run")
        return state.cron_pid

    def bootstrap_servers(self) -> str:
        """Of the platform's broker."""
        return str(json.loads((self.home / "context.json").read_text())["bootstrap_servers"])

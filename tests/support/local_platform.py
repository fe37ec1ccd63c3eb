"""A platform for tests, used as people use it: through the command `pelton`, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pelton_platform import process
from pelton_platform.deploy.home import HOME_VARIABLE, Home
from pelton_platform.supervisor.state import PlatformState, read_state
from support.embedded_broker import QUICK_JAVA, installed

T = TypeVar("T")

PELTON = str(Path(sys.executable).parent / "pelton")


def wait_for(
    condition: Callable[[], T], what: str, seconds: float = 30.0, explain: Callable[[], str] = str
) -> T:
    """Wait until a condition gives something true, and return that; looks every 20 ms."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s. {explain()}"
        time.sleep(0.02)
    return found


class LocalPlatform:
    """The commands of one home folder.

    Attributes:
        home: The home folder.
        work: A folder for source files.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.home = Home(folder / "home")
        self.work = folder / "work"
        self.work.mkdir(exist_ok=True)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("PELTON_")}
        self.env |= {"PELTON_HOME": str(self.home.root), "PELTON_PORT": str(process.free_port())}
        self.env |= {"PELTON_JAVA_FLAGS": " ".join(QUICK_JAVA)}
        self.env |= settings or {}

    def start(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command and return at once."""
        return subprocess.Popen(
            [PELTON, *words],
            env=self.env | dict(env or {}),
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        *words: str,
        code: int | None = 0,
        timeout: float = 90,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and check its exit code; None takes any."""
        done = subprocess.run(
            [PELTON, *words],
            env=self.env | dict(env or {}),
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if code is not None:
            told = f"pelton {' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
            assert done.returncode == code, f"{told}\n{self.logs()}"
        return done

    def json(self, *words: str, code: int | None = 0, env: Mapping[str, str] | None = None) -> Any:
        """Run a command with --json and return what it says."""
        return json.loads(self.run(*words, "--json", code=code, env=env).stdout)

    def write(self, name: str, source: str) -> Path:
        """Write a source file into the work folder."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def deploy(self, name: str, source: str, env: Mapping[str, str] | None = None) -> Any:
        """Write a source file into a folder of its own and deploy it."""
        return self.json("deploy", str(self.write(f"{Path(name).stem}/{name}", source)), env=env)

    def state(self) -> PlatformState:
        """What the state file says."""
        state = read_state(self.home)
        assert state is not None
        return state

    def instances(self, container: str) -> list[dict[str, Any]]:
        """What the deployer says of the instances of a container."""
        try:
            data = json.loads(self.home.deployer_file.read_text())
        except FileNotFoundError:
            return []
        found: list[dict[str, Any]] = data["containers"].get(container, {}).get("instances", [])
        return found

    def ready(self, container: str) -> list[dict[str, Any]]:
        """Those that are ready."""
        return [one for one in self.instances(container) if one["state"] == "ready"]

    def processes(self) -> tuple[process.ProcessIdentity, ...]:
        """Every live process that this platform started."""
        return process.processes_with_environment(HOME_VARIABLE, str(self.home.root))

    def await_state(self, call: str, state: str) -> None:
        """Wait until a call is in a state."""

        def shown() -> str:
            return str(self.json("calls", "show", call)["state"])

        wait_for(lambda: shown() == state, f"{state} of call {call}", 60, self.logs)

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process of this platform."""
        identity = process.identify(pid)
        assert identity is not None
        assert process.send_signal(identity, number)

    def logs(self) -> str:
        """The ends of all logs, for failures."""
        parts = []
        for path in sorted(self.home.logs.rglob("*.log")):
            parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:]))
        return "\n".join(parts)

    def clean_up(self) -> None:
        """Stop everything, whatever state it is in."""
        self.run("down", code=None)
        for left in self.processes():
            process.terminate(left, 1.0)


@contextmanager
def local_platform(
    folder: Path, settings: Mapping[str, str] | None = None, *, up: bool = True
) -> Iterator[LocalPlatform]:
    """A platform; without Apache Kafka skip on a laptop and fail in CI."""
    installed()
    platform = LocalPlatform(folder, settings)
    try:
        if up:
            platform.run("up", "--detach")
        yield platform
    finally:
        platform.clean_up()

"""Which Pythons this machine has, and which of them serves an image best."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pelton_platform import telemetry

OLDEST = (3, 11)
_ASK = "import sys; print('.'.join(map(str, sys.version_info[:3])), sys.implementation.name)"
_ASK_S = 20.0
_NAMED = re.compile(r"python3\.(\d+)")
_FOLDER = re.compile(r"(?:cpython-)?3\.(\d+)\.\d+(?:-.*)?")

_log = telemetry.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python of this machine.

    Attributes:
        path: Where it is.
        version: Its version, three numbers.
    """

    path: str
    version: tuple[int, int, int]

    @property
    def name(self) -> str:
        """The version as people write it."""
        return ".".join(map(str, self.version))

    def is_asked(self, asked: str) -> bool:
        """Say whether it is the version asked for, which may leave out its last number."""
        wanted = tuple(map(int, asked.split(".")))
        return self.version[: len(wanted)] == wanted


def this_python() -> Interpreter:
    """Return the one that the platform itself runs on."""
    return Interpreter(sys.executable, (sys.version_info[0], sys.version_info[1], sys.version_info[2]))


def choose(asked: str | None, found: Iterable[Interpreter]) -> Interpreter:
    """Choose the Python for an image.

    Args:
        asked: Version that the image asks for; None for that of the platform.
        found: Those there are, the platform's own first; of equal ones the first is taken.

    Returns:
        The one asked for, else the nearest that is not too old for Pelton.
    """
    candidates = list(found)
    if asked is None:
        return candidates[0]
    exact = [one for one in candidates if one.is_asked(asked)]
    if exact:
        return max(exact, key=lambda one: one.version)
    minor = int(asked.split(".")[1])

    def distance(one: Interpreter) -> tuple[int, int]:
        # Of two that are equally far away the newer one: it has what the older one has.
        return (abs(one.version[1] - minor), -one.version[1])

    return min((one for one in candidates if one.version >= OLDEST), key=distance)


@lru_cache
def find(asked: str | None) -> Interpreter:
    """Find the Python for an image: on the path, in the folders of pyenv and uv, or by uv itself.

    A process looks once for each version.
    """
    own = this_python()
    if asked is None or own.is_asked(asked):
        return own
    minor = int(asked.split(".")[1])
    seen = {os.path.realpath(sys.executable)}
    found = [own]
    # Asking a Python takes time, so the nearest are asked first, and no others once one of them has answered.
    places = sorted(_places(asked), key=lambda place: abs(place[1] - minor))
    for path, hint in places:
        if abs(hint - minor) > min(abs(one.version[1] - minor) for one in found):
            break
        real = os.path.realpath(path)
        if real not in seen and os.access(path, os.X_OK):
            seen.add(real)
            one = _look_at(path)
            if one is not None and one.version >= OLDEST:
                found.append(one)
    return choose(asked, found)


def _places(asked: str) -> Iterator[tuple[str, int]]:
    """Yield where Pythons may be, each with the minor version that its name tells."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        for name in names:
            if told := _NAMED.fullmatch(name):
                yield os.path.join(folder, name), int(told[1])
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    uv = Path(
        os.environ.get("UV_PYTHON_INSTALL_DIR")
        or Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "uv" / "python"
    )
    for versions in (pyenv, uv):
        for path in sorted(versions.glob("*/bin/python3")):
            if told := _FOLDER.fullmatch(path.parent.parent.name):
                yield str(path), int(told[1])
    found = _ask([uv_command(), "python", "find", "--no-project", "--no-python-downloads", asked])
    if found:
        yield found, int(asked.split(".")[1])


def _look_at(path: str) -> Interpreter | None:
    """Ask a Python who it is; None when it does not run, as the stand-ins of version managers may not."""
    version, _, implementation = _ask([path, "-I", "-S", "-c", _ASK]).partition(" ")
    parts = version.split(".")
    if implementation != "cpython" or len(parts) != 3:
        return None
    return Interpreter(path, (int(parts[0]), int(parts[1]), int(parts[2])))


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ASK_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.debug("python-not-usable", command=command[0], reason=str(error))
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def uv_command() -> str:
    """Return where uv is: the one that came with the platform, else the one on the path."""
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        return shutil.which("uv") or "uv"

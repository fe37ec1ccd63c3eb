"""Environments: what an image becomes on one machine, built once and kept under the hash of what made it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelton.core.spec import ImageSpec
from pelton.errors import DeployError
from pelton_platform import process
from pelton_platform.deploy import image_files, image_root, images
from pelton_platform.deploy.home import Home, HomeError, read_json, waited_for, write_json
from pelton_platform.deploy.images import Step
from pelton_platform.deploy.interpreters import Interpreter, find, this_python, uv_command
from pelton_platform.deploy.own_wheel import own_wheel

Tell = Callable[[str], None]

_LAST_LINES = 25
_STATE = "image.json"
_USED = ".used"


@dataclass(frozen=True, slots=True)
class Environment:
    """Where the code of an image runs.

    Attributes:
        key: Hash of all that it was made of; "" for the environment of the platform itself.
        python: Its interpreter.
        version: Version of its Python.
        root: Files of the image by their absolute paths; None when it has none.
        notes: What is not as the image says, one sentence each.
    """

    key: str
    python: str
    version: str
    root: Path | None
    notes: tuple[str, ...] = ()

    @property
    def is_separate(self) -> bool:
        """Whether its Python is not the platform's own."""
        return self.python != sys.executable

    @property
    def binaries(self) -> str:
        """Folder of its programs, the first on the path of what runs in it."""
        return str(Path(self.python).parent)


@dataclass(frozen=True, slots=True)
class Built:
    """An environment in the store, for people.

    Attributes:
        key: Its name.
        image: Hash of the image.
        python: Version of its Python.
        steps: What it was made of.
        size: Bytes on disk, files that it shares with the cache of packages included.
        used_s: Seconds since the epoch when it was last asked for.
        complete: Whether its build has ended well.
    """

    key: str
    image: str
    python: str
    steps: tuple[str, ...]
    size: int
    used_s: float
    complete: bool


class Environments:
    """The environments of one platform.

    Args:
        home: The home folder.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._folder = home.images

    def keep_files(self, image: ImageSpec, source: Path) -> None:
        """Keep the local files of an image, so that it can be built again without the folder they are in."""
        image_files.keep(image, source, self._home.image_files)

    def find(self, image: ImageSpec) -> Environment | None:
        """Return the environment of an image if it is there; takes note that it is used."""
        plan = self._plan(image)
        if not plan.key:
            return plan.environment(None)
        folder = self._folder / plan.key
        state = _state(folder)
        if not state.get("complete"):
            return None
        with contextlib.suppress(OSError):
            (folder / _USED).touch()
        return plan.environment(folder, tuple(state.get("notes", ())))

    def build(self, image: ImageSpec, what: str, tell: Tell) -> Environment:
        """Build the environment of an image, unless it is there; goes on with a build that was interrupted.

        Args:
            image: The image.
            what: Whose it is, for messages: `container 'train'`.
            tell: Gets each line that the build writes.

        Raises:
            DeployError: A step failed; the message ends with its last lines.
        """
        found = self.find(image)
        if found is not None:
            return found
        plan = self._plan(image)
        folder = self._folder / plan.key
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(
            self._folder / f"{plan.key}.lock", lambda: tell(f"{what}: its image is being built already")
        ):
            found = self.find(image)
            if found is not None:
                return found
            tell(f"{what}: building its image {plan.key[:12]} with Python {plan.interpreter.name}")
            began = time.monotonic()
            build = _Build(plan, folder, self._home, what, tell)
            build.run()
            tell(f"{what}: image {plan.key[:12]} was built in {time.monotonic() - began:.1f} s")
        built = self.find(image)
        if built is None:
            raise DeployError(f"{what}: its image was removed while it was built; deploy again")
        return built

    def built(self) -> list[Built]:
        """Return what is in the store, the last used first."""
        found = []
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            state = _state(folder)
            if state:
                found.append(_built(folder, state))
        return sorted(found, key=lambda built: -built.used_s)

    def prune(self, kept: frozenset[str]) -> tuple[list[str], int]:
        """Remove the environments of all other images; what they are built again from stays.

        Args:
            kept: Hashes of the images that deployed containers have.

        Returns:
            Keys of what was removed, and the bytes it took.
        """
        removed, size = [], 0
        for built in self.built():
            if built.image in kept and built.complete:
                continue
            with _locked(self._folder / f"{built.key}.lock"):
                _remove(self._folder / built.key)
                (self._folder / f"{built.key}.lock").unlink(missing_ok=True)
            removed.append(built.key)
            size += built.size
        return removed, size

    def _plan(self, image: ImageSpec) -> _Plan:
        return _Plan.of(image, self._home)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be built for an image on this machine.

    Attributes:
        image: The image.
        interpreter: The Python it starts from.
        wheel: The platform's own wheel; None when it needs no packages of its own.
        laid: Whether it has files.
        key: Hash over all of it, "" when the platform's own environment is what it asks for.
        notes: What is not as the image says.
    """

    image: ImageSpec
    interpreter: Interpreter
    wheel: Path | None
    laid: bool
    key: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, image: ImageSpec, home: Home) -> _Plan:
        interpreter = find(image.python)
        notes = list(_notes(image, interpreter))
        separate = images.has(image, images.PACKAGE_STEPS) or interpreter != this_python()
        laid = images.has(image, images.FILE_STEPS)
        if not separate and not laid:
            return cls(image, interpreter, None, False, "", tuple(notes))
        wheel = own_wheel(home.wheels) if separate else None
        parts = (image.digest, interpreter.path, interpreter.name, wheel.parent.name if wheel else "")
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
        return cls(image, interpreter, wheel, laid, key, tuple(notes))

    def environment(self, folder: Path | None, more: tuple[str, ...] = ()) -> Environment:
        python = self.interpreter.path
        if folder is not None and self.wheel is not None:
            python = str(folder / "venv" / "bin" / "python")
        root = folder / "root" if folder is not None and self.laid else None
        return Environment(self.key, python, self.interpreter.name, root, (*self.notes, *more))


class _Build:
    """One build under way, holding the lock of its folder."""

    def __init__(self, plan: _Plan, folder: Path, home: Home, what: str, tell: Tell) -> None:
        self._plan = plan
        self._folder = folder
        self._home = home
        self._what = what
        self._tell = tell
        self._root = folder / "root"
        self._venv = folder / "venv"
        self._workdir = ""
        self._env: dict[str, str] = {}
        self._notes: list[str] = []
        self._log = folder / "build.log"
        self._overrides = folder / "overrides.txt"

    def run(self) -> None:
        """Do every step that was not done before."""
        plan = self._plan
        steps = images.build_steps(plan.image)
        done = int(_state(self._folder).get("done", 0))
        self._notes = list(_state(self._folder).get("notes", ()))
        self._root.mkdir(exist_ok=True)
        if done == 0:
            self._start()
            self._save(steps, done := 1)
        for number, step in enumerate(steps, start=1):
            if step.kind == images.WORKDIR:
                self._workdir = step.words[0]
            if number < done:
                continue
            self._tell(f"{self._what}: step {number} of {len(steps)}: {step.label}")
            self._step(number, len(steps), step)
            self._save(steps, number + 1)
        self._save(steps, len(steps) + 1, complete=True)

    def _start(self) -> None:
        if self._plan.wheel is None:
            return
        shutil.rmtree(self._venv, ignore_errors=True)
        self._overrides.write_text(f"pelton @ {self._plan.wheel.as_uri()}\n")
        where = "its Python environment"
        self._call(
            where, [uv_command(), "venv", "--no-project", "--python", self._plan.interpreter.path, "venv"]
        )
        self._pip(where, [])
        shim = self._venv / "bin" / "pip"
        shim.write_text(
            f'#!/bin/sh\nverb=$1\nshift\nexec "{uv_command()}" pip "$verb" --python "{self._venv}" "$@"\n'
        )
        shim.chmod(0o755)

    def _step(self, number: int, count: int, step: Step) -> None:
        where = f"step {number} of {count}, {step.label},"
        files = self._home.image_files
        if step.kind == images.PIP_INSTALL or step.kind == images.PIP:
            self._pip(where, list(step.words))
        elif step.kind == images.PIP_REQUIREMENTS:
            self._pip(where, ["--requirements", str(files / step.words[-1])])
        elif step.kind == images.UV_SYNC:
            self._sync(where, files / step.words[-1])
        elif step.kind == images.WORKDIR:
            self._inside(self._workdir).mkdir(parents=True, exist_ok=True)
        elif step.kind in (images.ADD_FILE, images.ADD_DIR):
            image_files.lay(files / step.words[-1], self._inside(step.words[1]))
        elif step.kind == images.RUN_COMMANDS:
            self._command(where, step.words[0])

    def _pip(self, where: str, words: list[str]) -> None:
        """Install packages; beside ours, so that whoever else asks for `pelton` gets that one."""
        wheel = "" if self._plan.wheel is None else self._plan.wheel.as_uri()
        python = str(self._venv / "bin" / "python")
        words = [f"pelton[executor] @ {wheel}", *images.with_own_wheel(words, wheel)]
        self._call(where, [uv_command(), "pip", "install", "--python", python, *words])

    def _sync(self, where: str, project: Path) -> None:
        exported = self._folder / "exported.txt"
        words = ["--frozen", "--no-emit-project", "--no-emit-workspace", "--no-dev", "--quiet"]
        self._call(
            where, [uv_command(), "export", *words, "--project", str(project), "--output-file", str(exported)]
        )
        self._pip(where, ["--requirements", str(exported)])

    def _command(self, where: str, command: str) -> None:
        """Run a command of the image with the machine's own files protected from it."""
        against = image_root.reason_against()
        if against:
            note = f"`{command}` was not run: this machine gives builds no mount namespace ({against})"
            self._notes.append(note)
            self._tell(f"{self._what}: {note}")
            return
        scratch = self._folder / "scratch"
        scratch.mkdir(exist_ok=True)
        wrapped = [sys.executable, "-m", "pelton_platform.deploy.image_root", str(self._root), "--build"]
        inside = f"cd {self._workdir or '/'} && " if self._workdir else ""
        try:
            self._call(
                where,
                [*wrapped, "sh", "-ec", f"{inside}{command}"],
                PATH=os.pathsep.join((str(self._venv / "bin"), os.environ.get("PATH", os.defpath))),
                VIRTUAL_ENV=str(self._venv),
                TMPDIR=str(scratch),
                UV_CACHE_DIR=str(scratch / "uv"),
                UV_OVERRIDE=str(self._overrides),
                **images.image_environment(self._plan.image),
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _inside(self, path: str) -> Path:
        return self._root / os.path.normpath(path).lstrip("/")

    def _call(self, where: str, command: list[str], **env: str) -> None:
        """Run a program, tell its output, and raise with its last lines when it fails."""
        last: deque[str] = deque(maxlen=_LAST_LINES)
        child = process.spawn(
            command,
            env={**_clean(os.environ), **env},
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            die_with_parent=True,
        )
        output = child.stdout
        if output is None:
            raise RuntimeError("a build step is started with a pipe")
        try:
            with output, self._log.open("ab") as log:
                for line in output:
                    log.write(line)
                    text = line.decode(errors="replace").rstrip()
                    last.append(text)
                    self._tell(f"  {text}")
            code = child.wait()
        finally:
            process.terminate_child(child, 1.0)
        if code != 0:
            said = "\n".join(f"  {line}" for line in last) or "  (it wrote nothing)"
            raise DeployError(f"{self._what}: {where} failed with exit code {code}:\n{said}")

    def _save(self, steps: list[Step], done: int, *, complete: bool = False) -> None:
        write_json(
            self._folder / _STATE,
            {
                "image": self._plan.image.digest,
                "python": self._plan.interpreter.name,
                "steps": [step.label for step in steps],
                "done": done,
                "complete": complete,
                "notes": self._notes,
            },
        )


def _notes(image: ImageSpec, interpreter: Interpreter) -> Iterator[str]:
    """Yield what an image asks for and this machine does not give."""
    if image.python is not None and not interpreter.is_asked(image.python):
        yield f"Python {interpreter.name} instead of {image.python}, which this machine does not have"
    base = images.base_of(image)
    if base and image.python is None:
        yield f"the contents of {base} are not on this machine"
    missing = _missing_debian_packages(images.packages_of_debian(image))
    if missing:
        yield f"this machine lacks the Debian packages {' '.join(missing)}: apt-get install them"


def _missing_debian_packages(names: list[str]) -> list[str]:
    query = shutil.which("dpkg-query")
    if not names or query is None:
        return names
    done = subprocess.run(
        [query, "--show", "--showformat", "${binary:Package} ${db:Status-Status}\n", *names],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    there = {
        line.split()[0].partition(":")[0] for line in done.stdout.splitlines() if line.endswith(" installed")
    }
    return [name for name in names if name.partition(":")[0] not in there]


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what builds get of the environment: nothing of the platform, of Python, of another venv."""
    ours = ("PELTON_", "VIRTUAL_ENV", "PYTHON")
    return {name: value for name, value in environ.items() if not name.startswith(ours)}


def _state(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / _STATE) or {}
    except (HomeError, NotADirectoryError):
        # A build that is not known to have ended well is made again.
        return {}


def _built(folder: Path, state: Mapping[str, Any]) -> Built:
    used = folder / _USED
    stat = (used if used.exists() else folder / _STATE).stat()
    return Built(
        folder.name,
        str(state["image"]),
        str(state["python"]),
        tuple(state["steps"]),
        _size(folder),
        stat.st_mtime,
        bool(state["complete"]),
    )


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _remove(folder: Path) -> None:
    """Remove an environment; its mark goes first, so that half of one is never taken for a whole one."""
    (folder / _STATE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _locked(
    path: Path, on_wait: Callable[[], None] = lambda: None
) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of an environment, however long somebody else builds it."""
    return waited_for(path, on_wait=on_wait)

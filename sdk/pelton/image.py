"""Images: what the environment of a container needs, recorded step by step and hashed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from pelton.core.spec import ImageSpec
from pelton.errors import DefinitionError
from pelton.loading import active
from pelton.policies import checked_env, checked_words

_PYTHON: Final = re.compile(r"3\.\d{1,2}(\.\d{1,3})?")
_PYTHON_REF: Final = re.compile(rf"(?:.*/)?python:({_PYTHON.pattern})(?:-.*)?")
_FOLDER_STEPS: Final = ("add_local_dir",)
_PROJECT_FILES: Final = ("pyproject.toml", "uv.lock")

LOCAL_STEPS: Final = ("add_local_file", "add_local_dir", "pip_requirements", "uv_sync")
"""Steps that take something of the folder that is deployed: in specs their last word is its digest."""

Step = tuple[str, tuple[str, ...]]


class Image:
    """An environment, described by steps; each method returns a new image with one step more.

    `Image.debian_slim(python="3.12").pip_install(["httpx>=0.27"]).env({"TZ": "UTC"})`

    Steps are taken in their order. On one machine an image becomes a cached Python environment with its files
    laid out beside it; `pelton images dockerfile` writes the Dockerfile that says the same. `pelton` and what
    it needs are in every image, in the version of the platform that runs.
    """

    __slots__ = ("_steps", "python")

    def __init__(self, steps: tuple[Step, ...] = (), python: str | None = None) -> None:
        self._steps = steps
        self.python = python

    @classmethod
    def base(cls, ref: str) -> Image:
        """Starts from a container image by reference, e.g. `python:3.12-slim`.

        Raises:
            DefinitionError: the reference is empty or has blanks.
        """
        if not isinstance(ref, str) or not ref or any(character.isspace() for character in ref):
            raise DefinitionError(f"Image.base takes an image reference like 'python:3.12-slim', not {ref!r}")
        tagged = _PYTHON_REF.fullmatch(ref)
        return cls((("base", (ref,)),), tagged[1] if tagged else None)

    @classmethod
    def debian_slim(cls, python: str | None = None) -> Image:
        """Starts from a slim Debian with Python.

        Args:
            python: version like "3.12" or "3.12.4"; None for that of the platform.

        Raises:
            DefinitionError: no Python 3 version.
        """
        if python is not None and (not isinstance(python, str) or _PYTHON.fullmatch(python) is None):
            raise DefinitionError(f"Image.debian_slim: python is a version like '3.12', not {python!r}")
        return cls((("debian_slim", (python or "",)),), python)

    @property
    def packages(self) -> tuple[str, ...]:
        """The Python requirements it asks for, in order, as written."""
        return tuple(word for kind, words in self._steps if kind == "pip_install" for word in words)

    def pip_install(
        self, packages: list[str] | None = None, *, requirements: str | Path | None = None
    ) -> Image:
        """Adds Python packages.

        Args:
            packages: requirements, e.g. `["httpx>=0.27"]`.
            requirements: a requirements file, relative to the folder that is deployed.

        Raises:
            DefinitionError: neither is given, or a value is none.
        """
        if packages is None and requirements is None:
            raise DefinitionError('Image.pip_install takes a list, or requirements="requirements.txt"')
        image = self
        if packages is not None:
            image = image._with("pip_install", _some("pip_install", packages))
        if requirements is not None:
            image = image._with("pip_requirements", (_source(requirements),))
        return image

    def uv_sync(self, path: str | Path = ".") -> Image:
        """Adds what the lock file of a uv project holds; the project itself comes with the sources.

        Args:
            path: folder with `pyproject.toml` and `uv.lock`, relative to the folder that is deployed.
        """
        return self._with("uv_sync", (_source(path),))

    def apt_install(self, packages: list[str]) -> Image:
        """Adds Debian packages by name."""
        return self._with("apt_install", _some("apt_install", packages))

    def run_commands(self, *commands: str) -> Image:
        """Runs shell commands while the image is built."""
        return self._with("run_commands", _some("run_commands", commands))

    def add_local_file(self, src: str | Path, dst: str) -> Image:
        """Copies one file; `src` is relative to the folder that is deployed, `dst` is an absolute path."""
        return self._with("add_local_file", (_source(src), _target(dst)))

    def add_local_dir(self, src: str | Path, dst: str) -> Image:
        """Copies a folder; `src` is relative to the folder that is deployed, `dst` is an absolute path."""
        return self._with("add_local_dir", (_source(src), _target(dst)))

    def env(self, variables: Mapping[str, str]) -> Image:
        """Sets environment variables."""
        pairs = checked_env("Image.env", variables)
        return self._with("env", tuple(f"{name}={value}" for name, value in pairs))

    def workdir(self, path: str) -> Image:
        """Sets the working folder, an absolute path."""
        return self._with("workdir", (_target(path),))

    def entrypoint(self, command: list[str]) -> Image:
        """Sets the command of containers that host no function and give no entrypoint themselves."""
        return self._with("entrypoint", _some("entrypoint", command))

    @property
    def command(self) -> tuple[str, ...]:
        """The entrypoint it sets, empty for none."""
        return next((words for kind, words in reversed(self._steps) if kind == "entrypoint"), ())

    @contextmanager
    def imports(self) -> Iterator[None]:
        """Imports of packages that this image has and the machine that deploys may not have.

        `with image.imports(): import torch` imports where the image runs. While a file is deployed a package
        that is missing there is left out; using its name before a call is made then fails as usual.
        """
        try:
            yield
        except ModuleNotFoundError:
            if active() is None:
                raise

    def spec(self, folder: Path | None = None) -> ImageSpec:
        """What a container spec records of it.

        Args:
            folder: the folder that is deployed, from which local files are read; None for the working folder.

        Returns:
            The steps, each local file or folder with the SHA-256 of its content, and the hash over them all.

        Raises:
            DefinitionError: a local file or folder is not there.
        """
        root = Path.cwd() if folder is None else folder
        steps = tuple(
            (kind, (*words, content_digest(root, kind, words[0])) if kind in LOCAL_STEPS else words)
            for kind, words in self._steps
        )
        digest = hashlib.sha256()
        for kind, words in steps:
            for word in (kind, *words):
                data = word.encode()
                digest.update(len(data).to_bytes(8, "big") + data)
            digest.update(b"\xff" * 8)  # no length is this long: where one step ends
        return ImageSpec(self.python, steps, digest.hexdigest())

    def _with(self, kind: str, words: tuple[str, ...]) -> Image:
        return Image((*self._steps, (kind, words)), self.python)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self._steps == other._steps

    def __hash__(self) -> int:
        return hash(self._steps)

    def __repr__(self) -> str:
        return "Image" + "".join(f".{kind}({', '.join(map(repr, words))})" for kind, words in self._steps)


def _some(step: str, words: object) -> tuple[str, ...]:
    checked = checked_words("Image", step, words)
    if not checked:
        raise DefinitionError(f"Image.{step} needs at least one entry")
    return checked


def _source(src: str | Path) -> str:
    if not isinstance(src, (str, Path)) or not str(src):
        raise DefinitionError(f"Image: a local path is a str or Path, not {src!r}")
    return str(src)


def _target(dst: str) -> str:
    if not isinstance(dst, str) or not PurePosixPath(dst).is_absolute():
        raise DefinitionError(f"Image: a path inside the image is absolute, like '/app/data', not {dst!r}")
    return dst


def content_digest(root: Path, kind: str, src: str) -> str:
    """SHA-256 hex over what a step takes of a folder: one file, or relative paths and contents of several.

    Raises:
        DefinitionError: it is not there.
    """
    files = local_files(root, kind, src)
    if list(files) == [""]:
        return _file_digest(files[""]).hex()
    digest = hashlib.sha256()
    for place, file in files.items():
        name = place.encode()
        digest.update(len(name).to_bytes(8, "big") + name + _file_digest(file))
    return digest.hexdigest()


def local_files(root: Path, kind: str, src: str) -> dict[str, Path]:
    """The files that a step takes of a folder, by their place in what it takes; one file has the place "".

    Raises:
        DefinitionError: they are not there.
    """
    path = root / Path(src).expanduser()
    if kind == "uv_sync":
        missing = [name for name in _PROJECT_FILES if not (path / name).is_file()]
        if missing:
            raise DefinitionError(
                f"Image.uv_sync: {path} has no {' and no '.join(missing)}; run `uv lock` there"
            )
        return {name: path / name for name in _PROJECT_FILES}
    if not (path.is_dir() if kind in _FOLDER_STEPS else path.is_file()):
        what = "folder" if kind in _FOLDER_STEPS else "file"
        raise DefinitionError(f"Image.{kind}: there is no {what} {path}; paths are relative to {root}")
    if kind not in _FOLDER_STEPS:
        return {"": path}
    return {entry.relative_to(path).as_posix(): entry for entry in sorted(path.rglob("*")) if entry.is_file()}


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

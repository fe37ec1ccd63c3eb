"""What the steps of an image mean: its environment variables, its folders, its packages, its commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pelton.core.spec import ImageSpec

PIP_INSTALL = "pip_install"
PIP_REQUIREMENTS = "pip_requirements"
UV_SYNC = "uv_sync"
APT_INSTALL = "apt_install"
RUN_COMMANDS = "run_commands"
ADD_FILE = "add_local_file"
ADD_DIR = "add_local_dir"
ENV = "env"
WORKDIR = "workdir"
BASE = "base"
DEBIAN_SLIM = "debian_slim"
ENTRYPOINT = "entrypoint"

PACKAGE_STEPS = frozenset({PIP_INSTALL, PIP_REQUIREMENTS, UV_SYNC, RUN_COMMANDS})
"""Steps that need a Python environment of the image's own."""

FILE_STEPS = frozenset({ADD_FILE, ADD_DIR, WORKDIR, RUN_COMMANDS})
"""Steps that need a folder for files of the image's own."""

_PIPS = (("pip",), ("pip3",), ("python", "-m", "pip"), ("python3", "-m", "pip"), ("uv", "pip"))
_OPERATORS = frozenset("();<>|&")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do while an image is built.

    Attributes:
        kind: Kind of the step in the spec, or `pip` for a command that installs packages.
        words: Its arguments.
        label: What people call it.
    """

    kind: str
    words: tuple[str, ...]
    label: str


PIP = "pip"


def build_steps(image: ImageSpec) -> list[Step]:
    """Return what is done to build an image, in order: commands one by one, plain settings left out."""
    found: list[Step] = []
    for kind, words in image.steps:
        if kind == RUN_COMMANDS:
            found += [_command_step(command) for command in words]
        elif kind in PACKAGE_STEPS | FILE_STEPS | {APT_INSTALL}:
            shown = words[:-1] if kind in (ADD_FILE, ADD_DIR, PIP_REQUIREMENTS, UV_SYNC) else words
            found.append(Step(kind, words, f"{kind}({', '.join(shown)})"))
    return found


def _command_step(command: str) -> Step:
    arguments = pip_arguments(command)
    if arguments is None:
        return Step(RUN_COMMANDS, (command,), command)
    return Step(PIP, tuple(arguments), command)


def pip_arguments(command: str) -> list[str] | None:
    """Return what follows `pip install` in a command that is nothing else; None for all other commands."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        return None
    needs_shell = any(mark in command for mark in "$`\n") or any(set(word) <= _OPERATORS for word in words)
    for pip in _PIPS:
        length = len(pip) + 1
        if tuple(words[:length]) == (*pip, "install") and len(words) > length and not needs_shell:
            return words[length:]
    return None


def image_environment(image: ImageSpec) -> dict[str, str]:
    """Return the variables that an image sets; of equal names the last one counts."""
    pairs = (word.partition("=") for word in _words(image, ENV))
    return {name: value for name, _, value in pairs}


def working_folder(image: ImageSpec) -> str:
    """Return the working folder that an image sets, "" for none."""
    return next(reversed(list(_words(image, WORKDIR))), "")


def packages_of_debian(image: ImageSpec) -> list[str]:
    """Return the names of the Debian packages that an image asks for, without their versions."""
    return [word.partition("=")[0] for word in _words(image, APT_INSTALL)]


def base_of(image: ImageSpec) -> str:
    """Return the reference that an image starts from, "" for none."""
    return next(_words(image, BASE), "")


def has(image: ImageSpec, kinds: frozenset[str]) -> bool:
    """Say whether an image has a step of one of these kinds."""
    return any(kind in kinds for kind, _ in image.steps)


def with_own_wheel(words: Sequence[str], wheel: str) -> list[str]:
    """Return requirements in which `pelton`, however it is written, is the wheel of the running platform."""
    return [_own(word, wheel) for word in words]


def _own(word: str, wheel: str) -> str:
    # Late: only builds read requirements.
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        requirement = Requirement(word)
    except InvalidRequirement:
        return word
    if canonicalize_name(requirement.name) != "pelton":
        return word
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"pelton{extras} @ {wheel}"


def _words(image: ImageSpec, kind: str) -> Iterator[str]:
    return (word for found, words in image.steps if found == kind for word in words)

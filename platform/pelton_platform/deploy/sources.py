"""What goes into a source bundle: the folder of a file, or what a program that runs has loaded of its own."""

from __future__ import annotations

import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from pelton.client.notebook import in_notebook

_OURS = frozenset({"pelton", "pelton_platform", "pelton_schemas", "pelton_templates"})


@dataclass(frozen=True, slots=True)
class Source:
    """What a deploy takes a snapshot of.

    Attributes:
        name: What people call it: the path of a file, or "notebook".
        folder: Whose files it has, and against which local files of images are read.
        files: The files it has, by their place in the bundle; None for all of the folder.
        code: Functions that come as code, by name, instead of as modules.
    """

    name: str
    folder: Path
    files: Mapping[str, Path] | None = None
    code: Mapping[str, bytes] = field(default_factory=dict)


def of_file(file: Path) -> Source:
    """Return the source of `pelton deploy FILE`: its folder."""
    return Source(str(file), file.parent)


def of_program(main: ModuleType, code: Mapping[str, bytes], *, whole: bool) -> Source:
    """Return the source of the program that this process runs.

    Args:
        main: Its `__main__`.
        code: Its functions, by name.
        whole: Whether all of the working folder belongs to it where no file says what does.
    """
    path = getattr(main, "__file__", None)
    if path is None or not Path(path).is_file():
        folder = Path.cwd()
        return Source(_interactive_name(), folder, None if whole else dict(loaded_files()), code)
    file = Path(path).absolute()
    # `python -m package.module` imports from the folder that has the package.
    depth = len((main.__spec__.parent or "").split(".")) if main.__spec__ and main.__spec__.parent else 0
    return Source(str(file), [file.parent, *file.parent.parents][depth], None, code)


def loaded_files() -> Iterator[tuple[str, Path]]:
    """Yield the source files of all modules that were imported and that are not installed.

    Each comes with its place relative to where its package was found.
    """
    installed = [Path(place).resolve() for place in _installed()]
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path is None or name.partition(".")[0] in _OURS or (not name.isidentifier() and "." not in name):
            continue
        file = Path(path).resolve()
        if file.suffix != ".py" or any(file.is_relative_to(place) for place in installed):
            continue
        parts = [*name.split("."), "__init__"] if file.name == "__init__.py" else name.split(".")
        if file.is_file() and file.stem == parts[-1]:
            yield "/".join(parts) + ".py", file


def _installed() -> set[str]:
    """Folders of Python and of packages, which executors have as well."""
    return {*sysconfig.get_paths().values(), site.getusersitepackages(), sys.prefix, sys.base_prefix}


def _interactive_name() -> str:
    if in_notebook():
        return "notebook"
    return "interactive session" if hasattr(sys, "ps1") else "program"

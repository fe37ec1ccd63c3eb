"""Which files a deploy takes: those that are named, those of a folder, those that `pelton.toml` lists."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from pelton.errors import DeployError
from pelton.loading import Collected
from pelton_platform.deploy.loading import DefinesNothing, load_definitions
from pelton_platform.settings import SETTINGS_FILE, files_to_deploy, find_settings_file


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file and what it defines.

    Attributes:
        file: The file.
        collected: What it defines.
        modules: The modules of its folder that it loaded, itself among them: another folder may have others
            of the same names.
    """

    file: Path
    collected: Collected
    modules: dict[str, ModuleType]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have those be the modules of their names, as they were while the file was loaded."""
        sys.modules.update(self.modules)
        try:
            yield
        finally:
            for name in self.modules:
                sys.modules.pop(name, None)


def load_all(words: Sequence[Path]) -> list[Loaded]:
    """Load every file of a deploy, so that a fault in one of them leaves all others as they are.

    Args:
        words: Files and folders; none for what the nearest `pelton.toml` lists. Of a folder those are taken
            that its `pelton.toml` lists, else all Python files directly in it that define something.

    Raises:
        DeployError: Nothing is to be deployed, a file cannot be loaded, or two define the same name.
    """
    found: list[Loaded] = []
    for file, optional in _files(words):
        try:
            found.append(_load(file))
        except DefinesNothing:
            if not optional:
                raise
    if not found:
        raise DeployError(f"{', '.join(map(str, words))}: no file in it defines a function or a container")
    _check_names(found)
    return found


def _load(file: Path) -> Loaded:
    before = dict(sys.modules)
    modules: dict[str, ModuleType] = {}
    try:
        collected = load_definitions(file)
    finally:
        for name, module in list(sys.modules.items()):
            place = getattr(module, "__file__", None)
            if before.get(name) is not module and place and Path(place).is_relative_to(file.parent):
                modules[name] = module
                del sys.modules[name]
    return Loaded(file, collected, modules)


def _files(words: Sequence[Path]) -> list[tuple[Path, bool]]:
    """The files, each with whether it may define nothing."""
    if not words:
        settings = find_settings_file(Path.cwd())
        listed = [] if settings is None else files_to_deploy(settings)
        if settings is None or not listed:
            raise DeployError(
                f"name a file or a folder, or list files in {settings or SETTINGS_FILE}: "
                'deploy = ["worker.py", "consumer.py"]'
            )
        return [(settings.parent / name, False) for name in listed]
    found: list[tuple[Path, bool]] = []
    for word in words:
        path = word.absolute()
        if not path.is_dir():
            found.append((path, False))
            continue
        settings = path / SETTINGS_FILE
        listed = files_to_deploy(settings) if settings.is_file() else []
        if listed:
            found += [(path / name, False) for name in listed]
        else:
            found += [(file, True) for file in sorted(path.glob("*.py"))]
    return list(dict.fromkeys(found))


def _check_names(loaded: Sequence[Loaded]) -> None:
    """Two files that define one name would replace each other's in turns."""
    seen: dict[tuple[str, str], Path] = {}
    for one in loaded:
        names = [("function", function.name) for function in one.collected.functions]
        names += [("container", container.name) for container in one.collected.containers]
        for kind, name in names:
            other = seen.setdefault((kind, name), one.file)
            if other != one.file:
                raise DeployError(
                    f"{kind} {name!r} is defined in {other} and in {one.file}; rename one of them"
                )

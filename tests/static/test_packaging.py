"""One distribution from four roots: what the wheel holds, and that exact versions are complete."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from support.tree import FLOORS, ROOT, files, relative

LOCKED = re.compile(r"^(?P<name>[a-z0-9-]+)==", re.MULTILINE)


def project() -> dict[str, Any]:
    """The project table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def normal(requirement: str) -> str:
    """The normalized name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ;]", requirement)[0]).lower()


def test_every_dependency_has_an_exact_version() -> None:
    """What pyproject.toml asks for, extras included, stands in constraints.txt."""
    extras = (name for extra in project()["optional-dependencies"].values() for name in extra)
    asked = {normal(name) for name in (*project()["dependencies"], *extras)} - {"pelton"}
    locked = {match["name"] for match in LOCKED.finditer((ROOT / "constraints.txt").read_text())}
    assert asked - locked == set()


def test_every_exact_version_has_hashes() -> None:
    """Each entry of constraints.txt can be checked when it is installed."""
    entries = re.split(r"\n(?=\S)", (ROOT / "constraints.txt").read_text())
    assert [entry[:40] for entry in entries if LOCKED.match(entry) and "--hash=sha256:" not in entry] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the wheel, built from this tree."""
    folder: Path = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [path] = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_of_the_four_packages(wheel: set[str]) -> None:
    """Sources, schemas, sums and type markers of all floors are in the wheel, without the floors' folders."""
    tracked = {relative(path) for path in files() if relative(path).parts[0] in FLOORS}
    assert {"/".join(path.parts[1:]) for path in tracked} - wheel == set()


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    """No test, no document and no stray folder is installed with Pelton."""
    roots = {name.partition("/")[0] for name in wheel}
    assert {name for name in roots if not name.endswith(".dist-info")} == set(FLOORS.values())

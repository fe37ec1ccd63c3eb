"""What tests know of the repository's tree: its root, its files, its Python modules."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

FLOORS = {
    "schemas": "pelton_schemas",
    "sdk": "pelton",
    "consumer_templates": "pelton_templates",
    "platform": "pelton_platform",
}
"""Root folder of a floor -> the one import package in it."""


@cache
def files() -> tuple[Path, ...]:
    """Every file git tracks or would track, absolute and sorted."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, check=True, capture_output=True).stdout.decode().split("\0")
    paths = (ROOT / name for name in names if name)
    return tuple(sorted({path for path in paths if path.is_file()}))


def python_files(*under: str) -> list[Path]:
    """The Python files below the given root folders, or all of them."""
    return [
        path for path in files() if path.suffix == ".py" and (not under or relative(path).parts[0] in under)
    ]


def source_files() -> list[Path]:
    """The Python files of the distribution."""
    return python_files(*FLOORS)


def relative(path: Path) -> Path:
    """The path as it is written from the root of the repository."""
    return path.relative_to(ROOT)


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))

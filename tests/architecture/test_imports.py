"""Import rules that contracts cannot express: late imports, the public face, the purity of the core."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.tree import ROOT, parsed, python_files, relative

CORE = [path for path in python_files("sdk") if relative(path).parts[:3] == ("sdk", "pelton", "core")]
IMPURE_NAMES = {
    "open",
    "print",
    "input",
    "getnode",
    "uuid1",
    "uuid4",
    "now",
    "utcnow",
    "today",
    "urandom",
    "environ",
}

# What `import pelton` must not load: the Kafka client, the codecs, and everything a platform needs.
HEAVY = {"confluent_kafka", "fastavro", "numpy", "pyarrow", "pydantic", "rich", "typer", "pelton_platform"}


def names_used(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every name, attribute and imported name of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names)


def test_the_sdk_never_imports_its_own_public_face() -> None:
    """Inside `pelton`, modules import modules; its public face depends on all of them."""
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in python_files("sdk")
        if relative(path) != Path("sdk/pelton/__init__.py")
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Import) and any(alias.name == "pelton" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "pelton")
    ]
    assert wrong == []


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_reads_no_clock_and_throws_no_dice(path: Path) -> None:
    """Names that read a clock, the environment or randomness, or do IO, do not occur in the core."""
    assert [(line, name) for line, name in names_used(parsed(path)) if name in IMPURE_NAMES] == []


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_waits_for_nothing_and_shares_nothing(path: Path) -> None:
    """No coroutine, no await, no global statement in the core."""
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Global)
    assert [node.lineno for node in ast.walk(parsed(path)) if isinstance(node, waiting)] == []


def test_importing_pelton_loads_no_kafka_client_and_no_platform() -> None:
    """A process that only defines functions pays for neither client nor platform."""
    program = "import sys, pelton; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT / "docs",
    )
    assert HEAVY & set(done.stdout.split()) == set()

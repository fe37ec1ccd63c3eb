"""The import contracts hold, and each one breaks when its rule is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.tree import FLOORS, ROOT

BREACHES = [
    ("floors", "sdk/pelton/client/breach.py", "import pelton_platform"),
    ("floors", "consumer_templates/pelton_templates/breach.py", "import pelton_platform"),
    ("sdk", "sdk/pelton/core/breach.py", "import pelton.protocol"),
    ("sdk", "sdk/pelton/breach.py", ""),
    ("platform", "platform/pelton_platform/process.py", "import pelton_platform.cli"),
    ("platform", "platform/pelton_platform/breach.py", ""),
    ("pure-core", "sdk/pelton/core/breach.py", "import random"),
    ("pure-plans", "platform/pelton_platform/deploy/plan.py", "import asyncio"),
    ("kafka-client", "platform/pelton_platform/breach.py", "from confluent_kafka.admin import AdminClient"),
    ("kubernetes-client", "platform/pelton_platform/breach.py", "import kubernetes.client"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the floors and their contracts."""
    for floor in FLOORS:
        shutil.copytree(ROOT / floor, tmp_path / floor, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def check(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the import linter on the floors below `tree`."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    path = os.pathsep.join(str(tree / floor) for floor in FLOORS)
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo", *words],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("contract", "file", "line"), BREACHES)
def test_a_breach_breaks_its_contract(tree: Path, contract: str, file: str, line: str) -> None:
    """An import against a floor, an undeclared module or an impure import makes its contract fail."""
    breach = tree / file
    breach.parent.mkdir(parents=True, exist_ok=True)
    with breach.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    for package in ("cli", "deploy"):
        (tree / "platform/pelton_platform" / package).mkdir(exist_ok=True)
        (tree / "platform/pelton_platform" / package / "__init__.py").touch()
    done = check(tree, "--contract", contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 kept, 1 broken" in done.stdout
    assert "breach" in done.stdout or file.removesuffix(".py").split("/")[-1] in done.stdout

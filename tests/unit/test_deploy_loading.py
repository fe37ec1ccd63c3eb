"""Loading a user's file for a deploy: what it defines, and what is said when it cannot be loaded."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from pelton.errors import DefinitionError, DeployError
from pelton_platform.deploy.loading import load_definitions


def write(folder: Path, name: str, source: str) -> Path:
    """Write a source file."""
    path = folder / name
    path.write_text(textwrap.dedent(source))
    return path


def test_deploy_file_is_loaded_as_executors_load_it(tmp_path: Path) -> None:
    """Its module has the name of the file, its folder is on the path, and nothing of it stays afterwards."""
    write(tmp_path, "beside_it.py", "GREETING = 'hello'\n")
    file = write(
        tmp_path,
        "some_worker.py",
        """
        import pelton
        from beside_it import GREETING

        @pelton.function
        def greet() -> str:
            return GREETING

        if __name__ == "__main__":
            raise SystemExit("run as a script")
        """,
    )
    path = list(sys.path)
    found = load_definitions(file)
    assert [(one.name, one.module) for one in found.functions] == [("greet", "some_worker")]
    assert [one.name for one in found.containers] == ["greet"]
    assert sys.path == path
    sys.modules.pop("beside_it")
    sys.modules.pop("some_worker", None)


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("broken.py", "def f(:\n", r"SyntaxError: .* \(.*broken\.py, line 1\)"),
        ("raising.py", "x = 1\nx / 0\n", r"ZeroDivisionError: division by zero \(.*raising\.py, line 2\)"),
        ("absent.py", "import no_such_module_at_all\n", "No module named 'no_such_module_at_all'"),
        ("leaving.py", "raise SystemExit(3)\n", "ended with exit code 3 while it was loaded"),
        ("nothing.py", "x = 1\n", "defines nothing to deploy; decorate a function"),
        ("queue.py", "x = 1\n", "has the name of a module that executors import already"),
        ("notes.txt", "x = 1\n", "is no Python file"),
        (
            "unrun.py",
            "import pelton\npelton.Container(name='job', entrypoint=['true'])\n",
            r"a container with an entrypoint is deployed by its `\.run\(\)`: job",
        ),
    ],
)
def test_deploy_file_that_cannot_be_loaded(tmp_path: Path, name: str, source: str, complaint: str) -> None:
    """The message says what happened in the user's own file and line, and what to do."""
    with pytest.raises(DeployError, match=complaint):
        load_definitions(write(tmp_path, name, source))


def test_deploy_call_while_loading_names_line_and_guard(tmp_path: Path) -> None:
    """A call at the top of the file is refused with its line and the guard that belongs there."""
    file = write(
        tmp_path,
        "eager.py",
        """
        import pelton

        @pelton.function
        def greet() -> str:
            return "hello"

        greet()
        """,
    )
    with pytest.raises(DefinitionError, match=r'eager\.py:8 calls .*if __name__ == "__main__":'):
        load_definitions(file)

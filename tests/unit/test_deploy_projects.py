"""Which files a deploy takes, and what goes with a deletion."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pelton.core.spec import ContainerSpec, FunctionKind, FunctionSpec
from pelton.errors import DeployError
from pelton_platform.deploy.deleting import plan_deletion
from pelton_platform.deploy.projects import load_all
from pelton_platform.settings import SettingsError

FUNCTION = """
import pelton
from helper import WORD

@pelton.function(name="{name}", description=WORD)
def work() -> int:
    return 1
"""


def write(folder: Path, name: str, function: str, word: str = "w") -> Path:
    """A file with a function, and a module that it imports."""
    folder.mkdir(exist_ok=True)
    (folder / "helper.py").write_text(f"WORD = {word!r}\n")
    path = folder / name
    path.write_text(FUNCTION.format(name=function))
    return path


def names(loaded: list[object]) -> list[str]:
    """Names of all functions."""
    return [function.name for one in loaded for function in one.collected.functions]  # type: ignore[attr-defined]


def test_project_files_that_are_named(tmp_path: Path) -> None:
    """In their order, each once; one that defines nothing is refused."""
    first, second = write(tmp_path, "a.py", "one"), write(tmp_path, "b.py", "two")
    assert names([*load_all([second, first, second])]) == ["two", "one"]
    with pytest.raises(DeployError, match=r"helper\.py defines nothing to deploy"):
        load_all([first, tmp_path / "helper.py"])


def test_project_folder(tmp_path: Path) -> None:
    """All files in it that define something, or those that its pelton.toml lists."""
    write(tmp_path, "a.py", "one")
    write(tmp_path, "b.py", "two")
    assert names([*load_all([tmp_path])]) == ["one", "two"]
    (tmp_path / "pelton.toml").write_text('deploy = ["b.py"]\n')
    assert names([*load_all([tmp_path])]) == ["two"]
    (tmp_path / "pelton.toml").write_text('deploy = "b.py"\n')
    with pytest.raises(SettingsError, match="is a list of files"):
        load_all([tmp_path])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DeployError, match="no file in it defines a function or a container"):
        load_all([empty])


def test_project_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the nearest pelton.toml lists, relative to it; else the message says how to list files."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeployError, match=r'deploy = \["worker\.py", "consumer\.py"\]'):
        load_all([])
    write(tmp_path / "code", "a.py", "one")
    (tmp_path / "pelton.toml").write_text('deploy = ["code/a.py"]\n')
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    assert names([*load_all([])]) == ["one"]


def test_project_folders_with_modules_of_the_same_names(tmp_path: Path) -> None:
    """Each file has the modules of its own folder, at loading and when it is deployed."""
    files = [
        write(tmp_path / "x", "worker.py", "one", "of x"),
        write(tmp_path / "y", "worker.py", "two", "of y"),
    ]
    loaded = load_all(files)
    assert [one.collected.functions[0].description for one in loaded] == ["of x", "of y"]
    for one in loaded:
        assert "worker" not in sys.modules
        with one.in_place():
            assert sys.modules["worker"].__file__ == str(one.file)
            assert sys.modules["helper"].__file__ == str(one.file.parent / "helper.py")
        assert "helper" not in sys.modules


def test_project_files_that_define_one_name_are_refused(tmp_path: Path) -> None:
    """Each would replace the other's, in turns."""
    files = [write(tmp_path / "x", "a.py", "one"), write(tmp_path / "y", "b.py", "one")]
    with pytest.raises(DeployError, match=r"function 'one' is defined in .*a\.py and in .*b\.py; rename one"):
        load_all(files)


def function(name: str, container: str) -> FunctionSpec:
    """A function in a container."""
    return FunctionSpec(name, 1, container, FunctionKind.SYNC, (), "worker", name, "")


FUNCTIONS = {name: function(name, box) for name, box in (("a", "box"), ("b", "box"), ("c", "c"))}
CONTAINERS = {
    "box": ContainerSpec("box", 3, ("a", "b"), "", digest="d"),
    "c": ContainerSpec("c", 1, ("c",), ""),
    "program": ContainerSpec("program", 1, (), "", entrypoint=("true",)),
}


def test_deletion_takes_what_goes_with_it() -> None:
    """A container with its last function, functions with their container, a program alone."""
    one = plan_deletion(["a"], FUNCTIONS, CONTAINERS)
    assert (set(one.functions), set(one.containers)) == ({"a"}, set())
    smaller = one.smaller["box"]
    assert (smaller.functions, smaller.version, smaller.digest) == (("b",), 4, "")
    both = plan_deletion(["a", "b"], FUNCTIONS, CONTAINERS)
    assert (set(both.functions), set(both.containers), both.smaller) == ({"a", "b"}, {"box"}, {})
    whole = plan_deletion(["box"], FUNCTIONS, CONTAINERS)
    assert (set(whole.functions), set(whole.containers)) == ({"a", "b"}, {"box"})
    own = plan_deletion(["c"], FUNCTIONS, CONTAINERS)
    assert (set(own.functions), set(own.containers)) == ({"c"}, {"c"})
    program = plan_deletion(["program"], FUNCTIONS, CONTAINERS)
    assert (set(program.functions), set(program.containers)) == (set(), {"program"})
    with pytest.raises(DeployError, match="neither a function nor a container is named x, y"):
        plan_deletion(["y", "a", "x"], FUNCTIONS, CONTAINERS)

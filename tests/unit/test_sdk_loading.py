"""Loading a module for deploy: its definitions are collected, calls at import are refused with their line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pelton import Container
from pelton.client import session
from pelton.decorators import collected, collecting
from pelton.definitions import container_spec, function_spec
from pelton.errors import DefinitionError, DeployError
from pelton.loading import Collected
from support.callers import ScriptedTransport

WORKER = """
from pelton import Container, function, function_ref
shared = Container(name="shared", max_instances=20)
program = Container(name="program", entrypoint=["python", "main.py"])
forgotten = Container(name="forgotten", entrypoint=["python", "main.py"])

@function(container=shared)
def classify(text, *, limit=3):
    return text

@function(name="own-name", timeout=5)
def other():
    yield 1

program.run()
"""


@pytest.fixture(autouse=True)
def _fresh_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Modules loaded by a test are gone after it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
    session.close()


def load(folder: Path, source: str, name: str = "worker_under_test") -> Collected:
    """Loads a file as `pelton deploy` does."""
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with collecting(name):
        spec.loader.exec_module(module)
        return collected()


def test_functions_and_containers_of_the_file_are_collected(tmp_path: Path) -> None:
    """The functions it defines, the containers they run in, and the programs it runs."""
    found = load(tmp_path, WORKER)
    assert [entry.name for entry in found.functions] == ["classify", "own-name"]
    assert [entry.name for entry in found.containers] == ["shared", "own-name", "program"]
    assert [entry.name for entry in found.not_run] == ["forgotten"]


def test_importing_never_deploys(tmp_path: Path) -> None:
    """What an imported module defines and runs stays where it is, unless the file uses its container."""
    (tmp_path / "library_under_test.py").write_text(WORKER)
    found = load(
        tmp_path,
        "import library_under_test\nfrom pelton import function\n"
        "@function(container=library_under_test.shared)\ndef mine(): ...\n",
    )
    assert [entry.name for entry in found.functions] == ["mine"]
    assert [entry.name for entry in found.containers] == ["shared"]
    assert found.imported == ("classify", "own-name")


@pytest.mark.parametrize(
    "call", ["f(1)", "f.async_call(1)", "f.wait_ready()", "list(f.map([1]))", "f.submit(1)"]
)
def test_calls_at_import_name_the_line_and_the_guard(tmp_path: Path, call: str) -> None:
    """A file that calls while it is loaded is told where, and how to guard it."""
    session.install(ScriptedTransport())
    source = f"from pelton import function\n@function\ndef f(x): ...\n\n{call}\n"
    with pytest.raises(DefinitionError, match=r"worker_under_test\.py:5 .*if __name__ == \"__main__\":"):
        load(tmp_path, source)


def test_calls_are_allowed_again_after_a_load(tmp_path: Path) -> None:
    """Also after one that failed."""
    transport = ScriptedTransport()
    session.install(transport)
    with pytest.raises(ZeroDivisionError):
        load(tmp_path, "1 / 0")
    assert session.current().transport is transport
    with pytest.raises(DefinitionError, match="no module is being loaded"):
        collected()


def test_the_same_file_can_be_loaded_again(tmp_path: Path) -> None:
    """Each load has names of its own."""
    load(tmp_path, WORKER)
    again = load(tmp_path, WORKER, "second_under_test")
    assert len(again.functions) == 2


def test_containers_of_one_name_are_refused(tmp_path: Path) -> None:
    """A function's own container may collide with one that was declared."""
    with pytest.raises(DefinitionError, match="two containers are named 'f'"):
        load(
            tmp_path,
            "from pelton import *\nContainer(name='f', entrypoint=['x']).run()\n@function\ndef f(): ...\n",
        )


def test_functions_of_one_name_are_refused(tmp_path: Path) -> None:
    """Within one file."""
    source = (
        "from pelton import function\n@function(name='f')\ndef a(): ...\n@function(name='f')\ndef b(): ...\n"
    )
    with pytest.raises(DefinitionError, match=r"worker_under_test\.a and worker_under_test\.b"):
        load(tmp_path, source)


def test_two_loads_at_a_time_are_refused(tmp_path: Path) -> None:
    """Names are collected for one module of a process at a time."""
    with collecting("a"), pytest.raises(DefinitionError, match="'a' is being loaded"):
        with collecting("b"):
            pass


def test_a_spec_says_what_was_declared(tmp_path: Path) -> None:
    """Everything a worker and a caller need, and a digest over it."""
    found = load(tmp_path, WORKER)
    classify, other = found.functions
    spec = function_spec(classify, version=4, bundle="b" * 64, module="worker", deployed_ms=77)
    assert (spec.name, spec.version, spec.container, spec.module, spec.qualname) == (
        "classify",
        4,
        "shared",
        "worker",
        "classify",
    )
    assert [(entry.name, entry.kind, entry.required) for entry in spec.parameters] == [
        ("text", "POSITIONAL_OR_KEYWORD", True),
        ("limit", "KEYWORD_ONLY", False),
    ]
    assert (spec.partitions, spec.timeout_ms, spec.deployed_ms) == (20, 0, 77)
    second = function_spec(other, version=1, bundle="b" * 64)
    assert (second.partitions, second.timeout_ms, second.kind.streams) == (8, 5000, True)
    assert second.module == "worker_under_test"


def test_digests_follow_what_defines_a_spec(tmp_path: Path) -> None:
    """Version and time of the deploy do not count; source, signature and bounds do."""
    found = load(tmp_path, WORKER)
    classify = found.functions[0]
    first = function_spec(classify, version=1, bundle="b" * 64)
    assert function_spec(classify, version=2, bundle="b" * 64, deployed_ms=5).digest == first.digest
    assert function_spec(classify, version=1, bundle="c" * 64).digest != first.digest
    host = container_spec(found.containers[0], functions=["b", "a"], version=1, bundle="b" * 64)
    assert host.functions == ("a", "b")
    assert (
        host.digest
        == container_spec(found.containers[0], functions=["a", "b"], version=9, bundle="b" * 64).digest
    )
    assert (
        host.digest != container_spec(found.containers[0], functions=["a"], version=1, bundle="b" * 64).digest
    )
    program = container_spec(found.containers[2], functions=[], version=1, bundle="b" * 64)
    assert (program.entrypoint, program.min_instances) == (("python", "main.py"), 1)


def test_a_container_of_nothing_is_refused() -> None:
    """It would start something that does nothing."""
    with pytest.raises(DefinitionError, match="hosts no function and has no entrypoint"):
        container_spec(Container(name="empty"), functions=[], version=1, bundle="")


def test_functions_an_executor_could_not_find_are_refused(tmp_path: Path) -> None:
    """Defined inside another function, or hidden behind another name of the module."""
    inside = "from pelton import function\ndef make():\n    @function\n    def f(): ...\n    return f\n"
    inside += "g = make()\n"
    found = load(tmp_path, inside)
    with pytest.raises(DefinitionError, match="inside another function; move it to the top"):
        function_spec(found.functions[0], version=1, bundle="")
    hidden = "from pelton import function\n@function\ndef f(): ...\nkept = f\nf = 3\n"
    found = load(tmp_path, hidden, "hidden_under_test")
    with pytest.raises(DefinitionError, match="under its own name"):
        function_spec(found.functions[0], version=1, bundle="")


def test_run_under_test_deploys_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what does instead."""
    main = ModuleType("__main__")
    main.__file__ = "pipeline.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    source = "from pelton import Container\nmade = Container(name='c')\nmade.run()\n"
    with pytest.raises(DeployError, match=r"neither tests nor child .* run `pelton deploy pipeline\.py`"):
        exec(source, vars(main))


def test_run_in_an_imported_module_does_nothing(tmp_path: Path) -> None:
    """Neither in a caller that imports a worker file, nor in an executor that loads it."""
    (tmp_path / "program_under_test.py").write_text(WORKER)
    __import__("program_under_test")

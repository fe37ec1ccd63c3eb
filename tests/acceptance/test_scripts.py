"""Scripts, the REPL and notebooks that deploy what they define, run as people run them, on one platform."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbclient
import nbformat
import pytest

from support.interpreters import bare_environment
from support.local_platform import LocalPlatform, local_platform

# Processes of a whole platform start and stop here, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """One platform for all of them."""
    with local_platform(tmp_path_factory.mktemp("scripts")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a script lies, beside a module that it imports."""
    (tmp_path / "wording.py").write_text("def loud(word):\n    return word.upper()\n")
    return tmp_path


def environment(platform: LocalPlatform) -> dict[str, str]:
    """What a person at this machine has."""
    return bare_environment() | {"PELTON_HOME": str(platform.home.root), "PYTHONDONTWRITEBYTECODE": "1"}


def run(
    platform: LocalPlatform, folder: Path, *words: str, stdin: str | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Python with these words, in a folder, to its end."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment(platform),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done


def told(stderr: str) -> list[str]:
    """What was said apart from the progress of a deploy that takes a while."""
    return [line for line in stderr.splitlines() if not line.startswith("pelton: waiting for ")]


def version(platform: LocalPlatform, name: str) -> int:
    """The version of a function as deployed, 0 for none."""
    rows = platform.json("functions")
    return next((int(row["version"]) for row in rows if row["name"] == name), 0)


SCRIPT = """
from __future__ import annotations

import sys
from dataclasses import dataclass

import pelton
import wording

FACTOR = 2
print("the script runs", file=sys.stderr)


@dataclass
class Text:
    words: list[str]


@pelton.function
def shout(text: Text) -> Text:
    return Text([wording.loud(word) * FACTOR for word in text.words])


@pelton.function
def factorial(n: int) -> int:
    return 1 if n <= 1 else n * factorial(n - 1)


@pelton.function
async def rows(n: int):
    for number in range(n):
        yield Text([str(number)])


@pelton.function
def unused(x):
    return x


if __name__ == "__main__":
    print(shout(Text(["a", "b"])), factorial(5), [row.words for row in rows(2)])


@pelton.function
def late(x):
    return x
"""
SAID = "Text(words=['AA', 'BB']) 120 [['0'], ['1']]\n"


def test_script_deploys_on_first_use_and_at_its_end(platform: LocalPlatform, folder: Path) -> None:
    """All that is defined so far at the first call, the rest at the end; an executor never runs the script.

    Classes of the script come back as what they are, modules beside it are there, and functions call each
    other. Run again it deploys nothing; with another value of a global it deploys the function that uses it.
    """
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = run(platform, folder, "script.py")
    assert done.stdout == SAID
    first, second = [line for line in done.stderr.splitlines() if line.startswith("pelton: deployed")]
    assert first == "pelton: deployed shout version 1, factorial version 1, rows version 1, unused version 1"
    assert second == "pelton: deployed late version 1"
    assert done.stderr.count("the script runs") == 1
    assert "the script runs" not in platform.run("logs", "shout").stdout
    again = run(platform, folder, "script.py")
    assert (again.stdout, again.stderr) == (SAID, "the script runs\n")
    assert platform.json("call", "late", "4")["value"] == 4
    script.write_text(SCRIPT.replace("FACTOR = 2", "FACTOR = 1"))
    assert run(platform, folder, "script.py").stdout == SAID.replace("AA", "A").replace("BB", "B")
    assert version(platform, "shout") == 2


def test_script_that_only_defines_is_deployed(platform: LocalPlatform, folder: Path) -> None:
    """Two lines and a function are a deploy, and what is deployed can be called from anywhere."""
    (folder / "only.py").write_text("import pelton\n@pelton.function\ndef only(x):\n    return [x]\n")
    done = run(platform, folder, "only.py")
    assert (done.stdout, told(done.stderr)) == ("", ["pelton: deployed only version 1"])
    assert platform.json("call", "only", "4")["value"] == [4]


def test_script_of_a_package_imports_from_it(platform: LocalPlatform, folder: Path) -> None:
    """`python -m package.module`: relative imports work at the top of the module and in functions."""
    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "values.py").write_text("SEVEN = 7\n")
    (package / "program.py").write_text(
        "import pelton\nfrom . import values\n"
        "@pelton.function\ndef packaged(x):\n    from .values import SEVEN\n"
        "    return x + values.SEVEN + SEVEN\n"
        "print(packaged(1))\n"
    )
    assert run(platform, folder, "-m", "package.program").stdout == "15\n"


def test_script_whose_code_cannot_travel_fails(platform: LocalPlatform, folder: Path) -> None:
    """At its end with exit code 1, at a call with an exception; both name what it is."""
    source = (
        "import pelton, threading\nguard = threading.Lock()\n"
        "@pelton.function\ndef guarded(x):\n    with guard:\n        return x\n"
    )
    (folder / "guarded.py").write_text(source)
    done = run(platform, folder, "guarded.py", code=1)
    reason = "function 'guarded' cannot be deployed: the global 'guard', a lock, cannot be pickled"
    assert done.stderr.startswith(f"pelton: not deployed: guarded: {reason}")
    (folder / "guarded.py").write_text(source + "guarded(1)\n")
    assert f"DefinitionError: {reason}" in run(platform, folder, "guarded.py", code=1).stderr
    assert version(platform, "guarded") == 0


def test_script_runs_a_container_at_once(platform: LocalPlatform, folder: Path) -> None:
    """`Container.run()` deploys the folder of the script, with the program in it."""
    (folder / "program.py").write_text(
        "import signal, wording\nprint(wording.loud('ready'), flush=True)\nsignal.pause()\n"
    )
    (folder / "ship.py").write_text(
        "from pelton import Container\n"
        "Container(name='shipped', entrypoint=['python', 'program.py']).run()\n"
        "print('shipped')\n"
    )
    done = run(platform, folder, "ship.py")
    assert done.stdout == "shipped\n"
    assert told(done.stderr) == ["pelton: deployed container shipped version 1"]
    assert "READY" in platform.run("logs", "shipped").stdout


REPL = """import pelton
base = 10

@pelton.function
def based(x):
    return x + base

based(1)
base = 20

@pelton.function
def based(x):
    return x + base

based(1)

@pelton.function
def typed(x):
    return x
"""


def test_repl_deploys_on_first_use_alone(platform: LocalPlatform, folder: Path) -> None:
    """A function that is defined again is deployed again; what was never used is not."""
    done = run(platform, folder, "-i", "-q", stdin=REPL)
    assert done.stdout == "11\n21\n"
    assert "pelton: deployed based version 2" in done.stderr
    assert version(platform, "typed") == 0


CELLS = [
    "import pelton, wording\nfrom dataclasses import dataclass\n"
    "@dataclass\nclass Point:\n    x: int\n    label: 'str' = 'p'",
    "@pelton.function\ndef moved(point: Point) -> Point:\n"
    "    return Point(point.x + 1, wording.loud(point.label))",
    "print(moved(Point(1)))",
    "@pelton.function\nasync def counted(n: int):\n    for number in range(n):\n        yield number",
    "print(list(counted(3)), [n async for n in counted(2)], await moved.async_call(Point(5)))",
    "@pelton.function\ndef moved(point: Point) -> Point:\n    return Point(point.x + 100)",
    "print(moved(Point(1)))",
]


def test_notebook_deploys_on_first_use(
    platform: LocalPlatform, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells define, call, stream, await and define anew in a real kernel; no warning is shown."""
    (folder / "large.bin").write_bytes(bytes(1 << 20))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    for name in ("PYTEST_VERSION", "PYTEST_CURRENT_TEST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment(platform).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    client = nbclient.NotebookClient(
        notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    said = {
        stream: "".join(output.text for output in outputs if output.name == stream)
        for stream in ("stdout", "stderr")
    }
    assert said["stdout"] == (
        "Point(x=2, label='P')\n[0, 1, 2] [0, 1] Point(x=6, label='P')\nPoint(x=101, label='p')\n"
    )
    assert told(said["stderr"]) == [
        "pelton: deployed moved version 1",
        "pelton: deployed counted version 1",
        "pelton: deployed moved version 2",
    ]
    # Only what was imported travels: the folder of a notebook may hold anything.
    bundle = next(row["bundle"] for row in platform.json("functions") if row["name"] == "moved")
    held = [path.name for path in (platform.home.bundles / bundle).rglob("*.*")]
    assert held == ["wording.py"]

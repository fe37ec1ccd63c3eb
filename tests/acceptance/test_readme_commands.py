"""What README and quickstart tell a newcomer to do works, in that order, on a platform of its own."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.local_platform import LocalPlatform, local_platform
from support.tree import ROOT

EXAMPLES = "docs/examples/quickstart"


def commands_by_hand() -> list[list[str]]:
    """The `pelton` lines of README's section "By hand", as words."""
    section = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("## By hand")[2].partition("\n## ")[0]
    )
    [block] = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    lines = [line.partition(" #")[0].strip() for line in block.splitlines()]
    return [shlex.split(line) for line in lines if re.match(r"(\w+=\w+ )*pelton ", line)]


def run(platform: LocalPlatform, line: list[str]) -> str:
    """What a line shows that may set variables before the command."""
    start = line.index("pelton")
    given = dict(word.split("=") for word in line[:start])
    return platform.run(*line[start + 1 :], env=given).stdout


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[LocalPlatform]:
    """A platform that is not started yet, and a folder with the examples where README has them."""
    with local_platform(tmp_path, up=False) as stopped:
        shutil.copytree(ROOT / EXAMPLES, stopped.work / EXAMPLES)
        yield stopped


@pytest.mark.timeout(300)
def test_the_commands_of_the_readme_work_in_their_order(platform: LocalPlatform) -> None:
    """Each command ends well, and shows what its comment says it shows."""
    shown = {" ".join(line).partition("pelton ")[2]: run(platform, line) for line in commands_by_hand()}
    assert shown["call greet Ada"] == "Hello, Ada!\n"
    assert shown["call size 3000000"] == "3.0 MB, says Grace\n"
    assert {"greet", "countdown", "size"} <= set(shown["functions"].split())
    assert "greet" in shown["ps"]
    assert "greeting Ada" in shown["logs greet"]
    assert re.search(r"greet +succeeded", shown["calls ls"])
    assert "orphans" in shown["doctor"]
    assert [next(iter(shown)), *list(shown)[-1:]] == ["up --detach", "down"]


@pytest.mark.timeout(300)
def test_the_program_of_the_quickstart_gets_its_answers(platform: LocalPlatform) -> None:
    """Plain calls, futures, streams, map, references, attach and asyncio do what the example says."""
    platform.run("up", "--detach")
    platform.run("deploy", f"{EXAMPLES}/greet.py")
    done = subprocess.run(
        [sys.executable, f"{EXAMPLES}/call_greet.py"],
        cwd=platform.work,
        env=platform.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *("Hello, Ada!", "Hello, Grace!", "3 2 1", "Hello, Alan!", "Hello, Barbara!", "Hello, Edsger!"),
        *("Hello, Grace!", "Hello, Margaret!", "2", "1"),
    ]


def test_the_quickstart_shows_the_functions_of_the_example() -> None:
    """The code in the page is the code that was tested."""
    page = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
    source = (ROOT / EXAMPLES / "greet.py").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [shown] = [block for block in blocks if "@pelton" in block]
    assert shown.strip() in source
    [shown] = [block for block in blocks if "@function" in block]
    assert shown.strip() in (ROOT / EXAMPLES / "sizes.py").read_text(encoding="utf-8")

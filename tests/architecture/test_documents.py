"""The documents say what is there: rendered parts are current, and what they name exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from support.tree import FLOORS, ROOT, files, relative

PAGES = [path for path in files() if path.suffix == ".md"]
# Paths with a part in capitals, as in SUBJECT/v1.avsc, are patterns and not paths.
NAMED_PATH = re.compile(rf"`((?:docs|tests|helm|{'|'.join(FLOORS)})/[\w./-]*)`")
MAKE_TARGET = re.compile(r"(?:`|^|\n)make ([a-z]+)")
COMMAND = re.compile(r"(?:`|^|\n\$? ?)pelton ([a-z]+)(?: ([a-z]+))?")


def load_renderer() -> ModuleType:
    """The program that `make fmt` renders with."""
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs/reference/render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RENDERER = load_renderer()


@pytest.mark.parametrize("page", RENDERER.PAGES, ids=lambda page: page.name)
def test_the_rendered_part_of_a_page_is_current(page: Path) -> None:
    """Modules, commands and settings are documented as the code has them; `make fmt` renders."""
    assert page.read_text(encoding="utf-8") == RENDERER.rendered(page), "run: make fmt"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(relative(page)))
def test_the_paths_that_a_page_names_exist(page: Path) -> None:
    """A reader who follows a path finds a file or a folder."""
    named = set(NAMED_PATH.findall(page.read_text(encoding="utf-8")))
    paths = {path for path in named if not any(part.isupper() for part in path.split("/"))}
    assert {path for path in paths if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(relative(page)))
def test_the_targets_that_a_page_names_exist(page: Path) -> None:
    """`make X` in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(MAKE_TARGET.findall(page.read_text(encoding="utf-8"))) - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(relative(page)))
def test_the_commands_that_a_page_names_exist(page: Path) -> None:
    """`pelton X` in a document is a command of the program."""
    known = {words.removeprefix("pelton ") for words, _ in RENDERER.all_commands()}
    first_words = {words.partition(" ")[0] for words in known}
    groups = {words.partition(" ")[0] for words in known if " " in words}
    unknown = {
        f"{first} {second}".strip()
        for first, second in COMMAND.findall(page.read_text(encoding="utf-8"))
        if first not in first_words or (first in groups and second and f"{first} {second}" not in known)
    }
    assert unknown == set()


def test_the_readme_names_the_two_commands_of_a_newcomer() -> None:
    """The demo and the tests are started as the README says."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"make demo", "make test"} <= {line.strip() for line in text.splitlines()}

"""The page of failure cases names tests that exist, and leaves no case without one."""

from __future__ import annotations

import ast
import re

import pytest

from support.tree import ROOT, parsed

TEXT = (ROOT / "docs/reference/failure-cases.md").read_text(encoding="utf-8")
TEST = re.compile(r"`([\w/.-]+)::(\w+)`")
ROW = re.compile(r"^\| (P?[\d.]+) \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)
LATER = {*range(33, 42), 43}
"""Cases of features that are not built."""


def names_in(path: str) -> set[str]:
    """Names of the test functions in a file; none when there is no such file."""
    if not (ROOT / path).is_file():
        return set()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in parsed(ROOT / path).body if isinstance(node, functions)}
    return {name for name in names if name.startswith("test_")}


@pytest.mark.parametrize("path", sorted({path for path, _ in TEST.findall(TEXT)}))
def test_the_tests_that_the_page_of_failure_cases_names_exist(path: str) -> None:
    """Whoever looks a case up finds the test that shows it."""
    named = {name for where, name in TEST.findall(TEXT) if where == path}
    assert named - names_in(path) == set()


def test_every_row_of_the_page_of_failure_cases_names_a_test() -> None:
    """Cases, promises and rules are each shown by something, and each has one row."""
    rows = ROW.findall(TEXT)
    assert len(rows) == len(re.findall(r"^\| (?!case |promise |rule )", TEXT, re.MULTILINE))
    assert {name for name, shown in rows if not TEST.search(shown)} == set()
    names = [name for name, _ in rows]
    assert len(names) == len(set(names))


def test_the_page_of_failure_cases_leaves_no_case_out() -> None:
    """Every number of a case that concerns what is built has its row, and so has every promise."""
    names = {name for name, _ in ROW.findall(TEXT)}
    assert {str(number) for number in range(1, 52) if number not in LATER} - names == set()
    assert {"P1", "P2", "P3", "P4", "P7", "P8"} - names == set()

"""The shape of tests: each says what it proves, and no two files share a name."""

from __future__ import annotations

import ast
from collections import Counter

from support.tree import parsed, python_files, relative


def test_each_test_says_in_a_docstring_what_it_proves() -> None:
    """A test without a docstring leaves its reader guessing which claim broke."""
    silent = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in python_files("tests")
        if path.name.startswith("test_")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_test_file_names_are_unique() -> None:
    """pytest reports and `-k` name files by their last part; importlib mode needs no other rule."""
    names = Counter(path.name for path in python_files("tests") if path.name.startswith("test_"))
    assert {name for name, count in names.items() if count > 1} == set()

"""The shape of modules: size, names, and a first line that says what the file knows."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from support.tree import parsed, python_files, relative, source_files

MOST_LINES = 600
MOST_BODY_LINES = 60
ATTIC = {"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    """Every function of a file, methods and nested ones included."""
    return (node for node in ast.walk(parsed(path)) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the last one."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_no_file_is_longer_than_600_lines() -> None:
    """A file that grows past 600 lines holds more than one idea."""
    lines = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert {str(path): count for path, count in lines.items() if count > MOST_LINES} == {}


def test_no_function_body_is_longer_than_60_lines() -> None:
    """A body is read in one look."""
    long = {
        f"{relative(path)}:{function.lineno} {function.name}": body_lines(function)
        for path in source_files() + python_files("docs")
        for function in functions(path)
        if body_lines(function) > MOST_BODY_LINES
    }
    assert long == {}


def test_no_module_bears_the_name_of_a_standard_library_module() -> None:
    """A module never shares its name with the standard library, whatever puts its folder on the path."""
    names = {
        relative(path): path.parent.name if path.stem == "__init__" else path.stem for path in python_files()
    }
    taken = {str(path) for path, name in names.items() if name in sys.stdlib_module_names}
    assert taken == set()


def test_no_module_is_an_attic() -> None:
    """A module is named after what it knows, never `utils` or its kin."""
    parts = {relative(path): {*relative(path).parent.parts, path.stem} for path in python_files()}
    assert {str(path) for path, names in parts.items() if names & ATTIC} == set()


def test_the_first_statement_of_each_file_is_a_docstring_of_one_sentence() -> None:
    """The first line of a file says what the file knows, and ends as a sentence does."""
    firsts = {
        relative(path): (ast.get_docstring(parsed(path)) or "").partition("\n")[0] for path in python_files()
    }
    assert {str(path): first for path, first in firsts.items() if not first.endswith((".", "!", "?"))} == {}

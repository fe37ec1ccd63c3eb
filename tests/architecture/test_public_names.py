"""The public names of `pelton`: all there, all documented, and an error tree drawn as it is."""

from __future__ import annotations

import inspect

import pytest

import pelton
from pelton import errors

DESIGNED = {
    "CallFuture",
    "Container",
    "Image",
    "Record",
    "Secret",
    "Stream",
    "chalk_logger",
    "context",
    "errors",
    "function",
    "function_ref",
    "gather",
    "logger",
}
ERRORS = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]


def test_the_designed_names_are_public() -> None:
    """Every name that the documentation of the API uses can be taken from `pelton`."""
    assert set(pelton.__all__) >= DESIGNED


@pytest.mark.parametrize("name", [name for name in pelton.__all__ if name != "__version__"])
def test_a_public_name_exists_and_says_what_it_is(name: str) -> None:
    """A name in `__all__` can be loaded, is listed by `dir`, and has a docstring."""
    assert name in dir(pelton)
    assert inspect.getdoc(getattr(pelton, name))


@pytest.mark.parametrize("name", [name for name in pelton.__all__ if name != "__version__"])
def test_the_public_members_of_a_public_class_say_what_they_do(name: str) -> None:
    """Methods and properties that a user can reach have docstrings."""
    value = getattr(pelton, name)
    if not inspect.isclass(value):
        return
    own = {key: member for key, member in vars(value).items() if not key.startswith("_")}
    silent = [key for key, member in own.items() if is_code(member) and not inspect.getdoc(member)]
    assert silent == []


def is_code(member: object) -> bool:
    """Whether a class member is a method or a property, not a plain value."""
    return callable(member) or isinstance(member, property | classmethod | staticmethod)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_the_error_tree_is_drawn_as_it_is(error: type[Exception]) -> None:
    """The docstring of `pelton.errors` draws each class below its base and says what is retriable."""
    drawn = (errors.__doc__ or "").splitlines()
    rows = {line.strip("│├└─ ").split(" ")[0]: line for line in drawn if line.strip("│├└─ ")}
    assert error.__name__ in rows
    row = rows[error.__name__]
    assert row.rstrip().endswith(" retriable") == error.retriable  # type: ignore[attr-defined]
    base = error.__bases__[0]
    if base in ERRORS:
        names = list(rows)
        above = names[: names.index(error.__name__)]
        depth = len(row) - len(row.lstrip("│├└─ "))
        shallower = [name for name in above if len(rows[name]) - len(rows[name].lstrip("│├└─ ")) < depth]
        assert shallower[-1] == base.__name__


def test_every_error_descends_from_one_root() -> None:
    """`except PeltonError` catches whatever Pelton raises of its own."""
    assert [error for error in ERRORS if not issubclass(error, errors.PeltonError)] == []

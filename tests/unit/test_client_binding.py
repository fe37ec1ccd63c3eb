"""Signatures: recorded in specs, and checked in Python's own words without the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.client.binding import binder, parameters_of
from pelton.core.spec import ParameterSpec
from pelton.errors import DefinitionError


def plain(a: int, b: int = 1) -> None:
    """Two parameters, one optional."""


def strict(a: int, /, b: int, *, c: int, d: int = 2) -> None:
    """Positional-only and keyword-only parameters."""


def open_ended(a: int, *args: int, b: int = 0, **kwargs: int) -> None:
    """Takes anything beside its own."""


def nothing() -> None:
    """No parameters."""


FUNCTIONS: list[Callable[..., None]] = [plain, strict, open_ended, nothing]


@given(
    st.sampled_from(FUNCTIONS),
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e"]), st.integers(), max_size=4),
)
def test_a_binder_says_what_python_says(
    fn: Callable[..., None], args: list[int], kwargs: dict[str, int]
) -> None:
    """For any arguments the binder accepts what the function accepts and refuses in the same words."""
    check = binder(fn.__qualname__, parameters_of(fn))
    assert refusal(check, args, kwargs) == refusal(fn, args, kwargs)


def refusal(fn: Callable[..., None], args: list[int], kwargs: dict[str, int]) -> str | None:
    """The message of the TypeError, None when the arguments fit."""
    try:
        fn(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


def test_parameters_record_kinds_and_defaults() -> None:
    """Enough to bind, and nothing of the code."""
    assert parameters_of(strict) == (
        ParameterSpec("a", "POSITIONAL_ONLY", True),
        ParameterSpec("b", "POSITIONAL_OR_KEYWORD", True),
        ParameterSpec("c", "KEYWORD_ONLY", True),
        ParameterSpec("d", "KEYWORD_ONLY", False),
    )
    assert [parameter.required for parameter in parameters_of(open_ended)] == [True, False, False, False]


@pytest.mark.parametrize(
    "parameters",
    [
        [
            ParameterSpec("a", "POSITIONAL_OR_KEYWORD", False),
            ParameterSpec("b", "POSITIONAL_OR_KEYWORD", True),
        ],
        [ParameterSpec("a", "VAR_POSITIONAL", False), ParameterSpec("b", "VAR_POSITIONAL", False)],
        [ParameterSpec("a", "SOMETHING", True)],
    ],
)
def test_a_signature_python_cannot_have_is_refused(parameters: list[ParameterSpec]) -> None:
    """A spec is data and may say anything."""
    with pytest.raises(DefinitionError):
        binder("f", parameters)


def test_names_of_a_spec_are_never_run() -> None:
    """P8: a parameter name is a name, whatever it looks like."""
    evil = "x=__import__('os').abort()"
    check: Any = binder("f", [ParameterSpec(evil, "POSITIONAL_OR_KEYWORD", True)])
    assert check(1) is None
    assert check.__code__.co_varnames == (evil,)

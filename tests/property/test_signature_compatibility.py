"""Compatible signatures: whatever was accepted by the old one is bound alike by the new one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.client.binding import parameters_of
from pelton.core.compatibility import incompatibility
from pelton.core.spec import FunctionKind, FunctionSpec, ParameterSpec

NAMES = ("a", "b", "c", "d")
Parameter = inspect.Parameter


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    """Any signature over four names."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(0, 4))]
    kinds = sorted(
        draw(
            st.lists(
                st.sampled_from(
                    [Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY]
                ),
                min_size=len(names),
                max_size=len(names),
            )
        )
    )
    made, optional = [], False
    for name, kind in zip(names, kinds, strict=True):
        has_default = draw(st.booleans())
        if kind is not Parameter.KEYWORD_ONLY:
            optional = has_default = has_default or optional
        made.append(Parameter(name, kind, default=0 if has_default else Parameter.empty))
    if draw(st.booleans()):
        place = sum(one.kind is not Parameter.KEYWORD_ONLY for one in made)
        made.insert(place, Parameter("args", Parameter.VAR_POSITIONAL))
    if draw(st.booleans()):
        made.append(Parameter("kwargs", Parameter.VAR_KEYWORD))
    return inspect.Signature(made)


def spec(signature: inspect.Signature, kind: FunctionKind = FunctionKind.SYNC) -> FunctionSpec:
    """The spec of a function with this signature."""

    def function() -> None: ...

    function.__signature__ = signature  # type: ignore[attr-defined]
    return FunctionSpec("f", 1, "c", kind, parameters_of(function), "worker", "f", "")


def values(
    signature: inspect.Signature, args: tuple[int, ...], kwargs: dict[str, int]
) -> dict[str, Any] | None:
    """What each value is called in the end; None when it is refused."""
    parameters = signature.parameters.values()
    aside: dict[str, int] = {}
    if any(one.kind is Parameter.VAR_KEYWORD for one in parameters):
        # Python takes the name of a positional-only parameter as any other; `bind` does so from 3.13 on.
        only = {one.name for one in parameters if one.kind is Parameter.POSITIONAL_ONLY}
        aside = {name: value for name, value in kwargs.items() if name in only}
    try:
        rest = {name: value for name, value in kwargs.items() if name not in aside}
        bound = signature.bind(*args, **rest).arguments
    except TypeError:
        return None
    found = {name: value for name, value in bound.items() if name not in ("args", "kwargs")}
    return found | {"args": bound.get("args", ()), "kwargs": bound.get("kwargs", {}) | aside}


@given(
    signatures(),
    signatures(),
    st.lists(st.integers(), max_size=5),
    st.dictionaries(st.sampled_from((*NAMES, "e")), st.integers(), max_size=4),
)
def test_compatible_signatures_accept_every_call(
    old: inspect.Signature, new: inspect.Signature, args: list[int], kwargs: dict[str, int]
) -> None:
    """When nothing is said against it, a call that the old signature took is taken by the new one."""
    if incompatibility(spec(old), spec(new)):
        return
    before = values(old, tuple(args), kwargs)
    if before is None:
        return
    after = values(new, tuple(args), kwargs)
    assert after is not None, f"{old} to {new} refuses {args} {kwargs}"


@given(signatures())
def test_a_signature_is_compatible_with_itself(signature: inspect.Signature) -> None:
    """A deploy that leaves the signature alone is never refused."""
    assert incompatibility(spec(signature), spec(signature)) == ""


def of(function: Any) -> FunctionSpec:
    """The spec of a function."""
    return spec(inspect.signature(function))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (lambda a: 0, lambda a, b=1: 0, ""),
        (lambda a: 0, lambda a=1: 0, ""),
        (lambda a, *, b: 0, lambda a, *, b=1, **more: 0, ""),
        (lambda a: 0, lambda *args, **kwargs: 0, ""),
        (lambda a: 0, lambda a, b: 0, "the parameter 'b' is new and has no default"),
        (lambda a=1: 0, lambda a: 0, "the parameter 'a' is required now"),
        (lambda a, b: 0, lambda a: 0, "the parameter 'b' is gone"),
        (lambda a, b: 0, lambda b, a: 0, "the parameter 'a' has become 'b', or has another place"),
        (lambda a: 0, lambda a, /: 0, "the parameter 'a' cannot be given by name any more"),
        (lambda *, a: 0, lambda: 0, "the parameter 'a' is gone"),
        (lambda *args: 0, lambda a=1, *args: 0, "the parameter 'a' takes what went to *args"),
        (lambda *args: 0, lambda: 0, "it takes no *args any more"),
        (lambda **more: 0, lambda: 0, "it takes no **more any more"),
    ],
)
def test_what_changed_is_said(old: Any, new: Any, said: str) -> None:
    """In words that name the parameter."""
    assert incompatibility(of(old), of(new)) == said


def test_streams_and_values_are_incompatible() -> None:
    """Readers of waiting calls expect what they asked for."""
    plain: tuple[ParameterSpec, ...] = ()
    one = FunctionSpec("f", 1, "c", FunctionKind.SYNC, plain, "worker", "f", "")
    many = FunctionSpec("f", 1, "c", FunctionKind.ASYNC_GENERATOR, plain, "worker", "f", "")
    assert incompatibility(one, many) == "it yields a stream now"
    assert incompatibility(many, one) == "it returns one value now"

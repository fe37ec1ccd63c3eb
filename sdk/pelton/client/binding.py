"""Signatures: what a spec records of one, and refusing arguments that do not fit it, in Python's words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Final

from pelton.core.spec import ParameterSpec
from pelton.errors import DefinitionError

Binder = Callable[..., None]
"""Called with the arguments of a call; returns nothing, or raises the TypeError Python would raise."""

_VARARGS: Final = inspect.CO_VARARGS
_VARKEYWORDS: Final = inspect.CO_VARKEYWORDS
_ORDER: Final = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD", "VAR_POSITIONAL", "KEYWORD_ONLY", "VAR_KEYWORD")


def parameters_of(fn: Callable[..., object]) -> tuple[ParameterSpec, ...]:
    """What a spec records of the signature of a function."""
    return tuple(
        ParameterSpec(
            parameter.name,
            parameter.kind.name,
            parameter.default is parameter.empty and not parameter.kind.name.startswith("VAR_"),
        )
        for parameter in inspect.signature(fn).parameters.values()
    )


def binder(qualname: str, parameters: Sequence[ParameterSpec]) -> Binder:
    """A function with this signature that does nothing: calling it checks arguments as Python itself does.

    It is made from the code object of an empty function by giving it other parameter names, so that nothing a
    spec says is ever compiled or run.

    Args:
        qualname: the name error messages show.
        parameters: the signature.

    Raises:
        DefinitionError: no Python function has such a signature.
    """
    by_kind: dict[str, list[ParameterSpec]] = {kind: [] for kind in _ORDER}
    for parameter in parameters:
        if parameter.kind not in by_kind:
            raise DefinitionError(f"{qualname}: {parameter.kind!r} is no kind of parameter")
        by_kind[parameter.kind].append(parameter)
    positional_only, either, star, keyword_only, stars = (by_kind[kind] for kind in _ORDER)
    positional = positional_only + either
    optional = [not parameter.required for parameter in positional]
    if len(star) > 1 or len(stars) > 1 or optional != sorted(optional):
        raise DefinitionError(f"{qualname}: no Python function has the signature {list(parameters)!r}")
    # Code objects list *args and **kwargs behind all named parameters.
    names = tuple(parameter.name for parameter in (*positional, *keyword_only, *star, *stars))
    empty = _empty.__code__
    code = empty.replace(
        co_name=qualname.rpartition(".")[2],
        co_qualname=qualname,
        co_argcount=len(positional),
        co_posonlyargcount=len(positional_only),
        co_kwonlyargcount=len(keyword_only),
        co_nlocals=len(names),
        co_varnames=names,
        co_flags=empty.co_flags | (_VARARGS if star else 0) | (_VARKEYWORDS if stars else 0),
    )
    check = FunctionType(code, {}, qualname.rpartition(".")[2], (None,) * sum(optional))
    check.__kwdefaults__ = {parameter.name: None for parameter in keyword_only if not parameter.required}
    check.__qualname__ = qualname
    return check


def _empty() -> Any:
    return None

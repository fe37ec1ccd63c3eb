"""Whether calls that were made for one signature are accepted by another one, with the same meaning."""

from __future__ import annotations

from collections.abc import Sequence

from pelton.core.spec import FunctionSpec, ParameterSpec

_PLACED = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")
_NAMED = ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY")


def incompatibility(old: FunctionSpec, new: FunctionSpec) -> str:
    """Why calls that wait for one version of a function could fail, or mean something else, with another.

    Args:
        old: what the calls were made for.
        new: what would run them.

    Returns:
        Half a sentence for people; "" when every call is accepted with its values under the same names.
    """
    if old.kind.streams != new.kind.streams:
        words = {True: "it yields a stream now", False: "it returns one value now"}
        return words[new.kind.streams]
    return _refused(old.parameters, new.parameters) or _missing(old.parameters, new.parameters)


def _refused(old: Sequence[ParameterSpec], new: Sequence[ParameterSpec]) -> str:
    """What may be given to the old signature, and is not taken by the new one in the same place."""
    before, placed = _of(old, *_PLACED), _of(new, *_PLACED)
    kinds = {parameter.kind for parameter in new}
    named = {parameter.name for parameter in _of(new, *_NAMED)}
    for index, parameter in enumerate(before):
        successor = placed[index] if index < len(placed) else None
        by_name = parameter.kind == "POSITIONAL_OR_KEYWORD"
        if successor is None:
            taken = parameter.name in named or "VAR_KEYWORD" in kinds
            if "VAR_POSITIONAL" not in kinds or (by_name and not taken):
                return f"the parameter {parameter.name!r} is gone"
        elif by_name and successor.name != parameter.name:
            return f"the parameter {parameter.name!r} has become {successor.name!r}, or has another place"
        elif by_name and successor.kind == "POSITIONAL_ONLY":
            return f"the parameter {parameter.name!r} cannot be given by name any more"
    for parameter in old:
        if parameter.kind == "VAR_POSITIONAL":
            if "VAR_POSITIONAL" not in kinds:
                return f"it takes no *{parameter.name} any more"
            if len(placed) > len(before):
                return f"the parameter {placed[len(before)].name!r} takes what went to *{parameter.name}"
        elif parameter.kind == "KEYWORD_ONLY":
            earlier = {one.name for one in placed[: len(before)]}
            if parameter.name in earlier or not (parameter.name in named or "VAR_KEYWORD" in kinds):
                return f"the parameter {parameter.name!r} is gone"
        elif parameter.kind == "VAR_KEYWORD" and "VAR_KEYWORD" not in kinds:
            return f"it takes no **{parameter.name} any more"
    return ""


def _missing(old: Sequence[ParameterSpec], new: Sequence[ParameterSpec]) -> str:
    """What the new signature requires, and the old one did not."""
    before = _of(old, *_PLACED)
    for index, parameter in enumerate(_of(new, *_PLACED)):
        if parameter.required and not (index < len(before) and before[index].required):
            return _required(parameter, old)
    required = {parameter.name for parameter in _of(old, "KEYWORD_ONLY") if parameter.required}
    for parameter in _of(new, "KEYWORD_ONLY"):
        if parameter.required and parameter.name not in required:
            return _required(parameter, old)
    return ""


def _required(parameter: ParameterSpec, old: Sequence[ParameterSpec]) -> str:
    if any(one.name == parameter.name for one in old):
        return f"the parameter {parameter.name!r} is required now"
    return f"the parameter {parameter.name!r} is new and has no default"


def _of(parameters: Sequence[ParameterSpec], *kinds: str) -> list[ParameterSpec]:
    return [parameter for parameter in parameters if parameter.kind in kinds]

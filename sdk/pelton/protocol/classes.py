"""Which classes annotations reach, and how their instances are taken apart and put together again."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pelton.errors import PayloadCorrupt
from pelton.protocol.extensions import Refusal
from pelton.protocol.record import Record, module_name, type_name

_BUILTINS: Final = (
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    list,
    tuple,
    set,
    frozenset,
    dict,
    BaseException,
)
_MISSING: Final = object()


class Classes:
    """Dataclasses and Enums by name; what is not in here stays a `Record`.

    Args:
        annotations: a type, or a mapping of names to types; None for none at all.
    """

    __slots__ = ("_by_name",)

    def __init__(self, annotations: Any = None) -> None:
        self._by_name: dict[str, list[type]] = {}
        if annotations is None:
            return
        roots = annotations.values() if isinstance(annotations, Mapping) else (annotations,)
        for found in _reach(roots):
            self._by_name.setdefault(found.__qualname__, []).append(found)

    def find(self, module: str, name: str) -> type | None:
        """The class of this qualified name; with several, the one of this module."""
        found = self._by_name.get(name, ())
        if len(found) == 1:
            return found[0]
        for candidate in found:
            if candidate.__module__ == module:
                return candidate
        return None

    def build(self, module: str, name: str, fields: dict[str, Any]) -> Any:
        """An instance of the class of this name, or a `Record` when there is none or its fields are others.

        Raises:
            PayloadCorrupt: the class itself refused the fields.
        """
        found = self.find(module, name)
        if found is not None:
            if issubclass(found, enum.Enum):
                member = _build_member(found, fields)
            else:
                member = _build_instance(found, fields)
            if member is not _MISSING:
                return member
        return Record(name, fields, module)


def reachable(annotations: Mapping[str, Any]) -> list[type]:
    """All dataclasses and Enums that annotations name, also inside of each other."""
    return _reach(annotations.values())


def take_apart(value: Any) -> tuple[str, str, dict[str, Any]] | None:
    """Module, qualified name and fields of a dataclass instance, Enum member or `Record`; else None.

    Raises:
        Refusal: a dataclass that also is a builtin type, or an instance that lacks a field.
    """
    kind = type(value)
    if kind is Record:
        return module_name(value), type_name(value), dict(value)
    if isinstance(value, enum.Enum):
        return kind.__module__, kind.__qualname__, {"name": value.name, "value": value.value}
    if not dataclasses.is_dataclass(kind):
        return None
    if isinstance(value, _BUILTINS):
        raise Refusal(f"is a {kind.__qualname__}, a dataclass that also is a builtin type")
    fields = {}
    for field in dataclasses.fields(kind):
        content = getattr(value, field.name, _MISSING)
        if content is _MISSING:
            raise Refusal(f"is a {kind.__qualname__} whose field {field.name!r} was never set")
        fields[field.name] = content
    return kind.__module__, kind.__qualname__, fields


def _build_member(found: type[enum.Enum], fields: Mapping[str, Any]) -> Any:
    """The member, by name before value; `_MISSING` when there is none."""
    if fields.keys() != {"name", "value"}:
        return _MISSING
    name = fields["name"]
    if isinstance(name, str) and name in found.__members__:
        return found.__members__[name]
    try:
        return found(fields["value"])
    except (ValueError, TypeError, KeyError):
        return _MISSING


def _build_instance(found: type, fields: Mapping[str, Any]) -> Any:
    """The instance with exactly these fields; `_MISSING` when the class has others without defaults."""
    own = {field.name: field for field in dataclasses.fields(found)}
    if not fields.keys() <= own.keys():
        return _MISSING
    for name, field in own.items():
        has_default = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        if name not in fields and not (field.init and has_default):
            return _MISSING
    known = found.__dataclass_fields__  # type: ignore[attr-defined]
    instance: Any
    try:
        if len(known) > len(own) and any(_is_init_var(field) for field in known.values()):
            # What its `__init__` asks for beside the fields did not travel.
            instance = object.__new__(found)
        else:
            instance = found(**{name: fields[name] for name in fields if own[name].init})
        for name, value in fields.items():
            if getattr(instance, name, _MISSING) is not value:
                object.__setattr__(instance, name, value)
    except Exception as error:
        raise PayloadCorrupt(
            f"{found.__qualname__} refused its fields: {type(error).__name__}: {error}"
        ) from error
    return instance


def _is_init_var(field: Any) -> bool:
    """Whether it is a parameter of `__init__` alone."""
    return isinstance(field.type, dataclasses.InitVar) or str(field.type).startswith(
        ("InitVar", "dataclasses.InitVar")
    )


def _reach(roots: Iterable[Any]) -> list[type]:
    """All dataclasses and Enums that annotations name, also inside of each other."""
    found: list[type] = []
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        annotation = waiting.pop()
        if id(annotation) in seen:
            continue
        seen.add(id(annotation))
        waiting.extend(typing.get_args(annotation))
        for attribute in ("__supertype__", "__bound__", "__value__"):
            inner = getattr(annotation, attribute, None) if not isinstance(annotation, type) else None
            if inner is not None:
                waiting.append(inner)
        waiting.extend(getattr(annotation, "__constraints__", ()))
        origin = typing.get_origin(annotation)
        if isinstance(origin, type):
            waiting.append(origin)
        if not isinstance(annotation, type):
            continue
        if issubclass(annotation, enum.Enum):
            found.append(annotation)
        elif dataclasses.is_dataclass(annotation):
            found.append(annotation)
            waiting.extend(_field_types(annotation))
    return found


def _field_types(found: type) -> list[Any]:
    """The annotations of a dataclass; those that cannot be resolved are left out."""
    try:
        return list(typing.get_type_hints(found).values())
    except (NameError, TypeError, AttributeError, SyntaxError):
        pass
    types: list[Any] = []
    for base in found.__mro__:
        for name, annotation in vars(base).get("__annotations__", {}).items():
            alone = type("Alone", (), {"__annotations__": {name: annotation}, "__module__": base.__module__})
            try:
                types.extend(typing.get_type_hints(alone, localns={found.__name__: found}).values())
            except (NameError, TypeError, AttributeError, SyntaxError):
                continue
    return types

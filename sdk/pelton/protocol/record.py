"""A value of a class the reader does not have: its fields by name, and the name of its type as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn


class Record(Mapping[str, Any]):
    """A frozen mapping of field names to values that also gives them as attributes.

    It stands for a dataclass or Enum member whose class is not reachable from the annotations of the reader.
    An Enum member has the fields `name` and `value`. Fields called like a method of mappings are read as
    items.

    Args:
        type_name: qualified name of the original class, as text; never imported.
        fields: the fields in order.
        module: module of the original class, as text.
    """

    __slots__ = ("_fields", "_module", "_type_name")
    _fields: Mapping[str, Any]
    _module: str
    _type_name: str

    def __init__(self, type_name: str, fields: Mapping[str, Any], module: str = "") -> None:
        object.__setattr__(self, "_type_name", type_name)
        object.__setattr__(self, "_fields", dict(fields))
        object.__setattr__(self, "_module", module)

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __getattr__(self, name: str) -> Any:
        if name not in _OWN:
            try:
                return self._fields[name]
            except KeyError:
                pass
        raise AttributeError(f"a {type(self).__name__} of {type_name(self)!r} has no field {name!r}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("records are frozen")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("records are frozen")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return (self._type_name, self._module, self._fields) == (
            other._type_name,
            other._module,
            other._fields,
        )

    def __hash__(self) -> int:
        return hash((self._type_name, self._module, frozenset(self._fields.items())))

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self._fields.items())
        return f"<Record {self._type_name}({inner})>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (self._type_name, self._fields, self._module)


_OWN: Final = frozenset(Record.__slots__)


def type_name(record: Record) -> str:
    """Qualified name of the class the value had, as text."""
    return record._type_name


def module_name(record: Record) -> str:
    """Module of the class the value had, as text."""
    return record._module

"""Arguments and results to bytes and back: plain Python data as MessagePack, exact types, never code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NoReturn

import msgspec
from msgspec.msgpack import Ext

from pelton.errors import PayloadCorrupt, PayloadTooLarge, UnsupportedType
from pelton.protocol.arrays import ARRAYS, array_bytes, lower_array, raise_array
from pelton.protocol.classes import Classes, take_apart
from pelton.protocol.extensions import LOWER, RAISE, Extension, Refusal
from pelton.protocol.record import Record

__all__ = [
    "MAX_DEPTH",
    "MAX_PAYLOAD_BYTES",
    "Record",
    "decode",
    "decode_arguments",
    "decoder",
    "encode",
    "encode_arguments",
]

MAX_PAYLOAD_BYTES: Final = 512 * 1024
"""A payload above it would make records that brokers and executors choke on."""

MAX_DEPTH: Final = 100
"""Containers inside each other; far below Python's recursion limit, so neither side ever meets that."""

_pack = msgspec.msgpack.Encoder().encode

_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})
"""Types MessagePack has itself, as long as integers have 64 bits and texts are UTF-8."""

_CERTAIN: Final = _PLAIN - {int, str}
"""Types MessagePack has itself, whatever the value."""

_JUST_TEXT: Final = frozenset({str})
_CARRIED: Final = (
    "payloads carry None, bool, int, float, complex, str, bytes, list, tuple, set, dict, datetime, date,"
    " time, timedelta, Decimal, UUID, dataclasses, Enums, and arrays of numpy and tables of pyarrow"
)


def encode(value: Any, name: str = "value") -> bytes:
    """The payload of a value.

    Args:
        value: plain data; see `docs/reference/wire.md`.
        name: how error messages call the value.

    Raises:
        UnsupportedType: something in it does not travel; the message says where and why.
        PayloadTooLarge: the payload would be above 512 KiB.
    """
    if type(value) is tuple and len(value) == 2 and type(value[0]) is tuple and type(value[1]) is dict:
        data = _encode_plain_pair(*value)
        if data is not None:
            return data
    return _encode(value, lambda path: name + "".join(path))


def encode_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """The payload of the arguments of a call: the pair (args, kwargs). Errors as in `encode`."""
    if type(kwargs) is not dict:
        kwargs = dict(kwargs)
    return _encode_plain_pair(args, kwargs) or _encode((args, kwargs), _argument_place)


def decode(data: bytes, annotations: Any = None) -> Any:
    """The value of a payload, with the types it had.

    Args:
        data: the payload.
        annotations: a type, or a mapping of names to types: dataclasses and Enums they reach come back as
            themselves, all others as `Record`.

    Raises:
        PayloadCorrupt: it is no payload.
    """
    return (_BARE if annotations is None else decoder(annotations))(data)


def decode_arguments(data: bytes, annotations: Any = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call: (args, kwargs).

    Raises:
        PayloadCorrupt: it is no payload, or no pair of a tuple and a dict with names.
    """
    value = decode(data, annotations)
    if type(value) is tuple and len(value) == 2:
        args, kwargs = value
        if type(args) is tuple and type(kwargs) is dict and _JUST_TEXT.issuperset(map(type, kwargs)):
            return args, kwargs
    raise PayloadCorrupt("the payload holds no arguments: they are a pair of a tuple and a dict with names")


def decoder(annotations: Any) -> Callable[[bytes], Any]:
    """`decode` for given annotations, made once: walking annotations costs more than decoding."""
    if isinstance(annotations, Mapping):
        annotations = tuple(annotations.values())
    try:
        return _cached_decoder(annotations)
    except TypeError:  # an annotation that cannot be hashed, such as Annotated[int, []]
        return _Reader(Classes(dict(enumerate(_as_tuple(annotations))))).read


@lru_cache(maxsize=256)
def _cached_decoder(annotations: Any) -> Callable[[bytes], Any]:
    """`decoder` for annotations that can be hashed."""
    return _Reader(Classes(dict(enumerate(_as_tuple(annotations))))).read


def _as_tuple(annotations: Any) -> tuple[Any, ...]:
    """One annotation or several, as a tuple."""
    return annotations if isinstance(annotations, tuple) else (annotations,)


# --- values to bytes


class _Walk:
    """One way through a value.

    Attributes:
        plain: types that are taken as they are.
        left: how many more items may come: each takes a byte at least, so more of them never fit. Shared
            parts are counted each time they are met, which ends values that are small in memory and endless
            on the wire.
    """

    __slots__ = ("left", "plain")

    def __init__(self, plain: frozenset[type]) -> None:
        self.plain = plain
        self.left = MAX_PAYLOAD_BYTES

    def take(self, items: int) -> None:
        self.left -= items
        if self.left < 0:
            raise PayloadTooLarge(
                f"the payload has more items than fit the limit of {MAX_PAYLOAD_BYTES} bytes"
            )


def _encode(value: Any, place: Callable[[Sequence[str]], str]) -> bytes:
    """The payload of a value; `place` says how error messages call a part of it."""
    try:
        try:
            data = _pack(value if type(value) in _PLAIN else _lower(value, 1, _Walk(_PLAIN)))
        except (OverflowError, UnicodeEncodeError):
            # An integer of more than 64 bits or a text that is no UTF-8 is in it: look at each.
            data = _pack(_lower(value, 1, _Walk(_CERTAIN)))
    except Refusal as refusal:
        raise UnsupportedType(f"{place(refusal.path[::-1])} {refusal.reason}") from None
    if len(data) > MAX_PAYLOAD_BYTES:
        raise _too_large(len(data))
    return data


def _encode_plain_pair(args: tuple[Any, ...], kwargs: dict[Any, Any]) -> bytes | None:
    """The payload of arguments that MessagePack has itself, without a walk; None for all others."""
    if not _PLAIN.issuperset(map(type, args)):
        return None
    if kwargs and not (
        _JUST_TEXT.issuperset(map(type, kwargs)) and _PLAIN.issuperset(map(type, kwargs.values()))
    ):
        return None
    try:
        data = _pack(Ext(Extension.TUPLE, _pack((Ext(Extension.TUPLE, _pack(args)), kwargs))))
    except (OverflowError, UnicodeEncodeError):
        return None
    return data if len(data) <= MAX_PAYLOAD_BYTES else None


def _too_large(size: int) -> PayloadTooLarge:
    """The error for a payload of this size."""
    return PayloadTooLarge(
        f"the payload takes {size:,} bytes, above the limit of {MAX_PAYLOAD_BYTES:,} (512 KiB):"
        f" store large data elsewhere and pass where it is"
    )


def _argument_place(path: Sequence[str]) -> str:
    """Names a part of (args, kwargs) as the caller knows it."""
    return "arguments" + "".join(path[1:])


def _lower(value: Any, depth: int, walk: _Walk) -> Any:
    """A value as MessagePack can take it: itself, or an extension in its place."""
    kind = type(value)
    if kind in walk.plain:
        return value
    if kind in _CONTAINERS:
        if depth > MAX_DEPTH:
            raise Refusal(f"lies more than {MAX_DEPTH} containers deep, or contains itself")
        return _CONTAINERS[kind](value, depth, walk)
    lower = LOWER.get(kind)
    if lower is not None:
        return lower(value)
    return _lower_other(value, depth, walk)


def _lower_items(items: Any, depth: int, walk: _Walk) -> Any:
    """Items of a list or tuple; the same object when all are plain."""
    walk.take(len(items) + 1)
    if walk.plain.issuperset(map(type, items)):
        return items
    lowered = []
    plain = walk.plain
    try:
        for item in items:
            lowered.append(item if type(item) in plain else _lower(item, depth + 1, walk))
    except Refusal as refusal:
        refusal.path.append(f"[{len(lowered)}]")
        raise
    return lowered


def _lower_tuple(value: tuple[Any, ...], depth: int, walk: _Walk) -> Ext:
    """A tuple."""
    return Ext(Extension.TUPLE, _pack(_lower_items(value, depth, walk)))


def _lower_set(value: Any, depth: int, walk: _Walk) -> Ext:
    """A set or frozenset; sorted, so that equal sets give equal bytes in every process."""
    walk.take(len(value) + 1)
    packed = []
    for item in value:
        try:
            packed.append(_pack(_lower(item, depth + 1, walk)))
        except Refusal as refusal:
            refusal.path.append(f"{{{_short(item)}}}")
            raise
    packed.sort()
    code = Extension.SET if type(value) is set else Extension.FROZENSET
    return Ext(code, _pack([msgspec.Raw(item) for item in packed]))


def _lower_dict(value: dict[Any, Any], depth: int, walk: _Walk) -> Any:
    """A dict; keys that are not str make it pairs."""
    if not value:
        return value
    walk.take(2 * len(value) + 1)
    plain = walk.plain
    if _JUST_TEXT.issuperset(map(type, value)):
        if str in plain and plain.issuperset(map(type, value.values())):
            return value
        lowered = {}
        for key, item in value.items():
            try:
                _lower(key, depth + 1, walk)
                lowered[key] = item if type(item) in plain else _lower(item, depth + 1, walk)
            except Refusal as refusal:
                refusal.path.append(f"[{_short(key)}]")
                raise
        return lowered
    pairs = []
    for key, item in value.items():
        try:
            pairs.append(_lower(key, depth + 1, walk))
            pairs.append(_lower(item, depth + 1, walk))
        except Refusal as refusal:
            refusal.path.append(f"[{_short(key)}]")
            raise
    return Ext(Extension.PAIRS, _pack(pairs))


def _lower_other(value: Any, depth: int, walk: _Walk) -> Ext:
    """A value of a type known neither to MessagePack nor by name."""
    if array_bytes(value) > MAX_PAYLOAD_BYTES:
        raise _too_large(array_bytes(value))
    array = lower_array(value)
    if array is not None:
        return array
    parts = take_apart(value)
    if parts is None:
        kind = type(value)
        raise Refusal(f"is a {kind.__module__}.{kind.__qualname__}, which does not travel: {_CARRIED}")
    if depth > MAX_DEPTH:
        raise Refusal(f"lies more than {MAX_DEPTH} containers deep, or contains itself")
    module, name, fields = parts
    walk.take(2 * len(fields) + 3)
    flat: list[Any] = [module, name]
    for field, item in fields.items():
        flat.append(field)
        try:
            flat.append(_lower(item, depth + 1, walk))
        except Refusal as refusal:
            refusal.path.append(f".{field}")
            raise
    return Ext(Extension.RECORD, _pack(flat))


def _short(key: Any) -> str:
    """A key as error messages show it."""
    if type(key) in _PLAIN:
        text = repr(key)
        return text if len(text) <= 60 else text[:57] + "..."
    return f"<{type(key).__qualname__}>"


_CONTAINERS: Final[dict[type, Callable[[Any, int, _Walk], Any]]] = {
    tuple: _lower_tuple,
    list: _lower_items,
    dict: _lower_dict,
    set: _lower_set,
    frozenset: _lower_set,
}


# --- bytes to values


_CONTAINER_BYTES: Final = bytes(
    (*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0))
)
"""What maps, arrays and extensions start with: a payload with few such bytes cannot be deep."""

_Decode = Callable[[bytes | memoryview], Any]


def _refuse_depth(data: bytes | memoryview) -> NoReturn:
    """Stands where one more extension would be too deep."""
    raise PayloadCorrupt(f"the payload is more than {MAX_DEPTH} containers deep")


class _Reader:
    """Puts values together; one for each set of annotations, used by any number of threads at once."""

    __slots__ = ("_classes", "_decode")

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        # One for each depth of extensions, the deepest first: nothing has to be counted while decoding.
        decode: _Decode = _refuse_depth
        for _ in range(MAX_DEPTH + 1):
            decode = msgspec.msgpack.Decoder(ext_hook=self._hook(decode)).decode
        self._decode = decode

    def read(self, data: bytes) -> Any:
        """The value of a payload."""
        if len(data) > MAX_PAYLOAD_BYTES:
            raise PayloadCorrupt(
                f"a payload of {len(data):,} bytes, above the limit of {MAX_PAYLOAD_BYTES:,}"
            )
        try:
            value = self._decode(data)
        except PayloadCorrupt:
            raise
        except Exception as error:
            # Whatever goes wrong while bytes become values, also in `__eq__` of a user's class,
            # is the fault of the bytes.
            raise PayloadCorrupt(f"a payload that cannot be read: {type(error).__name__}: {error}") from error
        if len(data) - len(data.translate(None, _CONTAINER_BYTES)) > MAX_DEPTH:
            _check_depth(value)
        return value

    def _hook(self, decode: _Decode) -> Callable[[int, memoryview], Any]:
        """What a decoder calls for an extension; `decode` reads what lies inside."""

        def hook(code: int, data: memoryview) -> Any:
            if code == Extension.TUPLE:
                return tuple(_as_list(decode(data)))
            plain = RAISE.get(code)
            if plain is not None:
                return plain(data)
            if code == Extension.SET:
                return set(_as_list(decode(data)))
            if code == Extension.FROZENSET:
                return frozenset(_as_list(decode(data)))
            if code == Extension.PAIRS:
                flat = _as_list(decode(data))
                return dict(zip(flat[::2], flat[1::2], strict=True))
            if code == Extension.RECORD:
                return self._record(_as_list(decode(data)))
            if code in ARRAYS:
                return raise_array(code, data)
            raise PayloadCorrupt(f"the payload has an extension of code {code}, which is unknown here")

        return hook

    def _record(self, flat: list[Any]) -> Any:
        """A dataclass instance, an Enum member or a `Record`."""
        if len(flat) < 2 or not _JUST_TEXT.issuperset(map(type, (flat[0], flat[1], *flat[2::2]))):
            raise PayloadCorrupt("the payload has a record without names")
        return self._classes.build(flat[0], flat[1], dict(zip(flat[2::2], flat[3::2], strict=True)))


def _as_list(items: Any) -> list[Any]:
    """The array inside an extension."""
    if type(items) is not list:
        raise PayloadCorrupt("the payload has an extension that holds no array")
    return items


_BARE: Final = _Reader(Classes()).read


def _check_depth(value: Any) -> None:
    """Refuses a value of too many containers inside each other.

    Raises:
        PayloadCorrupt: it is too deep.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [part for item in level for part in _parts(item) if type(part) not in _PLAIN]
        if not level:
            return
    if any(isinstance(item, _DEEPER) or dataclasses.is_dataclass(item) for item in level):
        raise PayloadCorrupt(f"the payload is more than {MAX_DEPTH} containers deep")


_DEEPER: Final = (list, tuple, dict, set, frozenset, Record)
"""Containers, beside dataclasses."""


def _parts(item: Any) -> Iterable[Any]:
    """What lies directly inside a value."""
    if isinstance(item, dict):
        return (*item, *item.values())
    if isinstance(item, (list, tuple, set, frozenset)):
        return () if _PLAIN.issuperset(map(type, item)) else item
    if type(item) is Record:
        return item.values()
    if dataclasses.is_dataclass(item):
        return [getattr(item, field.name) for field in dataclasses.fields(item)]
    return ()

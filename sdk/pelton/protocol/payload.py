"""Arguments and results to bytes and back: plain Python data as MessagePack, exact types, never code."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NoReturn

import msgspec
from msgspec.msgpack import Ext

from pelton.errors import PayloadCorrupt, PayloadTooLarge, UnsupportedType
from pelton.protocol.arrays import ARRAYS, array_bytes, lower_array, raise_array
from pelton.protocol.claims import Claim, decode_claim, is_claim
from pelton.protocol.classes import Classes, take_apart
from pelton.protocol.extensions import LOWER, RAISE, Extension, Refusal
from pelton.protocol.large import MAX_DEPTH, Segments, short
from pelton.protocol.pickles import content, is_pickled, wrap
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

_pack = msgspec.msgpack.Encoder().encode

_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})
"""Types MessagePack has itself, as long as integers have 64 bits and texts are UTF-8."""

_CERTAIN: Final = _PLAIN - {int, str}
"""Types MessagePack has itself, whatever the value."""

_JUST_TEXT: Final = frozenset({str})
_SIZED: Final = frozenset({str, bytes, bytearray})
_CARRIED: Final = (
    "payloads carry None, bool, int, float, complex, str, bytes, list, tuple, set, dict, datetime, date,"
    " time, timedelta, Decimal, UUID, dataclasses, Enums, and arrays of numpy and tables of pyarrow"
)


def encode(value: Any, name: str = "value", *, pickles: bool = False) -> bytes:
    """The payload of a value.

    Args:
        value: plain data; see `docs/reference/wire.md`.
        name: how error messages call the value.
        pickles: whether what is no plain data is pickled; the payload is then one to be signed, see
            `pelton.protocol.pickles`.

    Raises:
        UnsupportedType: something in it does not travel; the message says where and why.
        PayloadTooLarge: the payload would be above 512 KiB.
    """
    if type(value) is tuple and len(value) == 2 and type(value[0]) is tuple and type(value[1]) is dict:
        data = _encode_plain_pair(*value)
        if data is not None:
            return data
    return _encode(value, lambda path: name + "".join(path), pickles)


def encode_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], *, pickles: bool = False) -> bytes:
    """The payload of the arguments of a call: the pair (args, kwargs). All else as in `encode`."""
    if type(kwargs) is not dict:
        kwargs = dict(kwargs)
    return _encode_plain_pair(args, kwargs) or _encode((args, kwargs), argument_place, pickles)


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


OpenObject = Callable[[Claim], int]
"""Gives the descriptor of a file that is the object, size and digest checked; the caller closes it."""


def decoder(
    annotations: Any, *, pickles: bool = False, objects: OpenObject | None = None
) -> Callable[[bytes], Any]:
    """`decode` for given annotations, made once: walking annotations costs more than decoding.

    Args:
        annotations: as for `decode`.
        pickles: whether payloads with pickled parts are opened, which runs what the pickles say: only where
            nothing arrives whose signature was not checked.
        objects: opens the objects of claim checks; None refuses those.
    """
    if isinstance(annotations, Mapping):
        annotations = tuple(annotations.values())
    try:
        return _cached_decoder(annotations, pickles, objects)
    except TypeError:  # an annotation that cannot be hashed, such as Annotated[int, []]
        return _decoder(annotations, pickles, objects)


def _decoder(annotations: Any, pickles: bool, objects: OpenObject | None) -> Callable[[bytes], Any]:
    classes = Classes(dict(enumerate(_as_tuple(annotations))))
    plain = _Reader(classes).read
    if not pickles and objects is None:
        return plain
    checked: list[Callable[[bytes], Any]] = []

    def read(data: bytes) -> Any:
        has_pickles = pickles and is_pickled(data)
        if has_pickles:
            data = content(data)
        if objects is not None and is_claim(data):
            return _read_object(classes, has_pickles, objects, decode_claim(data))
        if not has_pickles:
            return plain(data)
        if not checked:
            checked.append(_Reader(classes, pickles=True).read)
        return checked[0](data)

    return read


def _read_object(classes: Classes, pickles: bool, objects: OpenObject, claim: Claim) -> Any:
    """The value of an object."""
    descriptor = objects(claim)
    try:
        segments = Segments(descriptor)
        return _Reader(classes, pickles=pickles, segments=segments).read(segments.root())
    finally:
        os.close(descriptor)


_cached_decoder = lru_cache(maxsize=256)(_decoder)


def _as_tuple(annotations: Any) -> tuple[Any, ...]:
    """One annotation or several, as a tuple."""
    return annotations if isinstance(annotations, tuple) else (annotations,)


# --- values to bytes


class _Walk:
    """One way through a value.

    Attributes:
        plain: types that are taken as they are.
        pickles: whether what is no plain data is pickled.
        pickled: whether something was.
        left: how many more items may come: each takes a byte at least, so more of them never fit. Shared
            parts are counted each time they are met, which ends values that are small in memory and endless
            on the wire.
    """

    __slots__ = ("left", "pickled", "pickles", "plain")

    def __init__(self, plain: frozenset[type], pickles: bool) -> None:
        self.plain = plain
        self.pickles = pickles
        self.pickled = False
        self.left = MAX_PAYLOAD_BYTES

    def take(self, items: int) -> None:
        self.left -= items
        if self.left < 0:
            raise PayloadTooLarge(
                f"the payload has more data than fits the limit of {MAX_PAYLOAD_BYTES:,} bytes"
            )

    def weigh(self, items: Iterable[Any]) -> frozenset[type]:
        """Counts texts and bytes among items, before anything copies them; returns all their types."""
        kinds = frozenset(map(type, items))
        if kinds <= _SIZED:
            self.take(sum(map(len, items)))
        elif not kinds.isdisjoint(_SIZED):
            self.take(sum(len(item) for item in items if type(item) in _SIZED))
        return kinds


def _encode(value: Any, place: Callable[[Sequence[str]], str], pickles: bool) -> bytes:
    """The payload of a value; `place` says how error messages call a part of it."""
    if type(value) in _SIZED and len(value) > MAX_PAYLOAD_BYTES:
        raise _too_large(len(value))
    walk = _Walk(_PLAIN, pickles)
    try:
        try:
            data = _pack(value if type(value) in _PLAIN else _lower(value, 1, walk))
        except (OverflowError, UnicodeEncodeError):
            # An integer of more than 64 bits or a text that is no UTF-8 is in it: look at each.
            walk = _Walk(_CERTAIN, pickles)
            data = _pack(_lower(value, 1, walk))
    except Refusal as refusal:
        raise UnsupportedType(f"{place(refusal.path[::-1])} {refusal.reason}") from None
    if len(data) > MAX_PAYLOAD_BYTES:
        raise _too_large(len(data))
    return wrap(data) if walk.pickled else data


def _encode_plain_pair(args: tuple[Any, ...], kwargs: dict[Any, Any]) -> bytes | None:
    """The payload of arguments that MessagePack has itself, without a walk; None for all others."""
    if not _PLAIN.issuperset(map(type, args)):
        return None
    for item in (*args, *kwargs.values()) if kwargs else args:
        # Before a copy is made of it.
        if type(item) in _SIZED and len(item) > MAX_PAYLOAD_BYTES:
            raise _too_large(len(item))
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
        f"the payload takes {size:,} bytes, above the limit of {MAX_PAYLOAD_BYTES:,} (512 KiB) of a record,"
        " and there is no object store here: PELTON_STORE names one, a folder or an s3:// address"
    )


def value_place(path: Sequence[str]) -> str:
    """Names a part of a value."""
    return "value" + "".join(path)


def argument_place(path: Sequence[str]) -> str:
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
    if walk.weigh(items) <= walk.plain:
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
    walk.weigh(value)
    packed = []
    for item in value:
        try:
            packed.append(_pack(_lower(item, depth + 1, walk)))
        except Refusal as refusal:
            refusal.path.append(f"{{{short(item)}}}")
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
        if walk.weigh(value.values()) <= plain and str in plain:
            return value
        lowered = {}
        for key, item in value.items():
            try:
                _lower(key, depth + 1, walk)
                lowered[key] = item if type(item) in plain else _lower(item, depth + 1, walk)
            except Refusal as refusal:
                refusal.path.append(f"[{short(key)}]")
                raise
        return lowered
    walk.weigh(value.values())
    pairs = []
    for key, item in value.items():
        try:
            pairs.append(_lower(key, depth + 1, walk))
            pairs.append(_lower(item, depth + 1, walk))
        except Refusal as refusal:
            refusal.path.append(f"[{short(key)}]")
            raise
    return Ext(Extension.PAIRS, _pack(pairs))


def _lower_other(value: Any, depth: int, walk: _Walk) -> Ext:
    """A value of a type known neither to MessagePack nor by name."""
    size = array_bytes(value)
    if size > MAX_PAYLOAD_BYTES:
        raise _too_large(size)
    walk.take(size)
    array = lower_array(value)
    if array is not None:
        return array
    parts = take_apart(value)
    if parts is None and walk.pickles:
        return _pickle(value, walk)
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


def _pickle(value: Any, walk: _Walk) -> Ext:
    """A value as a cloudpickle."""
    # Late: few programs need it, and it takes as long to import as the rest of the SDK.
    import cloudpickle

    kind = type(value)
    what = f"is a {kind.__module__}.{kind.__qualname__}"
    try:
        data = cloudpickle.dumps(value)
    except Exception as error:
        raise Refusal(f"{what}, which cannot be pickled ({type(error).__name__}: {error})") from error
    walk.take(len(data))
    walk.pickled = True
    return Ext(Extension.PICKLE, data)


def _unpickle(data: memoryview) -> Any:
    """What a checked pickle says; its code runs here."""
    import cloudpickle

    return cloudpickle.loads(data)


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

_LIST: Final = 0
"""Code of a list, where containers have codes: an array has none of its own."""

_OF_ITEMS: Final = frozenset({Extension.SET, Extension.FROZENSET, Extension.PAIRS, Extension.RECORD})

_Decode = Callable[[bytes | memoryview], Any]


def _refuse_depth(data: bytes | memoryview) -> NoReturn:
    """Stands where one more extension would be too deep."""
    raise PayloadCorrupt(f"the payload is more than {MAX_DEPTH} containers deep")


class _Reader:
    """Puts values together; one for each set of annotations, used by any number of threads at once."""

    __slots__ = ("_classes", "_decode", "_pickles", "_segments")

    def __init__(self, classes: Classes, *, pickles: bool = False, segments: Segments | None = None) -> None:
        self._classes = classes
        self._pickles = pickles
        self._segments = segments
        # One for each depth of extensions, the deepest first: nothing has to be counted while decoding.
        decode: _Decode = _refuse_depth
        for _ in range(MAX_DEPTH + 1):
            decode = msgspec.msgpack.Decoder(ext_hook=self._hook(decode)).decode
        self._decode = decode

    def read(self, data: bytes | memoryview) -> Any:
        """The value of a payload, or of the root of an object."""
        if self._segments is None and len(data) > MAX_PAYLOAD_BYTES:
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
        if (
            isinstance(data, memoryview)
            or len(data) - len(data.translate(None, _CONTAINER_BYTES)) > MAX_DEPTH
        ):
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
            if code in _OF_ITEMS:
                return self._container(code, _as_list(decode(data)))
            if code in ARRAYS:
                return raise_array(code, data)
            if code == Extension.PICKLE and self._pickles:
                return _unpickle(data)
            if code == Extension.SEGMENT and self._segments is not None:
                return self._segments.value(data, self._unpickle)
            if code == Extension.PARTS and self._segments is not None:
                return self._container(*self._segments.items(data, decode))
            if code == Extension.CLAIM:
                raise PayloadCorrupt("the payload lies in the object store, which this reader cannot reach")
            if code in (Extension.PICKLED, Extension.PICKLE):
                raise PayloadCorrupt(
                    "the payload has pickled parts, which only callers in Python open, and only signed ones"
                )
            raise PayloadCorrupt(f"the payload has an extension of code {code}, which is unknown here")

        return hook

    def _unpickle(self, data: memoryview) -> Any:
        if not self._pickles:
            raise PayloadCorrupt(
                "the object of a payload has pickled parts, and nothing says who signed them"
            )
        return _unpickle(data)

    def _container(self, code: int, items: list[Any]) -> Any:
        """A container from its items, which lie flat."""
        if code == _LIST:
            return items
        if code == Extension.TUPLE:
            return tuple(items)
        if code == Extension.SET:
            return set(items)
        if code == Extension.FROZENSET:
            return frozenset(items)
        if code == Extension.PAIRS:
            return dict(zip(items[::2], items[1::2], strict=True))
        if code == Extension.RECORD:
            return self._record(items)
        raise PayloadCorrupt(f"the payload has a container of code {code}, which is unknown here")

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

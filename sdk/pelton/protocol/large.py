"""Payloads above the limit of a record: objects that are written and read in pieces, never held twice.

An object is `PLO1`, segments, a root and a trailer. The root is a payload as any other; what is large in it
stands in a segment of its own, and the root says where. Arrays and tables are read where they lie.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, Final

import msgspec
from msgspec.msgpack import Ext

from pelton.errors import PayloadCorrupt, PayloadTooLarge, UnsupportedType
from pelton.protocol.arrays import (
    dtype_text,
    lower_array,
    raise_arrow_buffer,
    raise_numpy_buffer,
    write_arrow,
)
from pelton.protocol.classes import take_apart
from pelton.protocol.extensions import LOWER, Extension, Refusal

MAX_OBJECT_BYTES: Final = (1 << 30) + (1 << 20)
"""1 GiB of data, and what says how it belongs together."""

MAX_DEPTH: Final = 100
"""Containers inside each other, as in every payload."""

_MARK: Final = b"PLO1"
_ALIGNMENT: Final = 64
_LEAF_BYTES: Final = 4096
"""Texts and bytes from this size on have a segment of their own."""
_PART_ITEMS: Final = 1024
_PART_BYTES: Final = 64 * 1024
"""Containers of so many packed bytes have a segment of their own."""
_PIECE: Final = 1 << 20
_PACKED: Final = 0
"""As the code of a segment: packed values; as that of parts: a list."""
_TEXT: Final = -1
_BYTES: Final = -2
_PLAIN: Final = frozenset({type(None), bool, float})

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[Any]).decode


def _hash() -> hashlib.blake2b:
    """As safe as SHA-256, and nearly twice as fast where a processor has no instructions for that one."""
    return hashlib.blake2b(digest_size=32)


class ObjectFile:
    """An object that is being written.

    Args:
        file: where it goes, from its current position on.

    Attributes:
        size: bytes written.
        pickled: whether a part of it is a pickle.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = _hash()
        self.size = 0
        self.pickled = False
        self.write(_MARK)

    @property
    def digest(self) -> bytes:
        """Digest of what was written."""
        return self._hash.digest()

    # What libraries that write into files look at.
    closed = False

    def flush(self) -> None:
        """Nothing is held back."""

    def write(self, data: Any) -> int:
        """Writes bytes, or anything that lies in memory like them.

        Raises:
            PayloadTooLarge: the object would be above `MAX_OBJECT_BYTES`.
        """
        with memoryview(data) as view:
            count = view.nbytes
            if self.size + count > MAX_OBJECT_BYTES:
                raise PayloadTooLarge(
                    "the payload is above the limit of 1 GiB: store the data elsewhere and pass where it is"
                )
            with view.cast("B") as plain:
                for start in range(0, count, _PIECE):
                    piece = plain[start : start + _PIECE]
                    self._hash.update(piece)
                    self._file.write(piece)
        self.size += count
        return count

    def align(self) -> int:
        """Where the next segment begins: places that suit numbers of every size."""
        gap = -self.size % _ALIGNMENT
        if gap:
            self.write(bytes(gap))
        return self.size

    def segment(self, code: int, write: Callable[[], object], *more: Any) -> Ext:
        """Has a segment written; returns what stands for it."""
        start = self.align()
        write()
        return Ext(Extension.SEGMENT, _pack((code, start, self.size - start, *more)))

    def part(self, items: Sequence[Any]) -> tuple[int, int]:
        """Writes packed values as a part; where it lies."""
        start = self.size
        self.write(_pack(items))
        return start, self.size - start


def write(file: BinaryIO, value: Any, place: Callable[[Sequence[str]], str], pickles: bool) -> ObjectFile:
    """Writes the object of a value.

    Args:
        file: where it goes.
        value: as for `payload.encode`.
        place: says how error messages call a part of it.
        pickles: whether what is no plain data is pickled.

    Raises:
        UnsupportedType: something in it does not travel.
        PayloadTooLarge: it is above 1 GiB.
    """
    out = ObjectFile(file)
    try:
        root = _pack(_Walk(out, pickles).lower(value, 1))
    except Refusal as refusal:
        raise UnsupportedType(f"{place(refusal.path[::-1])} {refusal.reason}") from None
    start = out.align()
    out.write(root)
    out.write(start.to_bytes(8, "big") + len(root).to_bytes(8, "big") + _MARK)
    return out


class _Walk:
    """One way through a value, which writes what is large on the way."""

    def __init__(self, out: ObjectFile, pickles: bool) -> None:
        self._out = out
        self._pickles = pickles

    def lower(self, value: Any, depth: int) -> Any:
        """A value as MessagePack can take it, with references in place of what is large."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is str:
            return self._text(value) if len(value) >= _LEAF_BYTES else LOWER[str](value)
        if kind in (bytes, bytearray) and len(value) >= _LEAF_BYTES:
            code = _BYTES if kind is bytes else Extension.BYTEARRAY
            return self._out.segment(code, lambda: self._out.write(value))
        lower = LOWER.get(kind)
        if lower is not None:
            return lower(value)
        if kind is bytes:
            return value
        if kind in _CODES:
            _check_depth(depth)
            return self._array(_CODES[kind], enumerate(value), depth, _member if kind in _SETS else _index)
        if kind is dict:
            _check_depth(depth)
            return self._array(Extension.PAIRS, _flat(value), depth, _key)
        return self._other(value, depth)

    def _text(self, value: str) -> Ext:
        def write() -> None:
            for start in range(0, len(value), _PIECE):
                piece = value[start : start + _PIECE]
                self._out.write(LOWER[str](piece).encode())

        return self._out.segment(_TEXT, write)

    def _array(
        self, code: int, items: Iterable[tuple[Any, Any]], depth: int, place: Callable[[Any, Any], str]
    ) -> Any:
        """Items of a container: inline while they are few and small, else in parts."""
        out = self._out
        parts: list[int] = []
        batch: list[Any] = []
        for name, item in items:
            try:
                batch.append(self.lower(item, depth + 1))
            except Refusal as refusal:
                refusal.path.append(place(name, item))
                raise
            if len(batch) == _PART_ITEMS:
                parts.extend(out.part(batch))
                batch = []
        if not parts:
            packed = _pack(batch)
            if len(packed) < _PART_BYTES:
                return msgspec.Raw(packed) if code == _PACKED else Ext(code, packed)
        if batch:
            parts.extend(out.part(batch))
        return Ext(Extension.PARTS, _pack((code, *parts)))

    def _other(self, value: Any, depth: int) -> Any:
        array = self._big_array(value)
        if array is None:
            array = lower_array(value)
        if array is not None:
            return array
        parts = take_apart(value)
        if parts is not None:
            _check_depth(depth)
            module, name, fields = parts
            flat = [("", module), ("", name), *_flat(fields)]
            return self._array(Extension.RECORD, flat, depth, _field)
        kind = type(value)
        what = f"is a {kind.__module__}.{kind.__qualname__}"
        if not self._pickles:
            raise Refusal(f"{what}, which does not travel")
        return self._pickle(value, what)

    def _pickle(self, value: Any, what: str) -> Ext:
        import cloudpickle

        def write() -> None:
            try:
                cloudpickle.dump(value, self._out, protocol=5)
            except PayloadTooLarge:
                raise
            except Exception as error:
                raise Refusal(f"{what}, which cannot be pickled ({type(error).__name__}: {error})") from error

        self._out.pickled = True
        return self._out.segment(Extension.PICKLE, write)

    def _big_array(self, value: Any) -> Ext | None:
        numpy, arrow = sys.modules.get("numpy"), sys.modules.get("pyarrow")
        if (
            numpy is not None
            and type(value) is getattr(numpy, "ndarray", None)
            and value.nbytes >= _LEAF_BYTES
        ):
            dtype = dtype_text(value.dtype)
            return self._out.segment(
                Extension.NUMPY_ARRAY, lambda: self._write_numpy(numpy, value), dtype, value.shape
            )
        if arrow is not None and hasattr(arrow, "Table"):
            code = {arrow.Table: Extension.ARROW_TABLE, arrow.RecordBatch: Extension.ARROW_BATCH}.get(
                type(value)
            )
            if code is not None:
                return self._out.segment(code, lambda: write_arrow(arrow, self._out, value))
        return None

    def _write_numpy(self, numpy: Any, value: Any) -> None:
        """The items in C order; of an array that lies otherwise a copy of a few rows at a time."""
        if value.flags.c_contiguous:
            self._out.write(value.reshape(-1).view(numpy.uint8))
            return
        rows = max(1, _PIECE * len(value) // value.nbytes)
        for start in range(0, len(value), rows):
            block = numpy.ascontiguousarray(value[start : start + rows])
            self._out.write(block.reshape(-1).view(numpy.uint8))


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Refusal(f"lies more than {MAX_DEPTH} containers deep, or contains itself")


def _flat(items: dict[Any, Any]) -> Iterable[tuple[Any, Any]]:
    """Keys and values of a dict one after the other, each with its key."""
    for key, item in items.items():
        yield key, key
        yield key, item


def _index(name: Any, item: Any) -> str:
    return f"[{name}]"


def _key(name: Any, item: Any) -> str:
    return f"[{short(name)}]"


def _member(name: Any, item: Any) -> str:
    return f"{{{short(item)}}}"


def _field(name: Any, item: Any) -> str:
    return f".{name}"


def short(key: Any) -> str:
    """A key or member as error messages show it."""
    if type(key) in (type(None), bool, int, float, str, bytes):
        text = repr(key)
        return text if len(text) <= 60 else text[:57] + "..."
    return f"<{type(key).__qualname__}>"


_SETS: Final = (set, frozenset)
_CODES: Final[dict[type, int]] = {
    list: _PACKED,
    tuple: Extension.TUPLE,
    set: Extension.SET,
    frozenset: Extension.FROZENSET,
}


class Segments:
    """An object that is being read: where it lies, and the values in its segments.

    Args:
        descriptor: of a file that is the object, checked; may be closed after the value was read.

    Raises:
        PayloadCorrupt: it is no object.
    """

    def __init__(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if size < 2 * len(_MARK) + 16:
            raise PayloadCorrupt("the object of a payload is of an unknown kind")
        self._descriptor = descriptor
        # A copy of ours, page by page, once somebody writes into an array that lies in it.
        self._view = memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY))

    def root(self) -> memoryview:
        """The payload that says how the segments belong together."""
        view = self._view
        if bytes(view[: len(_MARK)]) != _MARK or bytes(view[-len(_MARK) :]) != _MARK:
            raise PayloadCorrupt("the object of a payload is of an unknown kind")
        start, length = (int.from_bytes(view[at : at + 8], "big") for at in (-20, -12))
        return self._slice(start, length)

    def value(self, data: memoryview, unpickle: Callable[[Any], Any]) -> Any:
        """The value that a SEGMENT stands for."""
        code, start, length, *more = _unpack(data)
        if code == _BYTES:
            return self._bytes(start, length)
        view = self._slice(start, length)
        if code == _TEXT:
            return str(view, "utf-8")
        if code == Extension.BYTEARRAY:
            return bytearray(view)
        if code == Extension.NUMPY_ARRAY:
            dtype, shape = more
            return raise_numpy_buffer(dtype, shape, view)
        if code in (Extension.ARROW_TABLE, Extension.ARROW_BATCH):
            return raise_arrow_buffer(code, view)
        if code == Extension.PICKLE:
            return unpickle(view)
        raise PayloadCorrupt(f"the object of a payload has a segment of code {code}, which is unknown here")

    def items(self, data: memoryview, decode: Callable[[Any], Any]) -> tuple[int, list[Any]]:
        """Code and items of the container that a PARTS stands for."""
        code, *places = _unpack(data)
        items: list[Any] = []
        for start, length in zip(places[::2], places[1::2], strict=True):
            part = decode(self._slice(start, length))
            if type(part) is not list:
                raise PayloadCorrupt("the object of a payload has a part that is no array")
            items.extend(part)
        return code, items

    def _slice(self, start: Any, length: Any) -> memoryview:
        if (
            type(start) is not int
            or type(length) is not int
            or not 0 <= start <= start + length <= len(self._view)
        ):
            raise PayloadCorrupt("the object of a payload refers to what lies outside of it")
        return self._view[start : start + length]

    def _bytes(self, start: Any, length: Any) -> bytes:
        """Read, not copied from the mapping: its pages would stay as long as any array in it."""
        self._slice(start, length)
        data = os.pread(self._descriptor, length, start)
        return data if len(data) == length else bytes(self._slice(start, length))


def check_object(descriptor: int, size: int, digest: bytes) -> None:
    """Returns when a file is the object that was stored.

    Args:
        descriptor: of the file.
        size: of the object.
        digest: of the object.

    Raises:
        PayloadCorrupt: it is another one.
    """
    if os.fstat(descriptor).st_size != size or size > MAX_OBJECT_BYTES:
        raise PayloadCorrupt(f"the object of a payload does not have the size it had, {size:,} bytes")
    found = _hash()
    at = 0
    while data := os.pread(descriptor, _PIECE, at):
        found.update(data)
        at += len(data)
    if found.digest() != digest:
        raise PayloadCorrupt("the object of a payload is not the one that was stored: its digest differs")

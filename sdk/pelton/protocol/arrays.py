"""Arrays of numpy and tables of pyarrow in payloads, for programs that have those libraries."""

from __future__ import annotations

import importlib
import re
import struct
import sys
from typing import Any, Final

import msgspec
from msgspec.msgpack import Ext

from pelton.errors import PayloadCorrupt
from pelton.protocol.extensions import Extension, Refusal

_pack = msgspec.msgpack.Encoder().encode
_read_array = msgspec.msgpack.Decoder(tuple[str, list[int], bytes]).decode
_read_scalar = msgspec.msgpack.Decoder(tuple[str, bytes]).decode

_DTYPE: Final = re.compile(r"[<>|=]?[biufcSUmM][0-9]{1,9}(\[[0-9]{0,9}[A-Za-z]{1,7}(/[0-9]{1,9})?\])?")
"""Numbers, fixed texts and times; never objects or structures."""

_UOFFSET: Final = struct.Struct("<I")
_SOFFSET: Final = struct.Struct("<i")
_VOFFSET: Final = struct.Struct("<H")

ARRAYS: Final = frozenset(
    {Extension.NUMPY_ARRAY, Extension.NUMPY_SCALAR, Extension.ARROW_TABLE, Extension.ARROW_BATCH}
)
"""Extension codes of this module."""

_MAX_DIMENSIONS: Final = 32


def lower_array(value: Any) -> Ext | None:
    """The extension of a numpy array or scalar or a pyarrow table or batch; None for any other value.

    A library is looked at only when this process has imported it already.

    Raises:
        Refusal: an array of objects or structures.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "ndarray"):
        if type(value) is numpy.ndarray:
            return Ext(Extension.NUMPY_ARRAY, _pack((dtype_text(value.dtype), value.shape, value.tobytes())))
        if isinstance(value, numpy.generic):
            return Ext(Extension.NUMPY_SCALAR, _pack((dtype_text(value.dtype), value.tobytes())))
    arrow = sys.modules.get("pyarrow")
    if arrow is not None and hasattr(arrow, "Table"):
        if type(value) is arrow.Table:
            return Ext(Extension.ARROW_TABLE, _write_stream(arrow, value))
        if type(value) is arrow.RecordBatch:
            return Ext(Extension.ARROW_BATCH, _write_stream(arrow, value))
    return None


def array_bytes(value: Any) -> int:
    """How many bytes of data an array, table or batch holds at least; 0 for any other value."""
    size = getattr(value, "nbytes", 0)
    return size if isinstance(size, int) else 0


def raise_array(code: int, data: memoryview) -> Any:
    """The array, scalar, table or batch back.

    Raises:
        PayloadCorrupt: the library is missing here, or the bytes are none of its values.
    """
    if code in (Extension.NUMPY_ARRAY, Extension.NUMPY_SCALAR):
        return _raise_numpy(_library("numpy"), code, data)
    arrow = _library("pyarrow")
    return _read_stream(arrow, code, arrow.py_buffer(bytes(data)))


def _library(name: str) -> Any:
    """One of the two libraries; the name never comes from data."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PayloadCorrupt(f"the payload holds data of {name}, which is not installed here") from error


def dtype_text(dtype: Any) -> str:
    """A dtype as text that says all of it."""
    text = str(dtype.str)
    if _DTYPE.fullmatch(text) is None or dtype.hasobject or dtype.metadata:
        raise Refusal(
            f"has the dtype {dtype}: arrays of numbers, fixed texts and times travel,"
            f" objects and structures do not"
        )
    return text


def _raise_numpy(numpy: Any, code: int, data: memoryview) -> Any:
    """A numpy array, or a scalar."""
    shape: list[int] = []
    if code == Extension.NUMPY_ARRAY:
        text, shape, content = _read_array(data)
    else:
        text, content = _read_scalar(data)
    array = _numpy_array(numpy, text, shape, content)
    # A copy: arrays of callers can be written to, bytes cannot.
    return array.copy() if code == Extension.NUMPY_ARRAY else array[()]


def raise_numpy_buffer(text: Any, shape: Any, content: memoryview) -> Any:
    """A numpy array in this memory, which it keeps.

    Raises:
        PayloadCorrupt: numpy is missing here, or that is no array.
    """
    if type(text) is not str or type(shape) is not list or any(type(length) is not int for length in shape):
        raise PayloadCorrupt("an array without dtype or shape")
    return _numpy_array(_library("numpy"), text, shape, content)


def _numpy_array(numpy: Any, text: str, shape: list[int], content: bytes | memoryview) -> Any:
    if _DTYPE.fullmatch(text) is None:
        raise PayloadCorrupt(f"{text[:64]!r} is no dtype that travels")
    if len(shape) > _MAX_DIMENSIONS or any(length < 0 for length in shape):
        raise PayloadCorrupt(f"an array of shape {shape[:_MAX_DIMENSIONS]}")
    dtype = numpy.dtype(text)
    count = 1
    for length in shape:
        count *= length
    if count * dtype.itemsize != len(content):
        raise PayloadCorrupt(f"an array of {count} items of {dtype.itemsize} bytes in {len(content)} bytes")
    return numpy.ndarray(shape, dtype, buffer=content) if content else numpy.empty(shape, dtype)


def _refuse_compression(ipc: Any, buffer: Any) -> None:
    """Refuses a stream with compressed buffers: we never write one, and a small one may hold gigabytes.

    Raises:
        PayloadCorrupt: a batch is compressed.
    """
    for message in ipc.MessageReader.open_stream(buffer):
        if message.type not in ("record batch", "dictionary"):
            continue
        metadata = message.metadata.to_pybytes()
        # Arrow's format: Message.header is field 2, DictionaryBatch.data 1, RecordBatch.compression 3.
        batch = _table_field(metadata, _follow(metadata, 0), 2)
        if batch and message.type == "dictionary":
            batch = _table_field(metadata, _follow(metadata, batch), 1)
        if not batch or _table_field(metadata, _follow(metadata, batch), 3):
            raise PayloadCorrupt("an Arrow stream with compressed buffers: payloads carry plain ones")


def _follow(data: bytes, at: int) -> int:
    """Where a FlatBuffers offset at this place leads to."""
    offset: int = _UOFFSET.unpack_from(data, at)[0]
    return at + offset


def _table_field(data: bytes, table: int, number: int) -> int:
    """Where a field of a FlatBuffers table lies, 0 when it is absent."""
    vtable = table - _SOFFSET.unpack_from(data, table)[0]
    entry = 4 + 2 * number
    if vtable < 0 or entry >= _VOFFSET.unpack_from(data, vtable)[0]:
        return 0
    offset: int = _VOFFSET.unpack_from(data, vtable + entry)[0]
    return table + offset if offset else 0


def _write_stream(arrow: Any, value: Any) -> bytes:
    """A table or batch as an IPC stream."""
    sink = arrow.BufferOutputStream()
    write_arrow(arrow, sink, value)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def write_arrow(arrow: Any, sink: Any, value: Any) -> None:
    """Writes a table or batch as an IPC stream into a file of arrow, or one of Python."""
    ipc = importlib.import_module("pyarrow.ipc")
    with ipc.new_stream(sink, value.schema) as writer:
        writer.write(value)


def raise_arrow_buffer(code: int, data: memoryview) -> Any:
    """A table or batch in this memory, which it keeps.

    Raises:
        PayloadCorrupt: pyarrow is missing here, or that is no table or batch.
    """
    arrow = _library("pyarrow")
    return _read_stream(arrow, code, arrow.py_buffer(data))


def _read_stream(arrow: Any, code: int, buffer: Any) -> Any:
    """A table or batch; fully validated, since Arrow trusts offsets it reads."""
    ipc = importlib.import_module("pyarrow.ipc")
    try:
        _refuse_compression(ipc, buffer)
        with ipc.open_stream(buffer) as reader:
            table = reader.read_all()
        table.validate(full=True)
        if code == Extension.ARROW_TABLE:
            return table
        batches = table.combine_chunks().to_batches()
        if len(batches) > 1:
            raise PayloadCorrupt("several record batches where one was written")
        return batches[0] if batches else arrow.RecordBatch.from_pylist([], schema=table.schema)
    except (arrow.ArrowException, OSError, ValueError, TypeError, LookupError, struct.error) as error:
        raise PayloadCorrupt(f"an Arrow stream that cannot be read: {error}") from error

"""Arrays of numpy and tables of pyarrow in payloads: they come back, and cost nothing elsewhere."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from msgspec.msgpack import Ext

from pelton.errors import PayloadCorrupt
from pelton.protocol import payload


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="<i4").reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,
        np.array([], dtype="f8"),
        np.zeros((0, 3), dtype="u1"),
        np.array(5, dtype="f4"),
        np.array(["a", "äö"]),
        np.array([b"a", b"bc"]),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(["2026-01-01", "NaT"], dtype="datetime64[ns]"),
        np.array([1, 2], dtype=">i8"),
        np.arange(10)[::2],
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_numpy_arrays_come_back(array: Any) -> None:
    """Shape, dtype with byte order, and data survive, and the copy can be written to."""
    [again] = payload.decode(payload.encode([array]))
    assert type(again) is np.ndarray
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert again.tobytes() == array.tobytes()
    assert again.flags.writeable


@pytest.mark.parametrize(
    "scalar",
    [
        np.float64(1.5),
        np.float32("nan"),
        np.int8(-1),
        np.bool_(True),
        np.str_("ä"),
        np.datetime64("2026-01-01"),
    ],
)
def test_numpy_scalars_come_back(scalar: Any) -> None:
    """A scalar of numpy stays one, also where it is a subclass of float or str."""
    again = payload.decode(payload.encode({"x": scalar}))["x"]
    assert type(again) is type(scalar)
    assert again.tobytes() == scalar.tobytes()


def test_arrow_tables_and_batches_come_back() -> None:
    """Schema with metadata and data survive, with no rows as well."""
    table = pa.table({"a": [1, None, 3], "b": ["x", "y", None]}).replace_schema_metadata({"k": "v"})
    batch = pa.record_batch({"a": [1.5, 2.5]})
    again = payload.decode(payload.encode((table, batch, table.slice(0, 0), batch.slice(0, 0))))
    assert again[0].equals(table, check_metadata=True)
    assert type(again[1]) is pa.RecordBatch
    assert again[1].equals(batch)
    assert again[2].schema == table.schema
    assert (again[2].num_rows, again[3].num_rows) == (0, 0)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_compressed_tables_are_refused_before_they_are_unpacked(codec: str, dictionary: bool) -> None:
    """A few KiB that would become many MiB are PayloadCorrupt, and nothing is made of them first."""
    column = (
        pa.array(["x" * 64 * 2**20]) if not dictionary else pa.array(["x" * 64 * 2**20]).dictionary_encode()
    )
    sink = pa.BufferOutputStream()
    table = pa.table({"a": column})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    stream = sink.getvalue().to_pybytes()
    assert len(stream) < 400_000
    data = msgspec.msgpack.encode(Ext(17, stream))
    del table, column, sink
    before = pa.total_allocated_bytes()
    with pytest.raises(PayloadCorrupt, match="compressed buffers"):
        payload.decode(data)
    assert pa.total_allocated_bytes() - before < 2**20


def test_tables_with_dictionaries_come_back() -> None:
    """Dictionary columns have batches of their own in the stream, and are plain too."""
    table = pa.table({"a": pa.array(["x", "y", "x"]).dictionary_encode()})
    assert payload.decode(payload.encode(table)).equals(table)


def test_data_libraries_are_imported_only_for_their_data() -> None:
    """Plain payloads never import numpy or pyarrow; an extension of theirs does, by a name in the code."""
    array, table = payload.encode(np.zeros(2)), payload.encode(pa.table({"a": [1]}))
    program = f"""
import sys
from pelton.protocol import payload
payload.decode(payload.encode([1, (2,), {{3}}]))
try:
    payload.encode(object())
except TypeError:
    pass
assert not {{"numpy", "pyarrow"}} & sys.modules.keys(), "imported for plain data"
assert payload.decode({array!r}).sum() == 0
assert "pyarrow" not in sys.modules
assert payload.decode({table!r}).num_rows == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_missing_data_library_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of a library that is not installed here is PayloadCorrupt that names it."""
    data = payload.encode(np.zeros(2))
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(PayloadCorrupt, match="data of numpy, which is not installed here"):
        payload.decode(data)

"""Objects of large payloads: the values they had, in pieces, without a second copy in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pelton.errors import PayloadCorrupt, PayloadTooLarge, PeltonError, UnsupportedType
from pelton.protocol import claims, large, payload
from pelton.protocol.claims import Claim, decode_claim, encode_claim, named_in
from pelton.protocol.large import Segments
from pelton.transport.payloads import ObjectStore, encode_arguments, encode_value
from support import wire_strategies as wire


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """A store in a folder."""
    return ObjectStore(tmp_path.as_uri())


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything has segments and parts of its own."""
    monkeypatch.setattr(large, "_LEAF_BYTES", 3)
    monkeypatch.setattr(large, "_PART_ITEMS", 2)
    monkeypatch.setattr(large, "_PART_BYTES", 8)


def written(path: Path, value: Any, *, pickles: bool = False) -> None:
    """The object of a value, whatever its size."""
    with path.open("wb") as file:
        large.write(file, value, payload.value_place, pickles)


def read(path: Path, annotations: Any = None) -> Any:
    """The value of an object, with no look at its digest."""
    claim = Claim("f", bytes(16), 0, bytes(32))
    decode = payload.decoder(annotations, objects=lambda _: os.open(path, os.O_RDONLY))
    return decode(encode_claim(claim))


@pytest.mark.usefixtures("tiny")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(wire.values)
def test_any_value_comes_back(tmp_path: Path, value: Any) -> None:
    """Cut into the smallest pieces there are, with the exact types it had."""
    path = tmp_path / "object"
    written(path, value)
    assert wire.same(read(path, (wire.Point, wire.Colour)), value)


@pytest.mark.usefixtures("tiny")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(wire.values, st.data())
def test_altered_objects_are_corrupt_or_another_value(
    tmp_path: Path, value: Any, data: st.DataObject
) -> None:
    """Bytes that are no object never become anything but an error of ours."""
    path = tmp_path / "object"
    written(path, [value, np.arange(20), pa.table({"a": [1, 2]})])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read(path)
    except PeltonError as error:
        assert isinstance(error, PayloadCorrupt)  # noqa: PT017 - a value is as good


ARRAYS = [
    np.arange(300_000),
    np.arange(600_000).reshape(600, 1000).T,
    np.arange(900_000)[::3],
    np.array(["ä" * 50] * 9000),
    np.array(["2026-11-01", "NaT"] * 50_000, dtype="M8[s]"),
    np.zeros((3, 0, 5)),
    np.array(7.5),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
def test_arrays_lie_in_the_object(store: ObjectStore, array: Any) -> None:
    """Every layout and dtype; what comes back can be written to, and the object stays what it was."""
    value = encode_value(store, "f", [array, "x" * 600_000])
    decode = payload.decoder(None, objects=store.open)
    again = decode(value)[0]
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert np.array_equal(again, array, equal_nan=array.dtype.kind in "fM")
    if again.nbytes > 10_000:
        assert again.flags.writeable
        again[...] = again.flat[1]
        assert np.array_equal(decode(value)[0], array, equal_nan=array.dtype.kind in "fM")


def test_tables_lie_in_the_object(store: ObjectStore) -> None:
    """Tables of several batches, and batches; their buffers are those of the mapping."""
    batch = pa.RecordBatch.from_pydict({"n": list(range(90_000)), "t": ["ä"] * 90_000})
    table = pa.Table.from_batches([batch, batch])
    value = payload.decoder(None, objects=store.open)(encode_value(store, "f", {"t": table, "b": batch}))
    assert value["t"].equals(table)
    assert value["b"].equals(batch)
    before = pa.total_allocated_bytes()
    again = payload.decoder(None, objects=store.open)(encode_value(store, "f", table))
    assert again.nbytes > 2_000_000
    assert pa.total_allocated_bytes() - before < 100_000


def test_small_values_stay_in_the_record(store: ObjectStore) -> None:
    """512 KiB still travel in the record; a byte more is an object."""
    fits = b"x" * (payload.MAX_PAYLOAD_BYTES - 5)
    assert encode_value(store, "f", fits) == payload.encode(fits)
    assert list(store.objects()) == []
    claim = decode_claim(encode_value(store, "f", fits + b"x"))
    (found,) = store.objects()
    assert (found.function, found.id, found.size) == (claim.function, claim.id, claim.size)
    assert list(store.old_drafts(1e12)) == []


class Beside(ObjectStore):
    """Notes on which thread what takes long is done."""

    def aside(self, call: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(call).result()

    def draft(self) -> Path:
        assert threading.current_thread() is not threading.main_thread()
        return super().draft()


def test_writing_is_done_beside_an_event_loop(tmp_path: Path) -> None:
    """All of it, where the store has another thread for that."""
    store = Beside(tmp_path.as_uri())
    value = b"x" * 600_000
    assert payload.decoder(None, objects=store.open)(encode_value(store, "f", value)) == value


def test_refusals_say_where(store: ObjectStore) -> None:
    """As in small payloads; nothing is left behind."""
    bulk = b"x" * 600_000
    deep: list[Any] = []
    for _ in range(101):
        deep = [deep]
    lock = threading.Lock()
    with pytest.raises(UnsupportedType, match=r"arguments\[0\]\['a'\]\[1\] .*lock, which cannot be pickled"):
        encode_arguments(store, "f", ({"a": [bulk, lock]},), {})
    with pytest.raises(UnsupportedType, match="more than 100 containers deep"):
        encode_value(store, "f", [bulk, deep])
    with pytest.raises(UnsupportedType, match=r"value\[1\] is a str with a lone surrogate"):
        encode_value(store, "f", [bulk, "\ud800"])
    with pytest.raises(UnsupportedType, match=r"value\[1\] is a str with a lone surrogate"):
        encode_value(store, "f", [bulk, "\ud800" * 9000])
    assert list(store.objects()) == []
    assert list(store.old_drafts(1e12)) == []


def test_more_than_a_gibibyte_is_refused(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for the whole object, and the message says it."""
    monkeypatch.setattr(large, "MAX_OBJECT_BYTES", 2_000_000)
    with pytest.raises(PayloadTooLarge, match="above the limit of 1 GiB"):
        encode_value(store, "f", [bytes(700_000)] * 3)
    assert list(store.old_drafts(1e12)) == []


def test_pickled_parts_need_a_signature(tmp_path: Path) -> None:
    """An object with pickles opens only as what a signed payload names."""
    written(tmp_path / "object", [Fraction(1, 3)], pickles=True)
    with pytest.raises(PayloadCorrupt, match="nothing says who signed them"):
        read(tmp_path / "object")


def test_claims_are_found_in_records() -> None:
    """By their mark, wherever they stand; none is missed."""
    ids = [os.urandom(16) for _ in range(50)]
    record = os.urandom(20).join(encode_claim(Claim("f", each, 1, os.urandom(32))) for each in ids)
    assert set(named_in(record)) >= set(ids)
    assert list(named_in(b"nothing")) == []
    assert claims.may_claim(encode_claim(Claim("f" * 63, ids[0], 1, bytes(32))))


def test_truncated_objects_are_corrupt(tmp_path: Path) -> None:
    """Too short for anything, and without a trailer."""
    path = tmp_path / "object"
    for content in (b"", b"PLO1", b"PLO1" * 9):
        path.write_bytes(content)
        with pytest.raises(PayloadCorrupt):
            read(path)


def test_segments_outside_the_object_are_corrupt(tmp_path: Path) -> None:
    """A root that lies beyond the end, or before the start."""
    path = tmp_path / "object"
    for start, length in ((10**9, 1), (0, 10**9), (2**63, 2**63)):
        trailer = start.to_bytes(8, "big") + length.to_bytes(8, "big")
        path.write_bytes(b"PLO1" + bytes(20) + trailer + b"PLO1")
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with pytest.raises(PayloadCorrupt, match="outside of it"):
                Segments(descriptor).root()
        finally:
            os.close(descriptor)


MEASURED = """
import os, sys, threading, time
from pathlib import Path
from pelton.protocol import payload
from pelton.transport.payloads import ObjectStore, encode_arguments

def held():
    with open("/proc/self/status") as status:
        words = dict(line.split(":", 1) for line in status)
    return int(words["RssAnon"].split()[0]) / 1024

kind, size, store = sys.argv[1], int(sys.argv[2]) << 20, ObjectStore(Path(sys.argv[3]).as_uri())
if kind == "bytes":
    value = bytes(size)
elif kind == "list":
    value = [{"text": "x" * 1000} for _ in range(size // 1000)]
else:
    import numpy
    value = numpy.ones(size, "u1")
peak, over, look = [held()], threading.Event(), threading.Lock()

def watch():
    while not over.wait(0.002):
        with look:
            peak.append(held())

base = held()
thread = threading.Thread(target=watch)
thread.start()
data = encode_arguments(store, "f", (value,), {"more": {"deep": value if kind != "list" else 1}})
kept = max(peak) - base
del value
with look:
    # What was seen before the value was dropped is not counted after it.
    peak.clear()
    base = held()
    peak.append(base)
decoded = payload.decoder(None, objects=store.open)(data)
over.set()
thread.join()
print(round(kept), round(max(peak) - base))
"""


@pytest.mark.parametrize(
    ("kind", "written_mib", "read_mib"), [("bytes", 24, 300), ("list", 40, 400), ("array", 24, 24)]
)
def test_nothing_is_held_twice(tmp_path: Path, kind: str, written_mib: int, read_mib: int) -> None:
    """Writing 128 or 256 MiB takes next to no memory, reading only that of the value."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, kind, "128", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    kept, taken = map(int, done.stdout.split())
    assert kept < written_mib
    assert taken < read_mib

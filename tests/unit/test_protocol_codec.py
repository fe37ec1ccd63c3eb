"""The Avro contracts: fingerprints, versions of yesterday and tomorrow, and odd values."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

import pelton_schemas
from pelton.core.call import DeadLetter, Failure, Invocation, Origin, Result, ResultKind, Token
from pelton.core.spec import FunctionKind, FunctionSpec, LogRecord
from pelton.errors import RecordError
from pelton.protocol import avro, codec
from pelton.protocol.avro import Subject
from pelton.protocol.invocation import INVOCATION, INVOCATION_PREFIX, invocation_values
from pelton.protocol.records import MAX_QUOTED_BYTES
from pelton.protocol.result import RESULT, RESULT_PREFIX, result_values
from pelton.protocol.topics import MAX_RECORD_BYTES
from pelton.protocol.varint import decode_long, encode_long
from support.golden_cases import GOLDEN

ID = bytes(range(16))
CALL = Invocation(ID, "f", b"arguments", submitted_ms=1_790_000_000_123)
GOLDEN_BYTES: dict[str, str] = json.loads(GOLDEN.read_text())
WHEN = 1_790_000_000_000
FULL_CALL = Invocation(ID, "f", b"a", 3, 5, WHEN, ID, (ID, ID), "o", "i", "l", Origin.HTTP, "00-1", WHEN)
FAILURE = Failure("builtins.ValueError", "no", "Traceback", "UNKNOWN", True, 2)
TOKEN = Token(2, WHEN, 1, 3, 70)
OUTCOME = Result(ID, TOKEN, ResultKind.OUTCOME, 4, (b"v",), b"c", FAILURE, 1, 2, "w", "")
HEADERS = (("id", None), ("x", b""))
LETTER = DeadLetter(ID, "f", FAILURE, "pelton.fn.f.invocations", 1, 2, 3, (FAILURE,), b"k", b"v", HEADERS)


def test_prefixes_are_marker_and_fingerprint() -> None:
    """The prefixes written into the code are those of the schemas, and no two contracts share one."""
    assert INVOCATION.prefix == INVOCATION_PREFIX
    assert RESULT.prefix == RESULT_PREFIX
    prefixes = {subject.prefix for subject in codec.SUBJECTS.values()}
    assert len(prefixes) == len(pelton_schemas.SUBJECTS) == len(codec.SUBJECTS)
    assert all(prefix.startswith(b"\xc3\x01") and len(prefix) == 10 for prefix in prefixes)


def test_fingerprints_are_crc_64_avro_little_endian() -> None:
    """The known answer of the Avro specification: `"int"` is 7275d51a3f395c8f, stored lowest byte first."""
    prefix = Subject("number", {1: '"int"'}).prefix
    assert prefix == b"\xc3\x01" + bytes.fromhex("7275d51a3f395c8f")[::-1]


def test_unknown_contracts_are_named() -> None:
    """Asking for a subject that is not there lists those that are."""
    with pytest.raises(KeyError, match="invocation, result"):
        pelton_schemas.versions("nothing")


def test_relays_look_at_ten_bytes() -> None:
    """A relay tells an invocation by its prefix alone, and anything else is none."""
    data = codec.encode_invocation(CALL)
    assert codec.is_invocation(data)
    assert codec.is_invocation(data[: codec.PREFIX_BYTES])
    for other in (None, b"", data[:9], b"\xc3\x01" + bytes(8), codec.encode_result(OUTCOME)):
        assert not codec.is_invocation(other)


DECODERS: list[Any] = [
    codec.decode_invocation,
    codec.decode_result,
    codec.decode_dead_letter,
    codec.decode_function_spec,
    codec.decode_container_spec,
    codec.decode_instance_status,
    codec.decode_log,
]


@pytest.mark.parametrize("decode", DECODERS)
def test_foreign_values_are_refused_by_name(decode: Any) -> None:
    """Null, text, a short value and an unknown fingerprint are RecordErrors; the last names itself."""
    with pytest.raises(RecordError, match="null instead of"):
        decode(None)
    for other in (b"", b"hello, world", b"\xc3\x01\x00"):
        with pytest.raises(RecordError, match="do not start with C3 01"):
            decode(other)
    with pytest.raises(RecordError, match="fingerprint 0123456789abcdef: upgrade readers before writers"):
        decode(b"\xc3\x01" + bytes.fromhex("0123456789abcdef") + bytes(40))


def test_contracts_are_not_taken_for_each_other() -> None:
    """A result is no invocation, and the other way round."""
    with pytest.raises(RecordError, match="unknown here"):
        codec.decode_invocation(codec.encode_result(OUTCOME))
    with pytest.raises(RecordError, match="unknown here"):
        codec.decode_result(codec.encode_invocation(CALL))


@pytest.mark.parametrize("data", [codec.encode_invocation(FULL_CALL), codec.encode_invocation(CALL)])
def test_bytes_after_an_invocation_are_refused(data: bytes) -> None:
    """A body ends where its schema says."""
    with pytest.raises(RecordError):
        codec.decode_invocation(data + b"\x00")


def test_bytes_after_a_result_are_refused() -> None:
    """A body ends where its schema says."""
    with pytest.raises(RecordError, match="1 bytes after its end"):
        codec.decode_result(codec.encode_result(OUTCOME) + b"\x00")


@pytest.mark.parametrize("name", pelton_schemas.SUBJECTS)
def test_bytes_after_any_record_are_refused(name: str) -> None:
    """Every contract ends where its schema says, also those that fastavro reads."""
    data = next(bytes.fromhex(text) for case, text in GOLDEN_BYTES.items() if case.startswith(f"{name}/"))
    codec.SUBJECTS[name].decode(data)
    with pytest.raises(RecordError, match="after its end"):
        codec.SUBJECTS[name].decode(data + b"\x00")


def test_numbers_of_more_than_64_bits_are_refused() -> None:
    """The tenth group of a number has one bit left, and there is no eleventh."""
    assert decode_long(b"\xff" * 9 + b"\x01", 0) == (-(2**63), 10)
    for over in (b"\xff" * 9 + b"\x02", b"\x80" * 9 + b"\x7f", b"\x80" * 10 + b"\x00"):
        with pytest.raises(RecordError, match="more than 64 bits"):
            decode_long(over, 0)


@pytest.mark.parametrize("kind", [len(ResultKind), 63, 64])
def test_kinds_of_tomorrow_are_refused(kind: int) -> None:
    """A result of a kind the schema does not have is a RecordError, by both ways to read."""
    head = RESULT_PREFIX + ID + bytes((2, 2, 0, 0, 2))
    data = head + encode_long(kind) + bytes(8)
    for decode in (codec.decode_result, RESULT.decode):
        with pytest.raises(RecordError, match=f"symbol {kind} of an enum"):
            decode(data)


def test_values_read_are_frozen_and_complete() -> None:
    """What the hot codecs put together is the same frozen value that a constructor makes."""
    for value, again in (
        (CALL, codec.decode_invocation(codec.encode_invocation(CALL))),
        (OUTCOME, codec.decode_result(codec.encode_result(OUTCOME))),
    ):
        assert again == value
        assert hash(again) == hash(value)
        assert repr(again) == repr(value)
        assert dataclasses.replace(again) == value
        with pytest.raises(dataclasses.FrozenInstanceError):
            again.call_id = b""  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    [
        {"call_id": b"short"},
        {"parent": b"short"},
        {"ancestry": (b"short",)},
        {"ancestry": (ID,) * 65},
        {"function": "\ud800"},
        {"submitted_ms": 2**63},
        {"deadline_ms": -(2**63) - 1},
        {"arguments": None},
        {"arguments": "text"},
    ],
)
def test_invocations_that_do_not_fit_are_not_written(change: dict[str, Any]) -> None:
    """A value out of its range is a RecordError at the writer."""
    with pytest.raises(RecordError):
        codec.encode_invocation(dataclasses.replace(FULL_CALL, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"call_id": b"short"},
        {"token": Token(1, 2**63, 0, 0, 1)},
        {"token": Token(1, 1, -1, 0, 1)},
        {"token": Token(1, 1, 2000, 0, 1)},
        {"first": 2**64},
        {"items": ("text",)},
        {"checkpoint": 5},
    ],
)
def test_results_that_do_not_fit_are_not_written(change: dict[str, Any]) -> None:
    """A value out of its range is a RecordError at the writer."""
    with pytest.raises(RecordError):
        codec.encode_result(dataclasses.replace(OUTCOME, **change))


@pytest.mark.parametrize("change", [{"pid": "x"}, {"pid": 2**63}, {"call_id": b"short"}])
def test_other_records_that_do_not_fit_are_not_written(change: dict[str, Any]) -> None:
    """What fastavro refuses to write is a RecordError."""
    log = LogRecord(1, "f", "c", "i", 1, None, 0, "log", "text")
    with pytest.raises(RecordError):
        codec.encode_log(dataclasses.replace(log, **change))


def test_texts_of_people_may_contain_anything() -> None:
    """A lone surrogate in a message or a log line is escaped: no outcome is lost for its text."""
    odd = "a\ud800b"
    failure = Failure(odd, odd, odd)
    again = codec.decode_result(codec.encode_result(dataclasses.replace(OUTCOME, failure=failure))).failure
    assert again == Failure("a\\ud800b", "a\\ud800b", "a\\ud800b")
    letter = codec.decode_dead_letter(codec.encode_dead_letter(dataclasses.replace(LETTER, reason=failure)))
    assert letter.reason == again
    log = LogRecord(1, "f", "c", "i", 1, ID, 1, "log", odd, odd, odd, ((odd, odd),))
    assert codec.decode_log(codec.encode_log(log)).fields == (("a\\ud800b", "a\\ud800b"),)


def test_dead_letters_fit_their_topic() -> None:
    """A record of 10 MB with huge headers becomes a dead letter that says it was cut."""
    huge = dataclasses.replace(
        LETTER, value=b"v" * 10_000_000, key=b"k" * 1_000_000, headers=(("h", b"1"), ("i", b"x" * 1_000_000))
    )
    data = codec.encode_dead_letter(huge)
    assert len(data) < MAX_RECORD_BYTES
    again = codec.decode_dead_letter(data)
    assert again.truncated
    assert again.value == b"v" * MAX_QUOTED_BYTES
    assert again.headers == (("h", b"1"),)
    assert not codec.decode_dead_letter(codec.encode_dead_letter(LETTER)).truncated


def test_a_kind_of_tomorrow_is_a_record_error() -> None:
    """A function of a kind this version does not know is refused by name."""
    spec = FunctionSpec("f", 1, "c", FunctionKind.SYNC, (), "m", "q", "b")
    data = codec.encode_function_spec(spec).replace(b"\x08sync", b"\x08sink")
    with pytest.raises(RecordError, match="'sink'"):
        codec.decode_function_spec(data)


@pytest.mark.parametrize(
    ("place", "bad", "says"),
    [
        (-10, 4, "branch 2 of a union of 2"),
        (-10, 1, "branch -1 of a union of 2"),
        (-5, 4, "branch 2 of a union of 2"),
        (-2, 8, "symbol 4 of an enum of 4"),
        (-2, 1, "symbol -1 of an enum of 4"),
    ],
)
def test_branches_and_symbols_are_checked(place: int, bad: int, says: str) -> None:
    """A union branch or enum index out of range is refused, negative ones too, by both ways to read."""
    data = bytearray(codec.encode_invocation(CALL))
    data[place] = bad
    with pytest.raises(RecordError, match=says):
        codec.decode_invocation(bytes(data))
    with pytest.raises(RecordError, match=says):
        INVOCATION.decode(bytes(data))


def _changed(subject: str, change: Any) -> str:
    """A schema of tomorrow: today's, changed."""
    schema = json.loads(pelton_schemas.versions(subject)[1])
    change(schema)
    return json.dumps(schema)


def _add_field(schema: dict[str, Any]) -> None:
    """A new field with a default, in front of all others, and a symbol more in the first enum."""
    new = {"name": "priority", "type": {"type": "map", "values": "double"}, "default": {}}
    schema["fields"].insert(0, new)


def _drop_field(schema: dict[str, Any]) -> None:
    """One field with a default is gone."""
    gone = {"invocation": "trace_parent", "result": "worker"}[schema["name"].lower()]
    schema["fields"] = [field for field in schema["fields"] if field["name"] != gone]


HOT: list[Any] = [
    (
        INVOCATION,
        FULL_CALL,
        invocation_values,
        codec.encode_invocation,
        codec.decode_invocation,
        "trace_parent",
    ),
    (RESULT, OUTCOME, result_values, codec.encode_result, codec.decode_result, "worker"),
]


@pytest.mark.parametrize("change", [_add_field, _drop_field])
@pytest.mark.parametrize("contract", HOT, ids=["invocation", "result"])
def test_todays_reader_reads_tomorrows_records(
    contract: Any, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward: records of a later version become today's values: new fields go, others have defaults."""
    subject, value, to_values, encode, decode, dropped = contract
    schema = _changed(subject.name, change)
    data = Subject(subject.name, {2: schema}).encode({**to_values(value), "priority": {"high": 1.0}})
    with pytest.raises(RecordError, match="unknown here"):
        decode(data)
    monkeypatch.setattr(subject, "_writers", dict(subject._writers))
    assert subject.learn(schema) == data[:10]
    expected = value
    if change is _drop_field:
        expected = dataclasses.replace(value, **{dropped: None if dropped == "trace_parent" else ""})
    assert decode(data) == expected
    assert decode(encode(value)) == value
    with pytest.raises(RecordError):
        decode(data[:-1])


@pytest.mark.parametrize("change", [_add_field, _drop_field])
def test_tomorrows_reader_reads_todays_records(change: Any) -> None:
    """Backward: a reader that writes version 2 still reads version 1, new fields having their defaults."""
    for subject, data in (
        ("invocation", codec.encode_invocation(FULL_CALL)),
        ("result", codec.encode_result(OUTCOME)),
    ):
        tomorrow = Subject(subject, {1: pelton_schemas.versions(subject)[1], 2: _changed(subject, change)})
        assert tomorrow.prefix != codec.SUBJECTS[subject].prefix
        assert tomorrow.knows(data)
        values = tomorrow.decode(data)
        assert values["call_id"] == ID
        assert values.get("priority", {}) == {}


def test_a_schema_that_does_not_resolve_is_a_record_error() -> None:
    """A version that lacks a field without default cannot become today's value, and says so."""

    def break_it(schema: dict[str, Any]) -> None:
        schema["fields"] = [field for field in schema["fields"] if field["name"] != "function"]

    broken = _changed("invocation", break_it)
    both = Subject("invocation", {1: broken, 2: pelton_schemas.versions("invocation")[1]})
    values = invocation_values(CALL)
    del values["function"]
    with pytest.raises(RecordError, match="cannot be read"):
        both.decode(Subject("invocation", {1: broken}).encode(values))


def test_the_check_covers_every_avro_type() -> None:
    """Contracts may use any type of Avro: the walk over untrusted bytes ends where fastavro ends."""
    schema = {
        "type": "record",
        "name": "All",
        "fields": [
            {"name": name, "type": kind}
            for name, kind in (
                ("a", "null"),
                ("b", "boolean"),
                ("c", "int"),
                ("d", "float"),
                ("e", "double"),
                ("f", {"type": "map", "values": ["null", "string"]}),
                ("g", {"type": "array", "items": "All"}),
                ("h", {"type": "fixed", "name": "Two", "size": 2}),
                ("i", "Two"),
            )
        ],
    }
    subject = Subject("all", {1: json.dumps(schema)})
    inner: dict[str, Any] = {
        "a": None,
        "b": True,
        "c": -5,
        "d": 0.5,
        "e": 0.1,
        "f": {},
        "g": [],
        "h": b"xy",
        "i": b"zz",
    }
    value: dict[str, Any] = {**inner, "f": {"k": None, "ä": "ö"}, "g": [inner, inner]}
    data = subject.encode(value)
    assert subject.decode(data) == value
    for end in range(len(data)):
        with pytest.raises(RecordError):
            subject.decode(data[:end])


def test_blocks_with_sizes_are_read() -> None:
    """Writers in other languages give arrays in several blocks, with sizes: both ways to read agree."""
    head = RESULT_PREFIX + ID + bytes((2, 2, 0, 0, 2)) + bytes((2, 0))
    blocks = b"\x03\x08\x02a\x02b" + b"\x02\x02c" + b"\x00"  # two with a size, one without, the end
    data = head + blocks + bytes(6)
    assert codec.decode_result(data).items == (b"a", b"b", b"c")
    assert RESULT.decode(data)["items"] == [b"a", b"b", b"c"]
    ids = (
        INVOCATION_PREFIX
        + ID
        + b"\x02f\x00\x00"
        + bytes(4)
        + b"\x01\x20"
        + ID
        + b"\x02"
        + ID
        + b"\x00"
        + bytes(5)
    )
    assert codec.decode_invocation(ids).ancestry == (ID, ID)
    assert INVOCATION.decode(ids)["ancestry"] == [ID, ID]


def test_the_hot_contracts_need_no_avro_library() -> None:
    """Writing and reading calls and results of this version imports no fastavro: executors start faster."""
    program = """
import sys
from pelton.core.call import *
from pelton.protocol import codec
call = Invocation(bytes(16), "f", b"x")
assert codec.decode_invocation(codec.encode_invocation(call)) == call
assert codec.is_invocation(codec.encode_invocation(call))
result = Result(bytes(16), Token(1, 1, 0, 0, 1), ResultKind.OUTCOME, 0, (b"x",))
assert codec.decode_result(codec.encode_result(result)) == result
assert "fastavro" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_marker_alone_is_not_enough() -> None:
    """Ten bytes are needed before anything is looked up."""
    with pytest.raises(RecordError, match="do not start"):
        avro.check_marker("thing", avro.MARKER + bytes(7))
    assert avro.check_marker("thing", avro.MARKER + bytes(8))

"""The values whose bytes are golden: once written by a released version, they must be read for ever.

Run as a program it adds the bytes of new cases to the golden file; it never changes those that are there:
`python -m support.golden_cases` with `tests` on the path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy

import pelton_schemas
from pelton.core.call import (
    Cancellation,
    DeadLetter,
    Failure,
    InputHeaders,
    Invocation,
    Origin,
    Result,
    ResultKind,
    Timer,
    Token,
    mint_call_id,
)
from pelton.core.limits import Lease, LimitRequest
from pelton.core.retry import RetrySpec
from pelton.core.spec import (
    ContainerSpec,
    FunctionKind,
    FunctionSpec,
    ImageSpec,
    InstanceStatus,
    LagSpec,
    LogRecord,
    ParameterSpec,
    ProbeSpec,
    SecretRef,
)
from pelton.protocol import codec, headers, payload
from pelton.protocol.avro import Subject
from pelton.protocol.frames import FrameReader, encode_write
from pelton.protocol.history import append_history, read_history
from pelton.protocol.record import Record
from pelton.protocol.signing import Key, Keyring

GOLDEN = Path(__file__).parent.parent / "compatibility" / "golden.json"
"""Bytes by case, hexadecimal."""

NOW = 1_790_000_000_123
ID = mint_call_id(NOW, 5, bytes(range(8)))
PARENT = mint_call_id(NOW - 1000, 6, bytes(range(8, 16)))
FAILURE = Failure("builtins.ValueError", "ünfug", "Traceback\n  line", "UNKNOWN", True, 2)
TOKEN = Token(2, NOW, 1, 3, 4711)
RING = Keyring([Key("0123456789abcdef", bytes(range(32)))], "pelton")

FUNCTION_SPEC = FunctionSpec(
    "f",
    7,
    "c",
    FunctionKind.ASYNC_GENERATOR,
    (
        ParameterSpec("x", "POSITIONAL_OR_KEYWORD", True),
        ParameterSpec("kw", "VAR_KEYWORD", False),
    ),
    "worker",
    "outer.f",
    "ab" * 32,
    12,
    5,
    60_000,
    "fail",
    "What it does.",
    ("a", "b"),
    NOW,
    "cd" * 32,
)


CONTAINER_SPEC = ContainerSpec(
    "c",
    7,
    ("f", "g"),
    "ab" * 32,
    ImageSpec("3.11", (("pip_install", ("numpy", "pyarrow")), ("workdir", ("/x",))), "ef" * 32),
    500,
    2**30,
    "",
    (("A", "1"), ("B", "")),
    (SecretRef("s", "TOKEN"),),
    1,
    3,
    8,
    ("python", "consumer.py"),
    NOW,
    "cd" * 32,
)


class Case(NamedTuple):
    """A value, and the way to bytes and back."""

    value: Any
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def _encode_function_spec_v1(spec: FunctionSpec) -> bytes:
    """As versions wrote it that knew neither code nor ordering."""
    values = {
        **asdict(spec),
        "kind": str(spec.kind),
        "parameters": [asdict(parameter) for parameter in spec.parameters],
    }
    return Subject("function_spec", {1: pelton_schemas.versions("function_spec")[1]}).encode(values)


def _encode_function_spec_v2(spec: FunctionSpec) -> bytes:
    """As versions wrote it that knew no retries."""
    values = {
        **asdict(spec),
        "kind": str(spec.kind),
        "parameters": [asdict(parameter) for parameter in spec.parameters],
    }
    return Subject("function_spec", {2: pelton_schemas.versions("function_spec")[2]}).encode(values)


def _encode_container_spec_v1(spec: ContainerSpec) -> bytes:
    """As versions wrote it that knew neither ports nor probes."""
    values = {
        **asdict(spec),
        "image": {
            "python": spec.image.python,
            "steps": [{"kind": kind, "arguments": list(words)} for kind, words in spec.image.steps],
            "digest": spec.image.digest,
        },
        "env": [{"name": name, "value": value} for name, value in spec.env],
    }
    return Subject("container_spec", {1: pelton_schemas.versions("container_spec")[1]}).encode(values)


def _header_bytes(encoded: list[tuple[str, bytes]]) -> bytes:
    return json.dumps([[name, value.hex()] for name, value in encoded]).encode()


def _headers_from(data: bytes) -> list[tuple[str, bytes | None]]:
    return [(name, bytes.fromhex(value)) for name, value in json.loads(data)]


def _input(value: InputHeaders) -> Case:
    return Case(
        value,
        lambda routing: _header_bytes(headers.encode_input(routing)),
        lambda data: headers.decode_input(_headers_from(data)),
    )


def _payload(value: Any) -> Case:
    return Case(value, payload.encode, payload.decode)


def _records() -> dict[str, Case]:
    """Avro bodies."""
    call = (codec.encode_invocation, codec.decode_invocation)
    result = (codec.encode_result, codec.decode_result)
    letter = (codec.encode_dead_letter, codec.decode_dead_letter)
    status = (codec.encode_instance_status, codec.decode_instance_status)
    log = (codec.encode_log, codec.decode_log)
    cancellation = (codec.encode_cancellation, codec.decode_cancellation)
    return {
        "invocation/plain": Case(Invocation(ID, "classify-ticket", b"payload", submitted_ms=NOW), *call),
        "invocation/full": Case(
            Invocation(
                ID, "f", bytes(200), 3, 5, NOW, PARENT, (PARENT,), "o", "i", "ü", Origin.HTTP, "00-1", NOW
            ),
            *call,
        ),
        "result/outcome": Case(
            Result(ID, TOKEN, ResultKind.OUTCOME, 0, (b"x" * 200,), None, None, NOW, 1, "tickets-1"), *result
        ),
        "result/failure": Case(
            Result(ID, TOKEN, ResultKind.OUTCOME, 70, (), None, FAILURE, NOW, 2, "tickets-1"), *result
        ),
        "result/chunks": Case(
            Result(ID, TOKEN, ResultKind.CHUNK, 100, (b"", b"a", b"b" * 100), b"state"), *result
        ),
        "result/started": Case(Result(ID, TOKEN, ResultKind.STARTED, worker="tickets-1"), *result),
        "result/moved": Case(Result(ID, TOKEN, ResultKind.MOVED, moved_to="pelton.fn.f.retries/3"), *result),
        "dead_letter/full": Case(
            DeadLetter(
                ID,
                "f",
                FAILURE,
                "pelton.fn.f.invocations",
                1,
                2,
                NOW,
                (FAILURE,),
                b"k",
                b"v",
                (("id", None),),
            ),
            *letter,
        ),
        "dead_letter/unreadable": Case(
            DeadLetter(None, "f", FAILURE, "t", 0, 0, NOW, truncated=True), *letter
        ),
        "function_spec/full": Case(FUNCTION_SPEC, _encode_function_spec_v1, codec.decode_function_spec),
        "function_spec/code": Case(
            replace(FUNCTION_SPEC, module="__main__", code="ef" * 32, ordering="key"),
            _encode_function_spec_v2,
            codec.decode_function_spec,
        ),
        "function_spec/retry": Case(
            replace(
                FUNCTION_SPEC,
                retry=RetrySpec(250, 1.5, 90_000, 0.25, ("ABORTED", "NOT_FOUND")),
                max_waiting=9,
            ),
            codec.encode_function_spec,
            codec.decode_function_spec,
        ),
        "timer/full": Case(
            Timer(NOW, "pelton.fn.f.retries", 3, b"body", ID, (("id", ID), ("fn", b"f"))),
            codec.encode_timer,
            codec.decode_timer,
        ),
        "limit_request/full": Case(
            LimitRequest("w1", "concurrency/f/a", 7, 1_000, 2, 5, 8, NOW, 0),
            codec.encode_limit_request,
            codec.decode_limit_request,
        ),
        "lease/full": Case(
            Lease("rate/f", "w1", 7, 1_001, 0, 0, 10, NOW, 100_000, NOW * 1000, (NOW, NOW + 100)),
            codec.encode_lease,
            codec.decode_lease,
        ),
        "container_spec/full": Case(CONTAINER_SPEC, _encode_container_spec_v1, codec.decode_container_spec),
        "container_spec/probes": Case(
            replace(
                CONTAINER_SPEC,
                port=8080,
                readiness=ProbeSpec("http", 0, "/healthz", (), 1_000, 500, 2),
                liveness=ProbeSpec("exec", 0, "", ("true", "x"), 5_000, 900, 4),
                lag=LagSpec("orders", "readers", 100),
                fixed_instances=2,
            ),
            codec.encode_container_spec,
            codec.decode_container_spec,
        ),
        "instance_status/full": Case(
            InstanceStatus("c", "i1", "ready", "host", 123, 7, ("f",), 8, 3, (124, 125), NOW, NOW + 5, "why"),
            *status,
        ),
        "log_record/full": Case(
            LogRecord(NOW, "f", "c", "i1", 124, ID, 2, "log", "text", "INFO", "root", (("k", "v"),), 3), *log
        ),
        "log_record/program": Case(LogRecord(NOW, "", "c", "i1", 124, None, 0, "stdout", "line"), *log),
        "cancellation/full": Case(Cancellation(ID, NOW, "its stream was left"), *cancellation),
    }


def _payloads() -> dict[str, Case]:
    """Payloads: each extension whose bytes do not depend on the version of another library."""
    return {
        "payload/arguments": _payload((("x" * 40, 1, None), {"k": True})),
        "payload/plain": _payload(
            [None, True, 0, -1, 2**64 - 1, -(2**63), 1.5, -0.0, "ü", b"\x00", {"z": 1, "a": []}]
        ),
        "payload/numbers": _payload([2**64, -(2**63) - 1, math.inf, 1 + 2j, Decimal("-1.10E+30")]),
        "payload/containers": _payload(
            [(1, ("x",)), {3, 1, 2}, frozenset({"a"}), {1: "a", (1, 2): "b"}, bytearray(b"x")]
        ),
        "payload/times": _payload(
            [
                datetime(2026, 3, 29, 2, 30, fold=1),
                datetime(2026, 1, 1, 12, 0, 0, 1, UTC),
                datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30), "IST")),
                datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")),
                date(2024, 2, 29),
                time(23, 59, 59, 999_999, UTC),
                timedelta(days=-1, microseconds=3),
            ]
        ),
        "payload/uuid": _payload(UUID(int=2**127 + 5)),
        "payload/numpy": Case(
            [[[0, 1], [2, 3]], 1.5],
            lambda lists: payload.encode([numpy.array(lists[0], dtype="<i4"), numpy.float32(lists[1])]),
            lambda data: [found.tolist() for found in payload.decode(data)],
        ),
        "payload/record": _payload(Record("Ticket", {"text": "x", "tags": (1,)}, "worker")),
    }


def cases() -> dict[str, Case]:
    """All cases by name; a name never changes its value."""
    history = append_history(append_history(b"", FAILURE), FAILURE)
    untraced = Failure(FAILURE.type, FAILURE.message, "", FAILURE.code, True, 2)
    return {
        **_records(),
        **_payloads(),
        "headers/plain": _input(InputHeaders(ID, "classify-ticket")),
        "headers/nested": _input(InputHeaders(ID, "f", ancestry=bytes(range(32)))),
        "headers/full": _input(InputHeaders(ID, "f", 3, 2, 1, NOW, NOW + 1, history)),
        "headers/result": Case(
            (ID, TOKEN),
            lambda pair: _header_bytes(headers.encode_result(*pair)),
            lambda data: headers.decode_result(_headers_from(data)),
        ),
        "history/two": Case((untraced, untraced), lambda _: history, read_history),
        "seal/function-spec": Case(
            b"body",
            lambda body: RING.seal("function-spec", body),
            lambda data: RING.open("function-spec", data),
        ),
        "signature/bundle": Case(
            None,
            lambda _: RING.sign_digest("bundle", bytes(range(32))).encode(),
            lambda data: RING.verify_digest("bundle", bytes(range(32)), data.decode()),
        ),
        "frames/run": Case(
            [[1, 7, ID, 1, 0, 0, b"body"], [4]], encode_write, lambda data: list(FrameReader().feed(data))
        ),
    }


def _write() -> None:
    """Adds what is missing in the golden file."""
    known: dict[str, str] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    added = {name: case.encode(case.value).hex() for name, case in cases().items() if name not in known}
    GOLDEN.write_text(json.dumps({**known, **added}, indent=1) + "\n")
    print(f"added {len(added)}: {', '.join(added)}")


if __name__ == "__main__":
    _write()

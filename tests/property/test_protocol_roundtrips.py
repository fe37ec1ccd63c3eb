"""Whatever is written can be read: round trips of every kind of record, header, payload and signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelton.core.call import Failure, InputHeaders, Invocation, Result, Token
from pelton.protocol import codec, headers, payload
from pelton.protocol.history import append_history, read_history
from pelton.protocol.invocation import INVOCATION, invocation_values
from pelton.protocol.result import RESULT, result_values
from pelton.protocol.signing import Keyring, new_key
from pelton.protocol.varint import decode_long, encode_long
from support import wire_strategies as wire

RECORDS: list[tuple[str, Any, Callable[[Any], bytes], Callable[[bytes], Any]]] = [
    ("invocation", wire.invocations, codec.encode_invocation, codec.decode_invocation),
    ("result", wire.results, codec.encode_result, codec.decode_result),
    ("dead_letter", wire.dead_letters, codec.encode_dead_letter, codec.decode_dead_letter),
    ("function_spec", wire.function_specs, codec.encode_function_spec, codec.decode_function_spec),
    ("container_spec", wire.container_specs, codec.encode_container_spec, codec.decode_container_spec),
    ("instance_status", wire.instance_statuses, codec.encode_instance_status, codec.decode_instance_status),
    ("log_record", wire.logs, codec.encode_log, codec.decode_log),
    ("cancellation", wire.cancellations, codec.encode_cancellation, codec.decode_cancellation),
    ("timer", wire.timers, codec.encode_timer, codec.decode_timer),
    ("limit_request", wire.limit_requests, codec.encode_limit_request, codec.decode_limit_request),
    ("lease", wire.leases, codec.encode_lease, codec.decode_lease),
]


@pytest.mark.parametrize(("name", "values", "encode", "decode"), RECORDS, ids=[row[0] for row in RECORDS])
def test_records_go_there_and_back(
    name: str, values: Any, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]
) -> None:
    """Every record reads back equal, and starts with the prefix of its contract."""

    @settings(max_examples=60, deadline=None)
    @given(values)
    def check(value: Any) -> None:
        data = encode(value)
        assert data.startswith(codec.SUBJECTS[name].prefix)
        again = decode(data)
        assert type(again) is type(value)
        assert again == value

    check()


@settings(deadline=None)
@given(wire.invocations | wire.plain_invocations)
def test_invocation_codec_equals_fastavro(invocation: Invocation) -> None:
    """The codec of invocations writes byte for byte what fastavro writes, and reads what fastavro reads."""
    data = codec.encode_invocation(invocation)
    assert data == INVOCATION.encode(invocation_values(invocation))
    assert INVOCATION.decode(data) == invocation_values(invocation)


@settings(deadline=None)
@given(wire.results)
def test_result_codec_equals_fastavro(result: Result) -> None:
    """The codec of results writes byte for byte what fastavro writes, and reads what fastavro reads."""
    data = codec.encode_result(result)
    assert data == RESULT.encode(result_values(result))
    assert RESULT.decode(data) == result_values(result)


@given(st.integers(-(2**63), 2**63 - 1) | st.integers(2**34, 2**42) | st.integers(-3000, 3000))
def test_numbers_go_there_and_back(number: int) -> None:
    """Each 64-bit number reads back, at any position, and ends where it says."""
    data = encode_long(number)
    assert decode_long(b"\xff" + data + b"\x00" * 8, 1) == (number, 1 + len(data))
    assert len(data) <= 10


@given(wire.input_headers)
def test_input_headers_go_there_and_back(routing: InputHeaders) -> None:
    """Routing data reads back equal, in at most eight headers."""
    encoded = headers.encode_input(routing)
    assert len(encoded) <= 8
    assert headers.decode_input(encoded) == routing


@given(wire.call_ids, wire.tokens)
def test_result_headers_go_there_and_back(call_id: bytes, token: Token) -> None:
    """Id and token read back equal."""
    encoded = headers.encode_result(call_id, token)
    assert headers.decode_result(encoded) == (call_id, token)
    assert headers.decode_result_id(encoded) == call_id


@given(st.lists(wire.failures, min_size=1, max_size=30))
def test_history_stays_bounded_and_ends_with_the_latest(failures: list[Failure]) -> None:
    """However many failures: at most 2 KiB, the latest one last, and it travels in a header."""
    history = b""
    for failure in failures:
        history = append_history(history, failure)
        assert len(history) <= 2048
    assert read_history(history)[-1].attempt == failures[-1].attempt
    routing = InputHeaders(bytes(16), "f", history=history)
    assert headers.decode_input(headers.encode_input(routing)) == routing


@settings(max_examples=300, deadline=None)
@given(wire.values)
def test_payloads_keep_values_types_and_order(value: Any) -> None:
    """Every value comes back equal, of the same types throughout, dicts in their order."""
    data = payload.encode(value)
    again = payload.decode(data, wire.Point)
    assert wire.same(again, value)
    assert payload.encode(again) == data


@settings(deadline=None)
@given(
    st.lists(wire.values, max_size=3).map(tuple),
    st.dictionaries(wire.texts, wire.values, max_size=3),
)
def test_arguments_go_there_and_back(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Arguments are the payload of the pair, whichever way they are written."""
    data = payload.encode_arguments(args, kwargs)
    assert data == payload.encode((args, kwargs))
    again = payload.decode_arguments(data, {"point": wire.Point})
    assert wire.same(again, (args, kwargs))


@given(st.text(max_size=20).filter(str.isprintable), st.binary(max_size=200))
def test_sealed_bodies_open(purpose: str, body: bytes) -> None:
    """What was sealed opens for the same purpose, also after a rotation, and not after two."""
    ring = Keyring([new_key()], "ns")
    sealed = ring.seal(purpose, body)
    assert ring.open(purpose, sealed) == body
    assert ring.rotated().open(purpose, sealed) == body

"""Hostile bytes: every decoder answers with its own error, whatever it is given, and never with another."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelton.errors import PayloadCorrupt, RecordError, SignatureError
from pelton.protocol import codec, headers, payload
from pelton.protocol.frames import FrameReader, encode_write
from pelton.protocol.history import read_history
from pelton.protocol.signing import Keyring, new_key
from support import wire_strategies as wire

DECODERS: dict[str, Callable[[bytes | None], Any]] = {
    "invocation": codec.decode_invocation,
    "result": codec.decode_result,
    "dead_letter": codec.decode_dead_letter,
    "function_spec": codec.decode_function_spec,
    "container_spec": codec.decode_container_spec,
    "instance_status": codec.decode_instance_status,
    "log_record": codec.decode_log,
    "cancellation": codec.decode_cancellation,
    "timer": codec.decode_timer,
    "limit_request": codec.decode_limit_request,
    "lease": codec.decode_lease,
}
SAMPLES: dict[str, tuple[Any, Callable[[Any], bytes]]] = {
    "invocation": (wire.invocations, codec.encode_invocation),
    "result": (wire.results, codec.encode_result),
    "dead_letter": (wire.dead_letters, codec.encode_dead_letter),
    "function_spec": (wire.function_specs, codec.encode_function_spec),
    "container_spec": (wire.container_specs, codec.encode_container_spec),
    "instance_status": (wire.instance_statuses, codec.encode_instance_status),
    "log_record": (wire.logs, codec.encode_log),
    "cancellation": (wire.cancellations, codec.encode_cancellation),
    "timer": (wire.timers, codec.encode_timer),
    "limit_request": (wire.limit_requests, codec.encode_limit_request),
    "lease": (wire.leases, codec.encode_lease),
}
RING = Keyring([new_key()], "ns")

varints = st.sampled_from(
    [
        b"\xff" * 9 + b"\x01",  # the lowest number
        b"\xfe" + b"\xff" * 8 + b"\x01",  # the highest number
        b"\xff" * 9 + b"\x02",  # more than 64 bits
        b"\xff" * 12,  # never ends
        b"\x80" * 11 + b"\x00",  # over-long
        b"\x01",  # -1
        b"\xfe\xff\xff\xff\x0f",  # 2^31 - 1
        b"\x80\x80\x80\x80\x80\x00",  # six empty groups
    ]
)
hostile_bodies = st.lists(st.binary(max_size=20) | varints | st.just(bytes(16)), max_size=12).map(b"".join)


def _damaged(draw: Callable[[Any], Any], data: bytes) -> bytes:
    """The bytes with one thing wrong with them."""
    at: int = draw(st.integers(0, len(data)))
    noise: bytes = draw(varints | st.binary(min_size=1, max_size=3))
    match draw(st.integers(0, 3)):
        case 0:
            return data[:at]
        case 1:
            return data + noise
        case 2:
            return data[:at] + noise + data[at:]
        case _:
            return data[:at] + noise + data[at + 1 :]


@pytest.mark.parametrize("name", DECODERS)
def test_any_body_is_read_or_refused(name: str) -> None:
    """Bytes after the right prefix are a record or a RecordError; nothing else comes out."""
    prefix = codec.SUBJECTS[name].prefix

    @settings(max_examples=150, deadline=None)
    @given(hostile_bodies)
    def check(body: bytes) -> None:
        with contextlib.suppress(RecordError):
            DECODERS[name](prefix + body)

    check()


@pytest.mark.parametrize("name", DECODERS)
def test_damaged_records_are_read_or_refused(name: str) -> None:
    """A good record with one thing wrong is a record or a RecordError; a truncated one is always refused."""
    values, encode = SAMPLES[name]

    @settings(max_examples=100, deadline=None)
    @given(st.data(), values)
    def check(data: st.DataObject, value: Any) -> None:
        good = encode(value)
        bad = _damaged(data.draw, good)
        try:
            again = DECODERS[name](bad)
        except RecordError:
            return
        assert len(bad) >= len(good) or again != value
        assert type(again) is type(value)

    check()


@pytest.mark.parametrize("name", DECODERS)
def test_every_cut_is_refused(name: str) -> None:
    """No prefix of a record is a record."""
    values, encode = SAMPLES[name]

    @settings(max_examples=5, deadline=None)
    @given(values)
    def check(value: Any) -> None:
        good = encode(value)
        for end in range(len(good)):
            with pytest.raises(RecordError):
                DECODERS[name](good[:end])

    check()


@settings(deadline=None)
@given(st.data(), wire.invocations | wire.plain_invocations)
def test_invocation_codec_refuses_what_fastavro_refuses(data: st.DataObject, value: Any) -> None:
    """On damaged bytes the codec of invocations never reads what the checked schema does not say."""
    bad = _damaged(data.draw, codec.encode_invocation(value))
    try:
        again = codec.decode_invocation(bad)
    except RecordError:
        return
    values = codec.SUBJECTS["invocation"].decode(bad)
    assert (again.call_id, again.function, again.arguments) == (
        values["call_id"],
        values["function"],
        values["arguments"],
    )
    assert (again.submitted_ms, again.ancestry) == (values["submitted_ms"], tuple(values["ancestry"]))


@settings(deadline=None)
@given(st.data(), wire.results)
def test_result_codec_refuses_what_fastavro_refuses(data: st.DataObject, value: Any) -> None:
    """On damaged bytes the codec of results never reads what the checked schema does not say."""
    bad = _damaged(data.draw, codec.encode_result(value))
    try:
        again = codec.decode_result(bad)
    except RecordError:
        return
    values = codec.SUBJECTS["result"].decode(bad)
    assert again.token._asdict() == values["token"]
    assert (again.first, again.items, again.worker) == (
        values["first"],
        tuple(values["items"]),
        values["worker"],
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["id", "fn", "at", "mr", "du", "dl", "hi", "an", "tk", "x"]),
            st.none() | st.binary(max_size=30) | st.just(bytes(16)),
        ),
        max_size=10,
    )
    | st.none()
)
def test_any_headers_are_read_or_refused(found: list[tuple[str, bytes | None]] | None) -> None:
    """Headers are routing data or a RecordError; telling foreign results apart never raises."""
    for decode in (headers.decode_input, headers.decode_result):
        with contextlib.suppress(RecordError):
            decode(found)
    call_id = headers.decode_result_id(found)
    assert call_id is None or len(call_id) == 16


@given(st.binary(max_size=100))
def test_any_history_is_read_or_refused(history: bytes) -> None:
    """A history is failures or a RecordError."""
    with contextlib.suppress(RecordError):
        read_history(history)


extensions = st.builds(
    lambda code, body: b"\xc8" + len(body).to_bytes(2, "big") + code.to_bytes(1, "big") + body,
    st.integers(0, 22) | st.integers(0, 255),
    st.binary(max_size=40) | st.lists(st.binary(max_size=6), max_size=4).map(b"\x94".join),
)
hostile_payloads = st.one_of(
    st.binary(max_size=60),
    st.lists(extensions | st.binary(max_size=8), max_size=6).map(b"".join),
    extensions,
    st.lists(extensions, min_size=1, max_size=5).map(
        lambda items: (
            b"\xc8"
            + (len(b"".join(items)) + 1).to_bytes(2, "big")
            + b"\x01"
            + bytes([0x90 | len(items)])
            + b"".join(items)
        )
    ),
)


@settings(max_examples=500, deadline=None)
@given(hostile_payloads)
def test_any_payload_is_read_or_refused(data: bytes) -> None:
    """Bytes are a value or PayloadCorrupt, with annotations and without."""
    for decode in (payload.decode, payload.decoder(wire.Point), payload.decode_arguments):
        with contextlib.suppress(PayloadCorrupt):
            decode(data)


@settings(max_examples=200, deadline=None)
@given(st.data(), wire.values)
def test_damaged_payloads_are_read_or_refused(data: st.DataObject, value: Any) -> None:
    """A good payload with one thing wrong is a value or PayloadCorrupt."""
    bad = _damaged(data.draw, payload.encode(value))
    with contextlib.suppress(PayloadCorrupt):
        payload.decode(bad, wire.Point)


@given(st.data(), st.binary(max_size=50))
def test_anything_not_sealed_is_a_signature_error(data: st.DataObject, body: bytes) -> None:
    """Damaged seals, seals of others and noise are SignatureErrors, and the body never comes out."""
    sealed = RING.seal("spec", body)
    bad = data.draw(st.one_of(st.none(), st.binary(max_size=120), st.just(_damaged(data.draw, sealed))))
    if bad != sealed:
        with pytest.raises(SignatureError):
            RING.open("spec", bad)


@given(st.text(max_size=100) | st.none(), st.binary(max_size=40))
def test_any_detached_signature_is_a_signature_error(signature: str | None, digest: bytes) -> None:
    """Text that nobody signed is a SignatureError."""
    with pytest.raises(SignatureError):
        RING.verify_digest("bundle", digest, signature)


@given(
    st.lists(st.binary(max_size=30) | st.binary(max_size=9).map(lambda b: encode_write([[1, b]])), max_size=5)
)
def test_any_frames_are_records_or_a_value_error(writes: list[bytes]) -> None:
    """A peer can send anything: records come out, or ValueError."""
    reader = FrameReader()
    with contextlib.suppress(ValueError):
        for data in writes:
            for record in reader.feed(data):
                assert type(record[0]) is int


@pytest.mark.parametrize("name", DECODERS)
def test_huge_counts_allocate_nothing(name: str) -> None:
    """Lengths and counts of 2^31 and more in a few bytes are refused without making room for them."""
    prefix = codec.SUBJECTS[name].prefix
    huge = b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"
    bodies = [bytes(skip) + huge * 3 for skip in (0, 1, 2, 3, 16, 17, 18, 20, 24, 26, 30)]
    DECODERS[name](SAMPLES[name][1](_smallest(name)))
    tracemalloc.start()
    try:
        for body in bodies:
            with pytest.raises(RecordError):
                DECODERS[name](prefix + body)
        for opcode in (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"):
            with pytest.raises(PayloadCorrupt):
                payload.decode(opcode + b"\xff\xff\xff\xff\x01")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def _smallest(name: str) -> Any:
    """A value of the contract, to load its schemas before memory is measured."""
    from pelton.core import call, limits, spec

    failure = call.Failure("E", "m")
    smallest: dict[str, Any] = {
        "invocation": call.Invocation(bytes(16), "f", b"", version=1),
        "result": call.Result(bytes(16), call.Token(1, 0, 0, 0, 1), call.ResultKind.CHUNK),
        "dead_letter": call.DeadLetter(None, "f", failure, "t", 0, 0, 0),
        "function_spec": spec.FunctionSpec("f", 1, "c", spec.FunctionKind.SYNC, (), "m", "q", "b"),
        "container_spec": spec.ContainerSpec("c", 1, (), "b"),
        "instance_status": spec.InstanceStatus("c", "i", "ready", "h", 1, 1),
        "log_record": spec.LogRecord(0, "f", "c", "i", 1, None, 0, "log", "t"),
        "cancellation": call.Cancellation(bytes(16), 0),
        "timer": call.Timer(0, "t", 0, b""),
        "limit_request": limits.LimitRequest("i"),
        "lease": limits.Lease("k", "i", 0),
    }
    return smallest[name]

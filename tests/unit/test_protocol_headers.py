"""Headers of records: what is left out, what is refused, and the history that travels in one of them."""

from __future__ import annotations

import re

import pytest

from pelton.core.call import Failure, InputHeaders, Token, mint_call_id
from pelton.errors import RecordError
from pelton.protocol.headers import (
    HEADERS,
    NO_CALL,
    decode_input,
    decode_result,
    decode_result_id,
    decode_settled,
    encode_input,
    encode_result,
    encode_settled,
)
from pelton.protocol.history import MAX_HISTORY_BYTES, append_history, read_history

ID = mint_call_id(1_790_000_000_000, 3, b"12345678")
GOOD: list[tuple[str, bytes | None]] = [("id", ID), ("fn", b"f")]
HISTORY = append_history(b"", Failure("builtins.ValueError", "no", attempt=1))
FULL = InputHeaders(ID, "f", 3, 2, 1, 1_790_000_000_001, 1_790_000_000_002, HISTORY, ID + ID[::-1])


def test_a_plain_call_has_two_headers() -> None:
    """What has its default is absent: the usual record carries the id and the function alone."""
    assert encode_input(InputHeaders(ID, "f")) == GOOD
    assert decode_input(GOOD) == InputHeaders(ID, "f")


def test_all_headers_go_there_and_back() -> None:
    """Each field survives, and there are never more than eight headers."""
    encoded = encode_input(FULL)
    assert [name for name, _ in encoded] == ["id", "fn", "at", "mr", "du", "dl", "hi", "an"]
    assert decode_input(encoded) == FULL
    assert sum("input" in header.records for header in HEADERS) <= 8


def test_numbers_are_big_endian() -> None:
    """The bytes are those of the table in the wire document."""
    encoded = dict(encode_input(FULL))
    assert encoded["at"] == b"\x00\x00\x00\x03"
    assert encoded["mr"] == b"\x00\x00\x00\x02\x00\x00\x00\x01"
    assert encoded["du"] == (1_790_000_000_001).to_bytes(8, "big")


def test_a_record_that_may_have_run_says_so_with_zero_deliveries() -> None:
    """Zero deliveries is not the same as never handed over: the header is there."""
    encoded = encode_input(InputHeaders(ID, "f", may_have_run=0))
    assert decode_input(encoded).may_have_run == 0


def test_order_and_unknown_headers_do_not_matter() -> None:
    """Headers of later versions and of tracing tools are ignored, in any order, even null or twice."""
    headers = [("zz", bytes(16)), ("x", None), ("fn", b"f"), ("x", b""), ("traceparent", b"00-1"), ("id", ID)]
    assert decode_input(headers) == InputHeaders(ID, "f")


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        (None, "no header `id`"),
        ([], "no header `id`"),
        ([("fn", b"f")], "no header `id`"),
        ([("id", ID)], "no header `fn`"),
        ([("id", ID), ("fn", b"")], "no header `fn`"),
        ([("id", None), ("fn", b"f")], "`id` is null"),
        ([("id", ID), ("fn", None)], "`fn` is null"),
        ([("id", ID[:15]), ("fn", b"f")], "`id` has 15 bytes"),
        ([("id", ID + b"x"), ("fn", b"f")], "`id` has 17 bytes"),
        ([("id", ID), ("fn", b"\xff")], "`fn` is no UTF-8"),
        ([*GOOD, ("id", ID)], "`id` is there twice"),
        ([*GOOD, ("at", b"\x00\x00\x00\x02"), ("at", b"\x00\x00\x00\x02")], "`at` is there twice"),
        ([*GOOD, ("at", b"\x02")], "`at` has 1 bytes, not 4"),
        ([*GOOD, ("at", bytes(4))], "attempt 0"),
        ([*GOOD, ("at", None)], "`at` is null"),
        ([*GOOD, ("mr", bytes(4))], "`mr` has 4 bytes, not 8"),
        ([*GOOD, ("du", bytes(4))], "`du` has 4 bytes, not 8"),
        ([*GOOD, ("du", b"\xff" * 8)], "`du` is a negative time"),
        ([*GOOD, ("dl", b"\xff" * 8)], "`dl` is a negative time"),
        ([*GOOD, ("hi", b"\xc1")], "history that cannot be read"),
        ([*GOOD, ("hi", b"\x91\x01")], "history that cannot be read"),
        ([*GOOD, ("hi", bytes(MAX_HISTORY_BYTES + 1))], "over the limit of 2048"),
        ([*GOOD, ("an", bytes(15))], "`an` has 15 bytes"),
        ([*GOOD, ("an", bytes(16 * 65))], "`an` has 1040 bytes: it is at most 64 call ids"),
        ([*GOOD, ("an", None)], "`an` is null"),
    ],
)
def test_odd_input_headers_are_refused(headers: list[tuple[str, bytes | None]] | None, says: str) -> None:
    """Each way to be wrong is a RecordError that names the header."""
    with pytest.raises(RecordError, match=re.escape(says)):
        decode_input(headers)


@pytest.mark.parametrize(
    "headers",
    [
        InputHeaders(b"short", "f"),
        InputHeaders(ID, "f\ud800"),
        InputHeaders(ID, "f", attempt=0),
        InputHeaders(ID, "f", attempt=2**32),
        InputHeaders(ID, "f", may_have_run=-1),
        InputHeaders(ID, "f", may_have_run=0, used=2**32),
        InputHeaders(ID, "f", due_ms=2**63),
        InputHeaders(ID, "f", history=bytes(MAX_HISTORY_BYTES + 1)),
        InputHeaders(ID, "f", ancestry=ID[:-1]),
        InputHeaders(ID, "f", ancestry=ID * 65),
    ],
)
def test_headers_that_do_not_fit_are_not_written(headers: InputHeaders) -> None:
    """A value that does not fit its header is a RecordError at the writer, not at some reader."""
    with pytest.raises(RecordError):
        encode_input(headers)


def test_result_headers_go_there_and_back() -> None:
    """Id and token survive; the token takes 25 bytes."""
    token = Token(2, 1_790_000_000_000, 1, 3, 2**40)
    encoded = encode_result(ID, token)
    assert [name for name, _ in encoded] == ["id", "tk"]
    assert len(encoded[1][1]) == 25
    assert decode_result(encoded) == (ID, token)
    assert decode_result_id(encoded) == ID


@pytest.mark.parametrize("headers", [None, [], [("tk", b"")], [("id", None)], [("id", b"x")]])
def test_records_without_an_id_are_foreign(headers: list[tuple[str, bytes | None]] | None) -> None:
    """Dropping foreign records never raises: no id is None."""
    assert decode_result_id(headers) is None
    with pytest.raises(RecordError):
        decode_result(headers)


@pytest.mark.parametrize("packed", [None, b"", bytes(24), bytes(26), b"\x00\x00\x00\x01" + b"\xff" * 21])
def test_odd_tokens_are_refused(packed: bytes | None) -> None:
    """A token of another length, or with negative parts, is a RecordError."""
    with pytest.raises(RecordError):
        decode_result([("id", ID), ("tk", packed)])


def test_tokens_that_do_not_fit_are_not_written() -> None:
    """An attempt of more than 32 bits or a short id is a RecordError at the writer."""
    with pytest.raises(RecordError):
        encode_result(ID, Token(2**32, 0, 0, 0, 0))
    with pytest.raises(RecordError):
        encode_result(b"short", Token(1, 0, 0, 0, 0))


def test_history_keeps_what_it_can() -> None:
    """A failure comes back without its traceback, everything else as it was."""
    failure = Failure("m.E", "message", "a long traceback", "UNAVAILABLE", True, 4)
    assert read_history(append_history(b"", failure)) == (
        Failure("m.E", "message", "", "UNAVAILABLE", True, 4),
    )
    assert read_history(b"") == ()


def test_history_drops_the_oldest_in_the_middle() -> None:
    """Over the limit the first failure and the latest ones stay, in order, within 2 KiB."""
    history = b""
    for attempt in range(1, 101):
        history = append_history(
            history, Failure("builtins.ValueError", f"{attempt} " + "x" * 500, attempt=attempt)
        )
        assert len(history) <= MAX_HISTORY_BYTES
    attempts = [failure.attempt for failure in read_history(history)]
    assert attempts[0] == 1
    assert attempts[-1] == 100
    assert attempts[1:] == list(range(attempts[1], 101))
    assert len(attempts) > 4


def test_history_takes_the_longest_and_oddest_failure() -> None:
    """Four-byte characters and lone surrogates fit as well: a failure never cannot be recorded."""
    odd = Failure("🦆" * 500, "🦆" * 5000 + "\ud800", code="🦆" * 100, attempt=2**40)
    history = append_history(append_history(HISTORY, odd), odd)
    assert [failure.attempt for failure in read_history(history)] == [1, 2**40]
    assert len(history) <= MAX_HISTORY_BYTES


def test_what_became_of_a_dead_letter_comes_back() -> None:
    """And nothing else is taken for it."""
    assert decode_settled(encode_settled(ID, 7)) == (ID, 7)
    assert decode_settled(encode_settled(NO_CALL, 2**40)) == (NO_CALL, 2**40)
    for other in (None, [], [("id", ID)], [("st", None)], [("st", ID)], [("st", ID * 2)]):
        assert decode_settled(other) is None

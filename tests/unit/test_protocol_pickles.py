"""Payloads with pickled parts: what makes them, who may open them, and every way to be refused."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pelton.core.call import Invocation, Result, ResultKind, Token
from pelton.core.decisions import Start
from pelton.errors import PayloadCorrupt, PayloadTooLarge, SignatureError, UnsupportedType
from pelton.protocol import payload, pickles
from pelton.protocol.codec import encode_invocation
from pelton.protocol.pickles import ARGUMENTS, RESULT, check, content, is_pickled, sign, wrap
from pelton.protocol.signing import Key, Keyring
from pelton_platform.coordinator.pickles import Pickles
from support.engine_desk import call_id

RING = Keyring([Key("0123456789abcdef", bytes(range(32)))], "pelton")
OTHER_KEY = Keyring([Key("fedcba9876543210", bytes(range(32)))], "pelton")
ELSEWHERE = Keyring([Key("0123456789abcdef", bytes(range(32)))], "staging")
ID, OTHER = call_id(1), call_id(2)
open_payload = payload.decoder(None, pickles=True)


def signed(
    value: Any, ring: Keyring = RING, function: str = "f", call: bytes = ID, way: str = RESULT
) -> bytes:
    """The payload of a value, signed."""
    return sign(ring, function, call, way, payload.encode(value, pickles=True))


@pytest.mark.parametrize(
    "value",
    [Fraction(1, 3), {"a": [Fraction(2), (1, {Fraction(5)})]}, range(5), Path("x"), len, slice(1, 2)],
    ids=repr,
)
def test_what_is_no_plain_data_travels_signed(value: Any) -> None:
    """Alone or deep inside of plain data, which stays what it is."""
    unsigned = payload.encode(value, pickles=True)
    assert is_pickled(unsigned)
    data = sign(RING, "f", ID, RESULT, unsigned)
    assert is_pickled(data)
    check(RING, "f", ID, RESULT, data)
    assert open_payload(data) == value


def test_a_function_and_an_instance_of_a_local_class_travel() -> None:
    """cloudpickle takes them along by value."""

    class Local:
        def __init__(self) -> None:
            self.x = 4

    args, kwargs = open_payload(
        sign(
            RING,
            "f",
            ID,
            ARGUMENTS,
            payload.encode_arguments((lambda x: x + 1,), {"y": Local()}, pickles=True),
        )
    )
    assert args[0](2) == 3
    assert kwargs["y"].x == 4


@pytest.mark.parametrize("value", [None, 1, "PLS1", b"PLS1", [1, {"a": (2,)}], {1, 2}])
def test_plain_data_is_never_pickled(value: Any) -> None:
    """It has the bytes it always had, and is read as ever."""
    data = payload.encode(value, pickles=True)
    assert data == payload.encode(value)
    assert not is_pickled(data)
    assert open_payload(data) == value


def test_a_large_pickle_shows_where_its_code_is() -> None:
    """Each length of an extension has its code in another place."""
    for size in (1, 200, 70_000, 300_000):
        data = signed([Fraction(1), b"x" * size])
        assert is_pickled(data)
        assert pickles.MARK in data
        assert open_payload(data)[1] == b"x" * size
    assert not is_pickled(b"")
    assert not is_pickled(b"\xc7")


def test_what_cannot_be_pickled_is_refused_with_its_place() -> None:
    """And so is what would be too large; without leave to pickle everything else is, as before."""
    import threading

    with pytest.raises(
        UnsupportedType, match=r"value\['a'\]\[1\] is a _thread.lock, which cannot be pickled"
    ):
        payload.encode({"a": [1, threading.Lock()]}, pickles=True)
    with pytest.raises(PayloadTooLarge):
        payload.encode(Fraction(1, 2 ** (8 * 600_000)), pickles=True)
    with pytest.raises(UnsupportedType, match="does not travel"):
        payload.encode(Fraction(1))


class Hostile:
    """A pickle of it is noticed when it is loaded."""

    ran = 0

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return _ran, ()


def _ran() -> None:
    Hostile.ran += 1


HOSTILE = payload.encode(Hostile(), pickles=True)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(HOSTILE, id="unsigned"),
        pytest.param(signed(Hostile(), OTHER_KEY), id="other key"),
        pytest.param(signed(Hostile(), ELSEWHERE), id="other namespace"),
        pytest.param(signed(Hostile(), function="g"), id="other function"),
        pytest.param(signed(Hostile(), call=OTHER), id="other call"),
        pytest.param(signed(Hostile(), way=ARGUMENTS), id="other direction"),
        pytest.param(signed(Hostile())[:-1] + b"?", id="altered"),
        pytest.param(wrap(b""), id="empty"),
        pytest.param(wrap(b"PLS1"), id="cut"),
    ],
)
def test_pickles_whose_signature_does_not_hold_are_refused(data: bytes) -> None:
    """None of them runs."""
    Hostile.ran = 0
    with pytest.raises(SignatureError):
        check(RING, "f", ID, RESULT, data)
    assert Hostile.ran == 0


def test_a_pickle_is_opened_only_where_signatures_were_checked() -> None:
    """Not by a plain reader, not unsigned, and not when it lies bare among plain data."""
    Hostile.ran = 0
    bare = content(signed(Hostile()))
    nested = payload.encode([1])[:1] + HOSTILE
    for read, data in (
        (payload.decode, signed(Hostile())),
        (payload.decode, HOSTILE),
        (payload.decode, bare),
        (payload.decoder(int), signed(Hostile())),
        (open_payload, HOSTILE),
        (open_payload, bare),
        (open_payload, nested),
        (open_payload, wrap(pickle.dumps(Hostile()))),
    ):
        with pytest.raises(PayloadCorrupt):
            read(data)
    assert Hostile.ran == 0
    open_payload(signed(Hostile()))
    assert Hostile.ran == 1


def start(arguments: bytes, call: bytes = ID, function: str = "f") -> Start:
    """An attempt with these arguments."""
    body = encode_invocation(Invocation(call, function, arguments))
    return Start(1, False, call, 1, 1, Token(1, 1, 0, 0, 1), body, 0)


def test_a_coordinator_refuses_arguments_that_nobody_signed_for_this_call() -> None:
    """Before any executor sees them; plain ones, and those that are signed, pass."""
    guard = Pickles(RING, "f")
    arguments = payload.encode_arguments((Fraction(1),), {}, pickles=True)
    assert guard.refuse(start(sign(RING, "f", ID, ARGUMENTS, arguments))) == ""
    assert guard.refuse(start(payload.encode_arguments(("PLS1",), {}))) == ""
    for bad in (
        sign(RING, "f", OTHER, ARGUMENTS, arguments),
        sign(RING, "f", ID, RESULT, arguments),
        sign(OTHER_KEY, "f", ID, ARGUMENTS, arguments),
        wrap(b"PLS1"),
    ):
        assert guard.refuse(start(bad)).startswith("arguments: a cloudpickle/f/")
    assert b"PLS1" in start(sign(RING, "f", ID, ARGUMENTS, arguments)).value


def test_a_coordinator_signs_what_its_executors_pickled() -> None:
    """And leaves plain items as they are."""
    plain, pickled = payload.encode(1), payload.encode(Fraction(1), pickles=True)
    result = Result(ID, Token(1, 1, 0, 0, 1), ResultKind.CHUNK, 0, (plain, pickled))
    made = Pickles(RING, "f").signed(result)
    assert made.items[0] == plain
    check(RING, "f", ID, RESULT, made.items[1])
    assert open_payload(made.items[1]) == Fraction(1)

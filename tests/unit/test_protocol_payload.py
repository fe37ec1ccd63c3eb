"""Payloads: exact types back, classes by annotation, and errors that say where the trouble is."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from msgspec.msgpack import Ext

from pelton.errors import PayloadCorrupt, PayloadTooLarge, UnsupportedType
from pelton.protocol import payload
from pelton.protocol.payload import MAX_DEPTH, MAX_PAYLOAD_BYTES


class Colour(enum.Enum):
    RED = 1
    GREEN = "g"


@dataclasses.dataclass(frozen=True, slots=True)
class Customer:
    name: str
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Ticket:
    text: str
    customer: Customer | None = None
    parts: dict[str, list[Ticket]] = dataclasses.field(default_factory=dict)
    words: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        self.words = len(self.text.split())
        self.shouted = self.text.upper()


VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63),
    -(2**63) - 1,
    2**5000,
    -(2**5000),
    0.0,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    5e-324,
    "",
    "äöü🦆\x00",
    b"",
    b"\x00\xff",
    bytearray(b"x"),
    [],
    (),
    set(),
    frozenset(),
    {},
    [()],
    ([],),
    {1, "1", (1, frozenset({2}))},
    frozenset({1.5, None}),
    {1: 2, "1": 3, (1, 2): 4, None: 5, b"x": 6, 2.5: 7},
    {True: "yes", 2: "two"},
    {"z": 1, "a": 2, "m": 3},
    datetime(2026, 3, 29, 2, 30, fold=1),
    datetime(2026, 1, 1, 12, 0, 0, 1, UTC),
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30), "IST")),
    datetime(2026, 1, 1, tzinfo=timezone(-timedelta(hours=3, microseconds=7))),
    datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime.min,
    datetime.max,
    date(2024, 2, 29),
    time(23, 59, 59, 999_999, UTC, fold=1),
    time(1, tzinfo=ZoneInfo("Asia/Tokyo")),
    timedelta.min,
    timedelta.max,
    timedelta(microseconds=-1),
    Decimal("1.10"),
    Decimal("-0"),
    Decimal("1E+999999"),
    Decimal("NaN"),
    Decimal("-sNaN123"),
    Decimal("Infinity"),
    UUID(int=0),
    UUID(int=2**128 - 1),
    complex(1, -0.0),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_come_back_as_they_were(value: Any) -> None:
    """Each value comes back with its exact type, sign, zone, fold, digits and order, also inside others."""
    for again in (
        payload.decode(payload.encode(value)),
        payload.decode(payload.encode([value]))[0],
        payload.decode(payload.encode({"x": (value,)}))["x"][0],
    ):
        assert type(again) is type(value)
        if isinstance(value, (set, frozenset)):  # equal sets may be shown in different orders
            assert sorted(map(repr, again)) == sorted(map(repr, value))
        else:
            assert repr(again) == repr(value)
        if isinstance(value, dict):
            assert [type(key) for key in again] == [type(key) for key in value]
            assert list(again) == list(value)


def test_zones_come_back_as_zones() -> None:
    """A fixed offset stays a fixed offset with its name, a zone stays a zone."""
    named, keyed = payload.decode(
        payload.encode(
            [
                datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "X")),
                datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")),
            ]
        )
    )
    assert type(named.tzinfo) is timezone
    assert named.tzname() == "X"
    assert keyed.tzinfo is ZoneInfo("Europe/Berlin")
    assert keyed.utcoffset() == timedelta(hours=2)


def test_equal_sets_give_equal_bytes() -> None:
    """The order a set happens to have in one process does not show in its bytes."""
    words = [f"word{number}" for number in range(50)]
    forwards = set(words)
    backwards: set[str] = set()
    backwards.update(reversed(words))
    assert payload.encode(forwards) == payload.encode(backwards)


class _OddZone(tzinfo):
    """A zone of neither kind that travels."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, when: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, when: datetime | None) -> str:
        return "odd"


class _Pair(NamedTuple):
    left: int


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: None,
        len,
        int,
        math,
        iter([]),
        range(3),
        ...,
        NotImplemented,
        memoryview(b"x"),
        ValueError("x"),
        collections.OrderedDict(a=1),
        collections.defaultdict(int),
        collections.Counter("a"),
        _Pair(1),
        type("Text", (str,), {})("x"),
        type("Number", (int,), {})(1),
        datetime(2026, 1, 1, tzinfo=_OddZone()),
        "\ud800",
        np.array([object()]),
        np.zeros(2, dtype=[("a", "i4")]),
        np.ma.masked_array([1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused_where_they_are(value: Any) -> None:
    """What would come back as something else does not travel; the message names type and place."""
    with pytest.raises(UnsupportedType, match=r"^value\[1\]\['x'\]\[0\] ") as caught:
        payload.encode([1, {"w": 1, "x": (value,)}])
    assert isinstance(caught.value, TypeError)
    with pytest.raises(UnsupportedType, match=r"^arguments\[0\]\['x'\] "):
        payload.encode_arguments(({"x": value},), {})
    with pytest.raises(UnsupportedType, match=r"^arguments\['key'\]\[0\] "):
        payload.encode_arguments((), {"key": [value]})


def test_refusals_inside_of_records_sets_and_keys_name_the_place() -> None:
    """Fields, set items and dict keys are places as well."""
    with pytest.raises(UnsupportedType, match=r"^value\.customer\.name "):
        payload.encode(Ticket("a", Customer(object())))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedType, match=r"^value\{<object>\} "):
        payload.encode({object()})
    with pytest.raises(UnsupportedType, match=r"^value\[<object>\] "):
        payload.encode({object(): 1})
    with pytest.raises(UnsupportedType, match=r"^value\['.ud800'\] "):
        payload.encode({"\ud800": 1})
    with pytest.raises(UnsupportedType, match=r"^the result\[0\] "):
        payload.encode([object()], "the result")


def test_cycles_and_depth_are_refused() -> None:
    """A value that contains itself, or is 101 containers deep, is an error and never a RecursionError."""
    ring: list[Any] = []
    ring.append(ring)
    mapping: dict[str, Any] = {}
    mapping["x"] = (mapping,)
    ticket = Ticket("a")
    ticket.parts["x"] = [ticket]
    for cyclic in (ring, mapping, ticket):
        with pytest.raises(UnsupportedType, match="more than 100 containers deep, or contains itself"):
            payload.encode(cyclic)


@pytest.mark.parametrize(
    "wrap", [lambda x: [x], lambda x: (x,), lambda x: {"k": x}, lambda x: {1: x}, Customer]
)
def test_a_hundred_containers_travel_and_one_more_does_not(wrap: Any) -> None:
    """The limit is the same for every kind of container, and for both directions."""
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = wrap(value)
    if wrap is not Customer:  # a Customer is two deep, with its colour
        data = payload.encode(value)
        assert payload.decode(data) == value
    with pytest.raises(UnsupportedType, match="more than 100 containers deep"):
        payload.encode(wrap(value))


@pytest.mark.parametrize(
    "level",
    [
        lambda inner: b"\x91" + inner,
        lambda inner: b"\x81\x01" + inner,
        lambda inner: msgspec.msgpack.encode(Ext(1, b"\x91" + inner)),
        lambda inner: msgspec.msgpack.encode(Ext(3, b"\x91" + inner)),
        lambda inner: msgspec.msgpack.encode(Ext(14, b"\x94\xa1m\xa1N\xa1f" + inner)),
        lambda inner: b"\x91" + msgspec.msgpack.encode(Ext(1, b"\x91" + inner)),
    ],
)
@pytest.mark.parametrize("depth", [101, 150, 900, 3000])
def test_deep_bytes_are_corrupt(level: Any, depth: int) -> None:
    """Nesting that no encoder writes is PayloadCorrupt at any depth, never a RecursionError or a crash."""
    data = b"\x01"
    for _ in range(depth):
        data = level(data)
    with pytest.raises(PayloadCorrupt):
        payload.decode(data)


def test_shared_parts_that_explode_end_at_the_limit() -> None:
    """Sixty lists that each hold the one before twice are small in memory and endless on the wire."""
    value: list[Any] = [1]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(PayloadTooLarge):
        payload.encode(value)


def test_large_values_are_refused_with_size_and_limit() -> None:
    """512 KiB travel; a byte more does not, and the message says how much it was."""
    text = "x" * (MAX_PAYLOAD_BYTES - 5)
    assert payload.decode(payload.encode(text)) == text
    with pytest.raises(PayloadTooLarge, match=r"takes 524,289 bytes, above the limit of 524,288 \(512 KiB\)"):
        payload.encode(text + "x")
    whole = "x" * MAX_PAYLOAD_BYTES
    larger: list[Any] = [[whole], np.zeros(MAX_PAYLOAD_BYTES), ((whole,), {}), {"k": whole}]
    for large in larger:
        with pytest.raises(PayloadTooLarge):
            payload.encode(large)
    with pytest.raises(PayloadTooLarge):
        payload.encode_arguments(("x" * MAX_PAYLOAD_BYTES,), {})
    with pytest.raises(PayloadCorrupt, match="above the limit"):
        payload.decode(b"\xc6" + (MAX_PAYLOAD_BYTES + 1).to_bytes(4, "big") + bytes(MAX_PAYLOAD_BYTES + 1))


def test_arguments_have_one_shape() -> None:
    """Arguments are a tuple and a dict of names; any other payload is no arguments."""
    assert payload.decode_arguments(payload.encode_arguments((1, "a"), {"k": (1,)})) == (
        (1, "a"),
        {"k": (1,)},
    )
    assert payload.decode_arguments(payload.encode_arguments((), {})) == ((), {})
    others: list[Any] = [None, (), ((), {}, 1), [(), {}], ([], {}), ((), []), ((), {1: 2})]
    for other in others:
        with pytest.raises(PayloadCorrupt, match="holds no arguments"):
            payload.decode_arguments(payload.encode(other))


@pytest.mark.parametrize(
    "extension",
    [
        Ext(15, msgspec.msgpack.encode(("|O", [1], b"12345678"))),
        Ext(15, msgspec.msgpack.encode(("<i4", [2**40, 2**40], b""))),
        Ext(15, msgspec.msgpack.encode(("<i4", [-1], b""))),
        Ext(15, msgspec.msgpack.encode(("<i4", [3], b"1234"))),
        Ext(15, msgspec.msgpack.encode(("<i4", [0] * 100, b""))),
        Ext(15, msgspec.msgpack.encode(("f999999999", [0], b""))),
        Ext(16, msgspec.msgpack.encode(("<i4", b""))),
        Ext(17, b"nothing"),
        Ext(17, b""),
        Ext(18, b"\xff\xff\xff\xff\xff\xff\xff\x7f"),
        Ext(8, msgspec.msgpack.encode((2026, 13, 1, 0, 0, 0, 0, 0, None))),
        Ext(8, msgspec.msgpack.encode((2026, 1, 1, 0, 0, 0, 0, 0, "../../etc/passwd"))),
        Ext(8, msgspec.msgpack.encode((2026, 1, 1, 0, 0, 0, 0, 0, "No/Where"))),
        Ext(8, msgspec.msgpack.encode((2026, 1, 1, 0, 0, 0, 0, 0, (10**15, None)))),
        Ext(11, msgspec.msgpack.encode((10**15, 0, 0))),
        Ext(12, b"1e"),
        Ext(12, b"\xff"),
        Ext(13, b"123"),
        Ext(2, b"\x91\x90"),
        Ext(4, b"\x91\x01"),
        Ext(1, b"\x01"),
        Ext(14, b"\x91\xa1a"),
        Ext(14, b"\x93\xa1a\xa1b\xa1c"),
        Ext(14, b"\x94\xa1a\xa1b\x01\x02"),
        Ext(99, b""),
    ],
    ids=lambda extension: f"{extension.code}-{bytes(extension.data)[:12].hex()}",
)
def test_odd_extensions_are_corrupt(extension: Ext) -> None:
    """Each extension checks what it is given."""
    with pytest.raises(PayloadCorrupt):
        payload.decode(msgspec.msgpack.encode([extension]))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x01\x01", b"\x92\x01", b"\xa1\xff", b"\xdd\xff\xff\xff\xff"]
)
def test_bytes_that_are_no_payload_are_corrupt(data: bytes) -> None:
    """Nothing, an unused opcode, trailing bytes, truncation, bad UTF-8 and huge counts are PayloadCorrupt."""
    with pytest.raises(PayloadCorrupt):
        payload.decode(data)

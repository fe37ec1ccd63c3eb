"""Dataclasses and Enums in payloads: the class by annotation, else a record, and never an import."""

from __future__ import annotations

import collections
import copy
import dataclasses
import enum
import pickle
import subprocess
import sys
import typing
from typing import Annotated, Any, NewType

import pytest

from pelton.errors import PayloadCorrupt
from pelton.protocol import payload
from pelton.protocol.payload import Record


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


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Doubling:
    amount: int

    def __post_init__(self) -> None:
        self.amount *= 2


@dataclasses.dataclass
class Seeded:
    seed: dataclasses.InitVar[int]
    value: int = 0

    def __post_init__(self, seed: int) -> None:
        self.value = seed


@dataclasses.dataclass
class Picky:
    amount: int

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise RuntimeError("no debts")


@pytest.mark.parametrize(
    "value", [Colour.RED, Colour.GREEN, Level.LOW, Access.READ | Access.WRITE, Access(0)]
)
def test_enum_members_come_back_by_annotation(value: enum.Enum) -> None:
    """A member is the member itself again where the annotation reaches its class, and a Record elsewhere."""
    data = payload.encode([value])
    assert payload.decode(data, list[type(value)])[0] is value  # type: ignore[misc]
    [record] = payload.decode(data)
    assert type(record) is Record
    assert (record.name, record.value) == (value.name, value.value)


TICKET = Ticket("two words", Customer("Ada", Colour.GREEN), {"x": [Ticket("inner")]})


@pytest.mark.parametrize(
    "annotation",
    [
        Ticket,
        Ticket | None,
        list[Ticket],
        dict[str, tuple[Ticket, ...]],
        Annotated[Ticket, "note"],
        Annotated[list[Ticket], []],
        NewType("Alias", Ticket),
        typing.TypeVar("Bound", bound=Ticket),
        collections.abc.AsyncIterator[Ticket],
        {"ticket": Ticket, "other": int},
        {"a": int, "b": list[Ticket | None]},
    ],
    ids=str,
)
def test_dataclasses_come_back_by_annotation(annotation: Any) -> None:
    """Classes an annotation reaches, also through fields of others, come back as themselves."""
    again = payload.decode(payload.encode(TICKET), annotation)
    assert again == TICKET
    assert type(again.parts["x"][0]) is Ticket
    assert again.shouted == "TWO WORDS"


def test_dataclasses_out_of_reach_are_records() -> None:
    """Without the annotation a dataclass is a frozen record of its fields: nothing is looked up by name."""
    record = payload.decode(payload.encode(TICKET), {"other": Colour})
    assert type(record) is Record
    assert record.text == record["text"] == "two words"
    assert record.customer.colour is Colour.GREEN
    assert list(record) == ["text", "customer", "parts", "words"]
    assert "Ticket" in repr(record)


def test_a_record_travels_on_and_becomes_the_class_again() -> None:
    """A process without the class relays the value, and the next one with it has it back."""
    record = payload.decode(payload.encode([TICKET, Colour.RED]))
    assert payload.decode(payload.encode(record), list[Ticket]) == [TICKET, Colour.RED]
    assert payload.encode(record) == payload.encode([TICKET, Colour.RED])


def test_fields_are_exactly_those_that_were_sent() -> None:
    """`__post_init__` may derive what it likes, fields keep the values they had."""
    doubled = Doubling(2)
    assert doubled.amount == 4
    assert payload.decode(payload.encode(doubled), Doubling) == doubled
    seeded = Seeded(7)
    assert payload.decode(payload.encode(seeded), Seeded) == seeded


def test_a_class_with_other_fields_leaves_a_record() -> None:
    """A sender with a newer class loses nothing: its fields are all there, by name."""
    newer = dataclasses.make_dataclass("Customer", [("name", str), ("tier", int)])
    newer.__qualname__ = "Customer"
    record = payload.decode(payload.encode(newer("Ada", 3)), Customer)
    assert type(record) is Record
    assert (record.name, record.tier) == ("Ada", 3)
    older = dataclasses.make_dataclass("Customer", [("name", str)])
    older.__qualname__ = "Customer"
    assert payload.decode(payload.encode(older("Ada")), Customer) == Customer("Ada")


def test_a_class_that_refuses_its_fields_is_a_corrupt_payload() -> None:
    """Whatever a user's class raises, the reader sees PayloadCorrupt with the reason."""
    data = payload.encode(Picky(5)).replace(b"\xa6amount\x05", b"\xa6amount\xff")
    with pytest.raises(PayloadCorrupt, match="Picky refused its fields: RuntimeError: no debts"):
        payload.decode(data, Picky)


def test_two_classes_of_one_name_are_told_apart_by_module() -> None:
    """With several candidates the module decides, and without a match nobody guesses."""
    mine, theirs, other = (
        dataclasses.make_dataclass("Same", [("x", int)], namespace={"__module__": module})
        for module in ("mine", "theirs", "other")
    )
    annotations = {"a": mine, "b": theirs}
    assert type(payload.decode(payload.encode(mine(1)), annotations)) is mine
    assert type(payload.decode(payload.encode(theirs(1)), annotations)) is theirs
    assert type(payload.decode(payload.encode(other(1)), annotations)) is Record
    assert type(payload.decode(payload.encode(other(1)), mine)) is mine


def test_records_are_frozen_values() -> None:
    """Records compare, hash, copy and pickle like values, and cannot be changed."""
    record = payload.decode(payload.encode(Customer("Ada")))
    same = payload.decode(payload.encode(Customer("Ada")))
    assert record == same
    assert hash(record) == hash(same)
    assert record != payload.decode(payload.encode(Customer("Bob")))
    assert copy.deepcopy(record) == record
    assert pickle.loads(pickle.dumps(record)) == record
    assert dict(record) == {"name": "Ada", "colour": record.colour}
    with pytest.raises(AttributeError, match="frozen"):
        record.name = "Bob"
    with pytest.raises(AttributeError, match="frozen"):
        del record.name
    with pytest.raises(AttributeError, match="no field 'tier'"):
        record.tier


def test_no_module_is_imported_by_a_name_in_the_data() -> None:
    """A record that names a module of the standard library does not load it: data is not code."""
    program = """
import sys
from pelton.protocol import payload
from pelton.protocol.record import Record
sys.modules.pop("this", None)
value = payload.decode(payload.encode(Record("Thing", {"x": 1}, "this")), dict)
assert value.x == 1 and "this" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

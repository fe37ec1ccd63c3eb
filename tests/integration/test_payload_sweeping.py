"""When payloads leave the object store: 31 days after the last record that named them, never before."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

from pelton.errors import DataLoss, TransportError
from pelton.protocol.claims import Claim
from pelton.transport.payloads import LEDGER, ObjectStore
from pelton_platform.deploy.sweeping import KEPT_S, Sweeper, Swept
from support.object_stores import place_of_kind

pytestmark = pytest.mark.integration

DAY = 86_400.0


class World:
    """A store, what records name, and a clock."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.named: dict[str, Set[bytes] | Exception] = {}
        self.now = 1_800_000_000.0
        self.sweeper = Sweeper(store, self._named, lambda: self.now)

    def put(self, function: str, number: int) -> bytes:
        """Keeps an object; its id."""
        draft = self.store.draft()
        draft.write_bytes(b"content")
        identity = number.to_bytes(16, "big")
        self.store.keep(draft, Claim(function, identity, 7, bytes(32)))
        draft.unlink(missing_ok=True)
        return identity

    def after(self, days: float) -> Swept:
        """Lets time pass and looks."""
        self.now += days * DAY
        return self.sweeper.sweep()

    @property
    def left(self) -> set[tuple[str, int]]:
        """What is there."""
        return {(each.function, int.from_bytes(each.id, "big")) for each in self.store.objects()}

    def _named(self, function: str) -> Set[bytes]:
        found = self.named.get(function, set())
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(params=["folder", "bucket"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """An empty store of each kind."""
    with place_of_kind(request.param, tmp_path) as place:
        yield World(ObjectStore(place.url, place.options))


def test_objects_stay_31_days_beyond_the_last_record(world: World) -> None:
    """However long a record lives, and however rarely is looked."""
    assert world.after(0) == Swept(0, 0, 0)
    one = world.put("f", 1)
    world.put("g", 2)
    world.named["f"] = {one}
    assert world.after(0) == Swept(2, 1, 0)
    assert world.after(400) == Swept(2, 1, 1)
    assert world.left == {("f", 1)}
    world.named["f"] = set()
    # The record may have gone a moment ago.
    assert world.after(100) == Swept(1, 1, 0)
    assert world.after(30.9) == Swept(1, 1, 0)
    assert world.after(0.2) == Swept(1, 1, 1)
    assert world.left == set()


def test_objects_that_are_named_again_count_anew(world: World) -> None:
    """An object may come before its record."""
    one = world.put("f", 1)
    world.after(0)
    world.named["f"] = {one}
    world.after(20)
    world.named["f"] = set()
    world.after(20)
    assert world.after(30) == Swept(1, 1, 0)
    assert world.after(2) == Swept(1, 1, 1)


@pytest.mark.parametrize("error", [TransportError("no broker"), DataLoss("trimmed")])
def test_nothing_goes_while_nobody_can_say(world: World, error: Exception) -> None:
    """Kafka that does not answer is no reason to remove anything, nor to forget what was known."""
    world.put("f", 1)
    world.after(0)
    world.named["f"] = error
    assert world.after(100) == Swept(1, 1, 0)
    world.named["f"] = set()
    assert world.after(0) == Swept(1, 1, 1)


def test_a_lost_ledger_removes_nothing(world: World) -> None:
    """What is not remembered counts from now."""
    world.put("f", 1)
    world.after(0)
    for note in (b"no json", b"[]", b'{"f": null}'):
        world.store.write_note(LEDGER, note)
        assert world.after(KEPT_S / DAY) == Swept(1, 1, 0)


def test_drafts_of_the_dead_go(tmp_path: Path) -> None:
    """A day later; those that are being written stay."""
    world = World(ObjectStore(tmp_path.as_uri()))
    old, new = world.store.draft(), world.store.draft()
    for path, age in ((old, 2 * DAY), (new, 10.0)):
        os.utime(path, (world.now - age, world.now - age))
    world.after(0)
    assert (old.exists(), new.exists()) == (False, True)


def test_other_things_in_the_store_are_left_alone(tmp_path: Path) -> None:
    """A folder may hold more than payloads."""
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "readme.txt").write_text("mine")
    (tmp_path / "readme.txt").write_text("mine")
    world = World(ObjectStore(tmp_path.as_uri()))
    assert world.after(0) == world.after(400) == Swept(0, 0, 0)
    assert (tmp_path / "f" / "readme.txt").exists()

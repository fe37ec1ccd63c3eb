"""The tracker of the dispatch template: what it commits, whatever order records finish in."""

from __future__ import annotations

import random

import pytest

from pelton.core.offsets import CommitMeta, decode_metadata, encode_metadata
from pelton_templates.dispatch import Settings, Tracker

NEEDED = {"TOPIC": "words", "FUNCTION": "count"}


def finished(tracker: Tracker) -> tuple[int, set[int]]:
    """Committed offset, and the offsets behind it that the commit says are done."""
    place = tracker.commit("t", 0)
    meta = decode_metadata(place.metadata)
    assert meta is not None
    return place.offset, {at for first, length in meta.finished for at in range(first, first + length)}


@pytest.mark.parametrize("seed", range(20))
def test_a_commit_says_what_is_done_and_nothing_else(seed: int) -> None:
    """In any order, with holes in the log, and taken up again from any commit."""
    dice = random.Random(seed)
    log = [offset for offset in range(7, 120) if dice.random() < 0.8]
    tracker = Tracker(7, None)
    taken: list[int] = []
    done: set[int] = set()
    for offset in log:
        if tracker.take(offset):
            taken.append(offset)
        while taken and dice.random() < 0.6:
            chosen = taken.pop(dice.randrange(len(taken)))
            tracker.finish(chosen)
            done.add(chosen)
        base, behind = finished(tracker)
        seen = [each for each in log if each <= offset]
        assert {each for each in seen if each < base} | {each for each in seen if each in behind} == done
        if dice.random() < 0.1:
            # Another consumer goes on from this commit: what was open comes again, what was done does not.
            place = tracker.commit("t", 0)
            tracker, taken = Tracker(place.offset, place.metadata), []
            for again in (each for each in seen if each >= place.offset):
                assert tracker.take(again) is (again not in done)
                if again not in done:
                    taken.append(again)
    for offset in taken:
        tracker.finish(offset)
    assert tracker.open == 0
    assert finished(tracker) == (log[-1] + 1, set())


def test_metadata_of_others_only_costs_repetition() -> None:
    """What somebody else wrote beside the offset is not understood, and not believed."""
    for text in ("", "foreign", "p1:????", encode_metadata(CommitMeta())[:-2]):
        assert Tracker(5, text).take(5)


def test_a_commit_above_the_limit_of_the_broker_leaves_the_metadata_out() -> None:
    """With thousands of gaps only the offset is committed: more is repeated after a crash."""
    tracker = Tracker(0, None)
    for offset in range(4_000):
        tracker.take(offset)
        if offset % 2:
            tracker.finish(offset)
    place = tracker.commit("t", 0)
    assert (place.offset, place.metadata) == (0, "")


def test_settings_have_defaults_and_are_checked() -> None:
    """Two have to be set; each wrong one is named."""
    settings = Settings.read(NEEDED)
    assert (settings.group, settings.dead_letters, settings.batch) == (
        "count-dispatch",
        "words.dead-letters",
        1,
    )
    for name, value in (("BATCH_AGE", "-1"), ("MAX_OPEN", "x"), ("START", "middle"), ("DRAIN", "nan")):
        with pytest.raises(ValueError, match=f"{name}='{value}'"):
            Settings.read({**NEEDED, name: value})

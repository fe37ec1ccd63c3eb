"""The fold: whatever is repeated, missing, out of order or of an old owner, readers come to one end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pelton.core.call import Failure, Result, ResultKind, Token
from pelton.core.fold import Fold, fold

CALL = b"c" * 16
OLD, TOKEN = Token(1, 100, 0, 3, 7), Token(1, 100, 0, 3, 8)


def chunk(first: int, *items: bytes, token: Token = TOKEN) -> Result:
    """Chunks from this place on."""
    return Result(CALL, token, ResultKind.CHUNK, first=first, items=items)


def end(first: int, value: bytes = b"end", token: Token = TOKEN) -> Result:
    """An outcome behind so many chunks."""
    return Result(CALL, token, ResultKind.OUTCOME, first=first, items=(value,))


A, B, C = b"a", b"b", b"c"
HISTORIES: dict[str, tuple[Sequence[Result], list[bytes], bytes | None]] = {
    "as written": ([chunk(0, A), chunk(1, B), end(2)], [A, B], b"end"),
    "one after the other in one record": ([chunk(0, A, B, C), end(3)], [A, B, C], b"end"),
    "a chunk twice": ([chunk(0, A), chunk(0, A), chunk(1, B), end(2)], [A, B], b"end"),
    "written again with more": ([chunk(0, A), chunk(0, A, B), chunk(1, B, C), end(3)], [A, B, C], b"end"),
    "a chunk missing": ([chunk(0, A), chunk(2, C)], [A], None),
    "a missing chunk that comes again": (
        [chunk(0, A), chunk(2, C), chunk(1, B, C), end(3)],
        [A, B, C],
        b"end",
    ),
    "in the wrong order": ([chunk(1, B), chunk(0, A), end(1)], [A], b"end"),
    "the end before the data": ([end(2), chunk(0, A), chunk(1, B)], [A, B], None),
    "the end again behind the data": ([end(2), chunk(0, A, B), end(2)], [A, B], b"end"),
    "two ends": ([end(0, b"first"), end(0, b"second")], [], b"first"),
    "chunks behind the end": ([chunk(0, A), end(1), chunk(1, B)], [A], b"end"),
    "an old owner in between": ([chunk(0, A), chunk(0, B, token=OLD), chunk(1, C), end(2)], [A, C], b"end"),
    "the end of an old owner": ([chunk(0, A), end(0, b"old", OLD), end(1)], [A], b"end"),
    "an old owner that was first": ([end(0, b"old", OLD), chunk(0, A), end(1)], [], b"old"),
    "a new owner begins again": ([chunk(0, A, token=OLD), chunk(0, B), end(1)], [B], b"end"),
    "a new owner without the beginning": ([chunk(0, A, token=OLD), chunk(1, B), end(2)], [A], None),
    "chunks of nothing": ([chunk(0), chunk(0, A), chunk(1), end(1)], [A], b"end"),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_fold_of_odd_histories(name: str) -> None:
    """Each way in which records can go wrong has its one reading."""
    records, chunks, value = HISTORIES[name]
    seen, outcome = fold(records)
    assert seen == chunks
    assert (None if outcome is None else outcome.items[0]) == value


@pytest.mark.parametrize("place", range(5))
def test_fold_orders_tokens_from_the_left(place: int) -> None:
    """A token that is higher in any place, and not lower in one before, wins over what is lower behind it."""
    low = Token(5, 5, 5, 5, 5)
    parts = [*low[:place], low[place] + 1, *([0] * (4 - place))]
    high = Token(*parts)
    seen, outcome = fold(
        [chunk(0, A, token=high), chunk(1, B, token=low), end(0, b"low", low), end(1, b"high", high)]
    )
    assert seen == [A]
    assert outcome is not None
    assert outcome.items == (b"high",)


def test_fold_says_nothing_new_for_marks() -> None:
    """`started`, `reset` and `moved` raise the token, and are neither chunks nor an end."""
    state = Fold()
    started = Result(CALL, OLD, ResultKind.STARTED)
    for mark in (started, replace(started, kind=ResultKind.MOVED, moved_to="there")):
        assert state.feed(mark) == ()
    assert (state.started, state.moved, state.ended) == (True, "there", False)
    assert state.feed(Result(CALL, TOKEN, ResultKind.RESET)) == ()
    assert state.feed(chunk(0, A, token=OLD)) == ()
    assert state.feed(chunk(0, B)) == (B,)


@pytest.mark.parametrize("seed", range(50))
def test_fold_is_the_same_however_often_records_are_repeated(seed: int) -> None:
    """A history in which records come again, anywhere behind their place, folds to what it did without."""
    dice = random.Random(seed)
    count = dice.randrange(8)
    plain = [*(chunk(number, b"%d" % number) for number in range(count)), end(count)]
    repeated: list[Result] = []
    for number, record in enumerate(plain):
        repeated.append(record)
        repeated += dice.choices(plain[: number + 1], k=dice.randrange(3))
        if dice.random() < 0.3:
            repeated.append(replace(dice.choice(plain), token=OLD))
    assert fold(repeated) == fold(plain)


def test_fold_of_a_stream_that_begins_again() -> None:
    """With the first chunk of another execution, or with its good end; a failure leaves what was seen."""
    before = [chunk(0, b"a", b"b", token=OLD), Result(CALL, TOKEN, ResultKind.RESET)]
    failed = Result(CALL, TOKEN, ResultKind.OUTCOME, failure=Failure("E", "m"))
    assert fold([*before, chunk(0, b"c"), end(1)]) == ([b"c"], end(1))
    assert fold([*before, end(0)]) == ([], end(0))
    assert fold([*before, failed]) == ([b"a", b"b"], failed)
    state = Fold()
    for record in (*before, chunk(0, b"c"), chunk(1, b"d"), end(2)):
        state.feed(record)
    assert state.restarts == 1

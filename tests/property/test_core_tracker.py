"""The tracker of finished offsets and its metadata, against plain sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pelton.core.offsets import (
    METADATA_LIMIT,
    CommitMeta,
    FinishedRuns,
    decode_metadata,
    encode_metadata,
    unfinished,
)

offsets = st.integers(0, 300)


@given(base=offsets, order=st.permutations(range(40)), cut=st.integers(0, 40))
def test_offsets_finish_in_any_order(base: int, order: list[int], cut: int) -> None:
    """The base is always the lowest unfinished offset, the runs are what is finished above it."""
    runs = FinishedRuns(base)
    done: set[int] = set()
    for step in order[:cut]:
        runs.add(base + step)
        done.add(base + step)
        lowest = base
        while lowest in done:
            lowest += 1
        assert runs.base == lowest
        assert set(runs) == {x for x in done if x > lowest}
        assert all((x in runs) == (x in done or x < lowest) for x in range(base, base + 41))
        assert all(length > 0 for _, length in runs.runs())
        assert runs.gaps == len(runs.runs())


@given(base=offsets, done=st.sets(st.integers(1, 60)), back=st.integers(1, 60))
def test_an_offset_above_the_base_can_be_taken_back(base: int, done: set[int], back: int) -> None:
    """Taking back leaves the other finished offsets as they are."""
    runs = FinishedRuns(base)
    for step in done:
        runs.add(base + step)
    runs.discard(base + back)
    assert set(runs) == {base + x for x in done - {back}}


counts = st.dictionaries(offsets, st.integers(1, 9), max_size=20)


@given(
    base=offsets,
    epoch=st.integers(0, 1 << 45),
    bound=st.integers(0, 1 << 40),
    done=st.sets(st.integers(1, 200)),
    delivered=counts,
    used=counts,
)
def test_metadata_comes_back_as_it_was(
    base: int, epoch: int, bound: int, done: set[int], delivered: dict[int, int], used: dict[int, int]
) -> None:
    """What a commit carries is what the next owner reads."""
    runs = FinishedRuns(base)
    for step in done:
        runs.add(base + step)
    meta = CommitMeta(
        epoch,
        bound,
        runs.runs(),
        {base + x: n for x, n in delivered.items()},
        {base + x: n for x, n in used.items()},
    )
    assert decode_metadata(encode_metadata(meta, base)) == meta


@given(
    text=st.one_of(st.none(), st.text(max_size=200), st.binary(max_size=80).map(lambda b: "p1:" + b.hex()))
)
def test_foreign_metadata_is_never_a_crash(text: str | None) -> None:
    """Lost, corrupt or foreign metadata reads as none at all; the owner then replays."""
    meta = decode_metadata(text)
    assert meta is None or isinstance(meta, CommitMeta)


@given(cut=st.integers(4, 60), data=st.sets(st.integers(1, 100), min_size=5))
def test_cut_metadata_reads_as_none(cut: int, data: set[int]) -> None:
    """A truncated text is not taken for a shorter truth."""
    runs = FinishedRuns(0)
    for step in data:
        runs.add(step)
    text = encode_metadata(CommitMeta(5, 6, runs.runs()), 0)
    if cut < len(text):
        assert decode_metadata(text[:cut]) is None


@given(committed=offsets, done=st.sets(offsets), behind=offsets)
def test_unfinished_counts_what_is_left(committed: int, done: set[int], behind: int) -> None:
    """Waiting records are those between the committed offset and the end that have not finished."""
    runs = FinishedRuns(committed)
    for x in sorted(done):
        if x > committed:
            runs.add(x)
    end = committed + behind
    truth = {x for x in range(committed, end) if not (x > committed and x in done)}
    assert unfinished(committed, CommitMeta(finished=runs.runs()), end) == len(truth)


def test_the_limit_is_below_what_the_broker_takes() -> None:
    """Kafka takes 4,095 UTF-16 units of metadata."""
    assert METADATA_LIMIT < 4095

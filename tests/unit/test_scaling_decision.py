"""What `pelton.core.scaling` promises about the number of instances."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.core.scaling import (
    AT_ONCE,
    PATIENCE_MS,
    Bounds,
    Load,
    Needs,
    desired,
    needed,
    needed_for_cpu,
    needed_for_lag,
    remember,
)

BOUNDS = Bounds(min_instances=1, max_instances=4, slots=8, keep_warm_ms=30_000, cool_down_ms=10_000)


@pytest.mark.parametrize(
    ("loads", "slots", "instances"),
    [
        ([], 8, 0),
        ([Load(0, 0)], 8, 0),
        ([Load(1, 0)], 8, 1),
        ([Load(8, 0)], 8, 1),
        ([Load(5, 4)], 8, 2),
        ([Load(3, 0), Load(17, 0), Load(0, 8)], 8, 3),
        ([Load(-1, 0)], 8, 0),
    ],
)
def test_scaling_of_the_unknown_takes_a_slot_for_each_call(
    loads: list[Load], slots: int, instances: int
) -> None:
    """While no call has ended, as many instances are needed as run all of the busiest function at once."""
    assert needed(loads, slots).instances == instances


@pytest.mark.parametrize(
    ("load", "instances", "why"),
    [
        (Load(1000, 1, 0, 0.001), 1, "fast calls end soon: one instance does them"),
        (Load(100, 10, 0, 1.0), 5, "100 calls of a second in 5 s take 20 slots beside the 10, 8 of 10 busy"),
        (Load(0, 12, 12, 1.0), 2, "12 slots are taken all the time"),
        (Load(3, 0, 0, 60.0), 1, "there are not more calls than one instance takes"),
        (Load(100, 8, 0, 0.001, PATIENCE_MS), 14, "they wait although they should not: all that is of use"),
        (Load(1000, 8, 0, 60.0, 0, 6), 6, "more instances than partitions get nothing"),
        (Load(0, 0.01, 0, 1.0), 0, "the rest of an average is no attempt"),
    ],
)
def test_scaling_counts_with_how_long_calls_take(load: Load, instances: int, why: str) -> None:
    """Rates, what waits, how long it does and the partitions decide together."""
    assert needed([load], 8).instances == instances, why


def test_scaling_keeps_an_instance_that_is_hardly_too_many() -> None:
    """Between the load at which one is added and that at which one is taken away nothing changes."""
    steady = Load(0, 24, 24, 1.0)
    assert [needed([steady], 8, current=now).instances for now in (0, 4, 5, 6, 9)] == [4, 4, 5, 5, 5]
    resting = Load(0, 24, 0, 1.0)
    assert needed([resting], 8, current=9).instances == 3, "nothing comes: what is there has a slot"


def test_scaling_says_why() -> None:
    """The numbers that decided are in the reason."""
    assert needed([Load(7, 3, 2.5, 0.04)], 1).reason == "7 waiting, 3 running, 2.5 a second of 40 ms each"
    assert needed([Load(7, 3)], 1).reason == "7 waiting, 3 running, and no call has ended yet"
    assert needed([], 1).reason == "nothing waits or runs"


def test_scaling_refuses_no_slots() -> None:
    """An instance without a slot would need infinitely many of it."""
    with pytest.raises(ValueError, match="at least one slot"):
        needed([Load(1, 0)], 0)


@pytest.mark.parametrize(("lag", "instances"), [(-5, 0), (0, 0), (1, 1), (100, 1), (101, 2), (10_000, 6)])
def test_scaling_by_lag_is_one_for_so_many_records(lag: int, instances: int) -> None:
    """A program has an instance for each so many unread records, at most one a partition."""
    assert needed_for_lag(lag, 100, 6).instances == instances


@pytest.mark.parametrize(
    ("used", "cores", "instances", "wanted"),
    [
        (0.0, 1, 0, 1),
        (0.7, 1, 1, 1),
        (0.75, 1, 1, 1),
        (0.95, 1, 1, 2),
        (1.9, 1, 2, 3),
        (0.2, 1, 3, 1),
        (0.9, 2, 1, 1),
    ],
)
def test_scaling_by_cpu_keeps_near_its_share(used: float, cores: float, instances: int, wanted: int) -> None:
    """Instances of a program use about 70 % of their cores; what is near enough changes nothing."""
    assert needed_for_cpu(used, cores, instances).instances == wanted


def test_scaling_up_at_once_down_after_cool_down_to_zero_after_keep_warm() -> None:
    """A need counts at once; fewer instances, and none at all, come after times of their own."""
    bounds = Bounds(0, 4, 8, 30_000, 10_000)
    needs: Needs = ()
    needs = remember(needs, 0, 3, 30_000)
    assert desired(bounds, needs, 0) == 3
    needs = remember(needs, 1_000, 2, 30_000)
    needs = remember(needs, 9_999, 0, 30_000)
    assert desired(bounds, needs, 9_999) == 3
    assert desired(bounds, needs, 10_000) == 2
    assert desired(bounds, needs, 11_000) == 1
    assert desired(bounds, needs, 30_999) == 1
    assert desired(bounds, needs, 31_000) == 0


def test_scaling_starts_few_at_a_time() -> None:
    """A fleet grows by four or doubles, once what was started is ready; what must be there always starts."""
    bounds = Bounds(0, 100, 1, 0, 1_000)
    needs = remember((), 0, 100, 1_000)
    assert desired(bounds, needs, 0, ready=0) == AT_ONCE
    assert desired(bounds, needs, 0, ready=3) == 3 + AT_ONCE
    assert desired(bounds, needs, 0, ready=40) == 80
    assert desired(bounds, needs, 0, ready=60) == 100
    assert desired(Bounds(50, 100, 1, 0, 1_000), needs, 0, ready=0) == 50


def test_scaling_stays_within_the_bounds() -> None:
    """Whatever waits, there are never fewer than min and never more than max instances."""
    assert desired(BOUNDS, (), 0) == 1
    assert desired(BOUNDS, remember((), 0, 1_000, 1), 0) == 4


@given(
    steps=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1),
    cool_down_ms=st.integers(1, 50),
    keep_warm_ms=st.integers(1, 50),
)
def test_scaling_equals_the_highest_need_of_the_window(
    steps: list[tuple[int, int]], cool_down_ms: int, keep_warm_ms: int
) -> None:
    """The short memory decides as the whole history would: the maximum over the window that counts."""
    now_ms = 0
    needs: Needs = ()
    history: list[tuple[int, int]] = []
    bounds = Bounds(0, 9, 1, keep_warm_ms, cool_down_ms)
    for pause_ms, instances in steps:
        now_ms += pause_ms
        history.append((now_ms, instances))
        needs = remember(needs, now_ms, instances, max(keep_warm_ms, cool_down_ms))
        highest = max(n for at, n in history if at + cool_down_ms > now_ms)
        warm = any(n for at, n in history if at + keep_warm_ms > now_ms)
        assert desired(bounds, needs, now_ms) == max(highest, int(warm))
        assert [need.instances for need in needs] == sorted({need.instances for need in needs}, reverse=True)

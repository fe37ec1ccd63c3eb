"""What `pelton.core.scaling` promises about the number of instances."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.core.scaling import Bounds, Load, Needs, desired, needed, remember

BOUNDS = Bounds(min_instances=1, max_instances=4, slots=8, keep_warm_ms=30_000)


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
def test_scaling_busiest_function_decides(loads: list[Load], slots: int, instances: int) -> None:
    """As many instances are needed as run everything of the busiest function at once."""
    assert needed(loads, slots) == instances


def test_scaling_refuses_no_slots() -> None:
    """An instance without a slot would need infinitely many of it."""
    with pytest.raises(ValueError, match="at least one slot"):
        needed([Load(1, 0)], 0)


def test_scaling_up_at_once_and_down_after_keep_warm() -> None:
    """A need counts from the moment it is seen until one keep-warm time has passed without it."""
    needs: Needs = ()
    needs = remember(needs, 0, 3, BOUNDS.keep_warm_ms)
    assert desired(BOUNDS, needs) == 3
    needs = remember(needs, 1_000, 2, BOUNDS.keep_warm_ms)
    needs = remember(needs, 29_999, 0, BOUNDS.keep_warm_ms)
    assert desired(BOUNDS, needs) == 3
    needs = remember(needs, 30_000, 0, BOUNDS.keep_warm_ms)
    assert desired(BOUNDS, needs) == 2
    needs = remember(needs, 31_000, 0, BOUNDS.keep_warm_ms)
    assert desired(BOUNDS, needs) == BOUNDS.min_instances


def test_scaling_stays_within_the_bounds() -> None:
    """Whatever waits, there are never fewer than min and never more than max instances."""
    assert desired(BOUNDS, ()) == 1
    assert desired(BOUNDS, remember((), 0, 1_000, 0)) == 4


@given(
    steps=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1),
    keep_warm_ms=st.integers(1, 50),
)
def test_scaling_equals_the_highest_need_of_the_window(
    steps: list[tuple[int, int]], keep_warm_ms: int
) -> None:
    """The short memory decides as the whole history would: the maximum over the last keep-warm time."""
    now_ms = 0
    needs: Needs = ()
    history: list[tuple[int, int]] = []
    bounds = Bounds(0, 9, 1, keep_warm_ms)
    for pause_ms, instances in steps:
        now_ms += pause_ms
        history.append((now_ms, instances))
        needs = remember(needs, now_ms, instances, keep_warm_ms)
        assert desired(bounds, needs) == max(n for at, n in history if at + keep_warm_ms > now_ms)
        assert [need.instances for need in needs] == sorted({need.instances for need in needs}, reverse=True)

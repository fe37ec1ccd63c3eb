"""Retry decisions: delays, grants, deadlines, and a budget that spaces and never drops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.core.call import Failure
from pelton.core.retry import NO_POLICY, Again, RetryBudget, RetrySpec, decide, delay_ms

SPEC = RetrySpec(1_000, 3.0, 20_000, 0.0, ("UNAVAILABLE", "ABORTED"))
LOST = Failure("ExecutorLost", "gone", code="UNAVAILABLE")
WRONG = Failure("ValueError", "no")


def decided(failure: Failure = LOST, spec: RetrySpec = SPEC, **given: int) -> Again | None:
    """The decision for the first of four attempts at 50 s, unless told otherwise."""
    asked = {"used": 1, "max_attempts": 4, "at_ms": 50_000, "deadline_ms": 0, "longest_ms": 0, **given}
    return decide(spec, RetryBudget(), failure, dice=0.5, **asked)


@pytest.mark.parametrize(
    ("used", "expected"), [(1, 1_000), (2, 3_000), (3, 9_000), (4, 20_000), (999, 20_000)]
)
def test_delays_grow_up_to_the_longest(used: int, expected: int) -> None:
    """Also after so many attempts that the power is larger than any float."""
    assert delay_ms(SPEC, used, 0.3) == expected
    assert delay_ms(RetrySpec(1, 100.0, 20_000, 0.0), 999, 0.3) == 20_000


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 40))
def test_jitter_takes_away_its_part_and_no_more(jitter: float, dice: float, used: int) -> None:
    """A delay is between (1 - jitter) and the whole of what the policy says."""
    spec = RetrySpec(1_000, 2.0, 60_000, jitter)
    full = min(60_000, 1_000 * 2 ** (used - 1))
    assert full * (1 - jitter) - 1 <= delay_ms(spec, used, dice) <= full + 1


def test_a_failure_the_policy_names_is_followed_by_another_attempt() -> None:
    """By code, or because the failure itself says so; others are not."""
    assert decided() == Again(51_000, 1)
    assert decided(Failure("Mine", "m", retriable=True)) == Again(51_000, 1)
    assert decided(WRONG) is None
    assert decided(Failure("A", "m", code="ABORTED"), NO_POLICY) is None


def test_no_attempt_beyond_those_granted() -> None:
    """The last attempt granted is the last one."""
    assert decided(used=3) is not None
    assert decided(used=4) is None


def test_what_user_code_asks_for_beats_the_delay_of_the_policy() -> None:
    """Also a delay of nothing."""
    assert decided(Failure("Retry", "", retriable=True, after_ms=90_000)) == Again(140_000, 1)
    assert decided(Failure("Retry", "", retriable=True, after_ms=0)) == Again(50_000, 1)


def test_no_attempt_that_could_not_start_before_the_deadline() -> None:
    """The call fails at once with what it failed with, instead of at its deadline with less."""
    assert decided(deadline_ms=51_000) == Again(51_000, 1)
    assert decided(deadline_ms=50_999) is None


def test_delays_of_calls_that_hold_up_others_are_cut() -> None:
    """With key order no delay is longer than what its lane may wait."""
    assert decided(used=3, longest_ms=2_000) == Again(52_000, 3)


@given(
    st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 20_000)), min_size=1, max_size=300),
    st.integers(1, 50),
    st.integers(1, 40),
)
def test_budget_spaces_a_storm_and_drops_none(
    asked: list[tuple[int, int]], per_second: int, burst: int
) -> None:
    """In every window of the retries' own order: at most the burst and the rate; none early, none lost."""
    budget, at_ms, due = RetryBudget(per_second, burst), 0, []
    for step, delay in asked:
        at_ms += step
        wanted = at_ms + delay
        given_ms = budget.due(wanted)
        assert given_ms >= wanted
        due.append(given_ms)
    assert len(due) == len(asked)
    for first in range(len(due)):
        latest = 0
        for last in range(first, len(due)):
            latest = max(latest, due[last])
            window_s = (latest - min(due[first : last + 1])) / 1000
            assert last - first + 1 <= burst + window_s * per_second + 1


def test_budget_never_goes_below_one_a_second() -> None:
    """However small it is asked to be."""
    budget = RetryBudget(0.001, 0)
    assert [budget.due(0) for _ in range(4)] == [0, 1_000, 2_000, 3_000]


def test_budget_that_was_not_used_gathers_again() -> None:
    """After a quiet time a burst is free once more."""
    budget = RetryBudget(1, 3)
    assert [budget.due(0) for _ in range(5)] == [0, 0, 0, 1_000, 2_000]
    assert [budget.due(60_000) for _ in range(4)] == [60_000, 60_000, 60_000, 61_000]

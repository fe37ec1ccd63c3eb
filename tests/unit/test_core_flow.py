"""What `pelton.core.flow` makes of counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pelton.core.flow import Flow


def test_flow_learns_how_long_calls_take() -> None:
    """Slots taken over time, by calls that ended: four at a time that end 20 a second take 0.2 s each."""
    flow = Flow()
    for look in range(100):
        flow.observe(look * 200, look * 4 + 4, 4, 4)
    load = flow.load(8)
    assert load.service_s is not None
    assert abs(load.service_s - 0.2) < 0.01
    assert abs(load.arriving - 20) < 3
    assert (load.waiting, round(load.running, 1), load.oldest_ms, load.partitions) == (0, 4.0, 0, 8)


def test_flow_knows_nothing_before_a_call_has_ended() -> None:
    """No guess is made of a function that has not shown how long it takes."""
    flow = Flow()
    flow.observe(0, 5, 5, 1)
    flow.observe(60_000, 5, 5, 1)
    assert flow.load(8).service_s is None
    flow.observe(60_200, 5, 4, 1)
    assert flow.load(8).service_s is not None


def test_flow_remembers_over_a_rest() -> None:
    """An hour without calls is no reason to forget how long they take."""
    flow = Flow()
    for look in range(20):
        flow.observe(look * 200, look + 1, 1, 1)
    learned = flow.load(8).service_s
    flow.observe(3_600_000, 20, 0, 0)
    flow.observe(3_600_200, 25, 5, 0)
    assert flow.load(8).service_s is not None
    assert learned is not None
    assert flow.load(8).running < 0.01


def test_flow_tells_how_long_the_oldest_has_waited() -> None:
    """Calls are taken in order: the oldest one that waits came when the count had reached it."""
    flow = Flow()
    flow.observe(0, 10, 10, 0)
    flow.observe(1_000, 12, 12, 0)
    assert flow.load(8).oldest_ms == 1_000
    flow.observe(5_000, 12, 3, 1)
    assert flow.load(8).oldest_ms == 4_000
    flow.observe(5_200, 12, 1, 1)
    assert flow.load(8).oldest_ms == 0, "what runs does not wait"
    flow.observe(9_000, 13, 2, 1)
    flow.observe(9_500, 13, 2, 1)
    assert flow.load(8).oldest_ms == 500


def test_flow_of_nothing_is_nothing_at_once() -> None:
    """When the last call has ended nothing runs, however much did on average."""
    flow = Flow()
    for look in range(100):
        flow.observe(look * 200, look + 2, 2, 2)
    assert flow.load(8).running > 1.8
    flow.observe(20_000, 101, 0, 0)
    assert flow.load(8).running == 0.0
    flow.observe(20_200, 102, 1, 1)
    assert flow.load(8).running > 1.5


def test_flow_of_a_topic_that_was_made_anew_begins_anew() -> None:
    """Counts that fall are those of something else."""
    flow = Flow()
    for look in range(20):
        flow.observe(look * 200, 1_000 + look, 1, 1)
    flow.observe(5_000, 3, 3, 0)
    load = flow.load(8)
    assert (load.waiting, load.service_s, load.arriving) == (3, None, 0.0)


@given(
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 50), st.integers(0, 60), st.integers(-3, 80)))
)
def test_flow_takes_whatever_is_counted(looks: list[tuple[int, int, int, int]]) -> None:
    """However counts contradict each other, a load is never negative, and its age never above the time."""
    flow, now_ms, arrived = Flow(), 0, 0
    for pause_ms, came, unfinished, running in looks:
        now_ms += pause_ms
        arrived += came
        flow.observe(now_ms, arrived, unfinished, running)
        load = flow.load(8)
        assert load.waiting >= 0
        assert load.running >= 0
        assert load.arriving >= 0
        assert load.service_s is None or load.service_s >= 0
        assert 0 <= load.oldest_ms <= now_ms

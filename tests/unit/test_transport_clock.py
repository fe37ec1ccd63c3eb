"""What `BrokerClock` promises about broker time."""

from __future__ import annotations

import time

from pelton.transport.kafka.clock import SAMPLES, BrokerClock

MS = 1_000_000


def feed(clock: BrokerClock, ahead_ms: float, round_trip_ms: float) -> None:
    """One append at a broker whose clock is ahead, acknowledged after a round trip."""
    sent_ns = time.time_ns()
    appended_ms = int(sent_ns / MS + round_trip_ms / 2 + ahead_ms)
    clock.sample(sent_ns, appended_ms, round(round_trip_ms * MS))


def test_sample_with_the_smallest_round_trip_counts() -> None:
    """A slow sample with a wrong offset does not move the clock that a quick one has set."""
    clock = BrokerClock()
    feed(clock, 9_000, 400)
    feed(clock, 2_000, 1)
    feed(clock, -9_000, 300)
    assert abs(clock.offset_ms - 2_000) <= 1
    assert clock.round_trip_ms == 1
    assert abs(clock.now_ms() - time.time() * 1000 - 2_000) <= 50


def test_only_the_latest_samples_count() -> None:
    """After 32 newer samples an old one is forgotten however good it was: clocks drift."""
    clock = BrokerClock()
    feed(clock, 2_000, 0.1)
    for _ in range(SAMPLES):
        feed(clock, 5_000, 3)
    assert abs(clock.offset_ms - 5_000) <= 1


def test_without_samples_the_own_clock_is_told() -> None:
    """Before the first sample time is this machine's, and the clock says that it is not synchronized."""
    clock = BrokerClock()
    assert not clock.synchronized
    assert clock.round_trip_ms is None
    assert abs(clock.now_ms() - time.time() * 1000) <= 50

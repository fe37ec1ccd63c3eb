"""What flows through one function: arrivals, attempts, waiting; from counts looked at now and then."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from pelton.core.scaling import Load

SMOOTH_MS: Final = 10_000
"""Time constant of averages: what was so long ago weighs little more than a third."""

GAP_MS: Final = 5_000
"""Looks that are further apart say nothing of the time between: the machine slept, or Kafka was away."""

_MOST_SAMPLES: Final = 512


class Flow:
    """Turns counts of one function into its `Load`.

    Nobody tells how long calls take: the slots that were taken, added up over time, divided by the calls that
    ended meanwhile, is the time one of them takes a slot.
    """

    def __init__(self) -> None:
        self._at_ms: int | None = None
        self._arrivals: deque[tuple[int, int]] = deque()
        self._arrived = self._unfinished = self._running = 0
        self._arriving = self._average = self._busy_s = self._ended = 0.0

    def observe(self, now_ms: int, arrived: int, unfinished: int, running: int) -> None:
        """Takes in what was counted.

        Args:
            now_ms: milliseconds on any clock that never goes back.
            arrived: calls that ever arrived; a smaller number than before starts everything anew.
            unfinished: those without an end.
            running: attempts that run.
        """
        running = min(max(0, running), max(0, unfinished))
        if self._at_ms is None or arrived < self._arrived:
            self._start(now_ms, arrived, unfinished, running)
        elif now_ms - self._at_ms > GAP_MS:
            # Nobody knows what ran meanwhile: what was learned before stays, and counting goes on from here.
            self._arriving, self._average = 0.0, float(running)
            if arrived > self._arrived:
                self._arrivals.append((now_ms, arrived))
        elif now_ms > self._at_ms:
            self._pass((now_ms - self._at_ms) / 1000, now_ms, arrived, unfinished)
        self._at_ms, self._arrived, self._unfinished, self._running = now_ms, arrived, unfinished, running
        first = arrived - (unfinished - running)
        while len(self._arrivals) > 1 and self._arrivals[0][1] <= first:
            self._arrivals.popleft()
        if len(self._arrivals) > _MOST_SAMPLES:
            self._arrivals = deque(list(self._arrivals)[::2])

    def load(self, partitions: int) -> Load:
        """What it has to do, as it was last seen."""
        waiting = self._unfinished - self._running
        oldest_ms = 0
        if waiting > 0 and self._at_ms is not None:
            oldest_ms = self._at_ms - self._arrivals[0][0]
        service_s = self._busy_s / self._ended if self._ended > 0 else None
        # Where nothing is open an average is what was: how long it still counts is not for it to say.
        running = self._average if self._unfinished else 0.0
        return Load(waiting, running, self._arriving, service_s, oldest_ms, partitions)

    def _start(self, now_ms: int, arrived: int, unfinished: int, running: int) -> None:
        self._arrivals.clear()
        self._arrivals.append((now_ms, arrived))
        self._arrived, self._unfinished, self._running = arrived, unfinished, running
        self._arriving = 0.0
        self._average = float(running)
        self._busy_s = 0.0
        self._ended = 0.0

    def _pass(self, seconds: float, now_ms: int, arrived: int, unfinished: int) -> None:
        keep = math.exp(-seconds * 1000 / SMOOTH_MS)
        came = arrived - self._arrived
        ended = max(0, came - (unfinished - self._unfinished))
        self._arriving = self._arriving * keep + came / seconds * (1 - keep)
        self._average = self._average * keep + self._running * (1 - keep)
        if self._running or ended:
            # A rest teaches nothing: what was learned before it is not forgotten in it.
            self._busy_s = self._busy_s * keep + self._running * seconds
            self._ended = self._ended * keep + ended
        if came:
            self._arrivals.append((now_ms, arrived))

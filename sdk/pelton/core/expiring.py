"""Calls with a deadline: which of those that wait have passed it, and what they end with."""

from __future__ import annotations

import heapq
from typing import Final

from pelton.core.call import Failure
from pelton.core.run import Item

PASSED: Final = "DeadlineExceeded"
"""Type of the failure of a call whose deadline passed."""


class Deadlines:
    """The deadlines of records that were taken in; what was begun meanwhile is passed over."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Item]] = []
        self._watched = 0

    def watch(self, deadline_ms: int, item: Item) -> None:
        """Remembers when a record must have begun."""
        self._watched += 1
        heapq.heappush(self._heap, (deadline_ms, self._watched, item))

    def passed(self, at_ms: int) -> bool:
        """Marks waiting records whose deadline has passed; whether there are any."""
        found = False
        while self._heap and self._heap[0][0] < at_ms:
            item = heapq.heappop(self._heap)[2]
            if item.run is None and item.own.alive and item.offset in item.own.items:
                item.expired = found = True
        return found


def not_begun() -> Failure:
    """Why a call ends that could not begin in time."""
    return Failure(PASSED, "its deadline passed before it could begin", "", "DEADLINE_EXCEEDED")


def not_ended(attempt: int) -> Failure:
    """Why a call ends that was still running."""
    return Failure(PASSED, "its deadline passed while it ran", "", "DEADLINE_EXCEEDED", attempt=attempt)

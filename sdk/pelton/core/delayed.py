"""Records that wait for their time: taken in, not due yet, in a heap of bounded size."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from pelton.core.run import Item

if TYPE_CHECKING:
    from pelton.core.ownership import Owned

MAX_DELAYED: Final = 10_000
"""Records of one partition that wait in memory for their time; what is over that goes to the timers."""


class Delayed:
    """Records that are due later.

    Args:
        limit: records of one partition.
    """

    def __init__(self, limit: int = MAX_DELAYED) -> None:
        self._limit = limit
        self._heap: list[tuple[int, int, int, Item]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_ms(self) -> int:
        """When the first one is due, broker time; 0 when nothing waits."""
        return self._heap[0][0] if self._heap else 0

    def push(self, due_ms: int, item: Item, *, keep: bool = False) -> bool:
        """Keeps a record until it is due; False when its partition has too many already, unless `keep`.

        A partition has too many, too, when what it finished above the lowest of them leaves no room in its
        commit: it could finish nothing more until that one is due.
        """
        own = item.own
        if not keep and (own.delayed >= self._limit or own.full):
            return False
        own.delayed += 1
        self._pushed += 1
        heapq.heappush(self._heap, (due_ms, item.offset, self._pushed, item))
        return True

    def due(self, at_ms: int) -> Iterator[Item]:
        """Removes and yields what is due."""
        while self._heap and self._heap[0][0] <= at_ms:
            item = heapq.heappop(self._heap)[3]
            item.own.delayed -= 1
            yield item

    def take_lowest(self, own: Owned, most: int) -> list[tuple[int, Item]]:
        """Removes and returns up to `most` records of a partition and their times, lowest offsets first."""
        mine = sorted((entry for entry in self._heap if entry[3].own is own), key=lambda entry: entry[1])
        taken = mine[:most]
        chosen = {entry[2] for entry in taken}
        self._keep(lambda entry: entry[2] not in chosen)
        own.delayed -= len(taken)
        return [(entry[0], entry[3]) for entry in taken]

    def pick(self, dooms: Callable[[Item], bool]) -> None:
        """Keeps records of cancelled calls no longer."""

        def stays(entry: tuple[int, int, int, Item]) -> bool:
            if not dooms(entry[3]):
                return True
            entry[3].own.delayed -= 1
            return False

        self._keep(stays)

    def forget(self, own: Owned) -> None:
        """Keeps nothing of a partition that is gone."""
        self._keep(lambda entry: entry[3].own is not own)
        own.delayed = 0

    def _keep(self, stays: Callable[[tuple[int, int, int, Item]], bool]) -> None:
        left = [entry for entry in self._heap if stays(entry)]
        if len(left) < len(self._heap):
            self._heap = left
            heapq.heapify(left)

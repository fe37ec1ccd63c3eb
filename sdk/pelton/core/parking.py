"""Parked runs: who gave back its place while it waits for calls it made, and who must not start for that."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pelton.core.run import Item, Run

if TYPE_CHECKING:
    from pelton.core.cancelling import Doomed
    from pelton.core.ownership import Owned


class Parking:
    """The parked runs of an engine and the records held back because of them.

    Attempts of one depth that park wait for calls of the next depth. So many of one depth may be parked;
    further records of that depth are held, so that memory and threads stay bounded, and those of other
    depths behind them are still reached.

    Args:
        limit: parked runs of one depth.

    Attributes:
        count: parked runs.
        full: depths at which nothing more may start.
        held_count: records held back.
    """

    def __init__(self, limit: int) -> None:
        self.count = 0
        self.full: set[int] = set()
        self.held_count = 0
        self._limit = limit
        self._at: Counter[int] = Counter()
        self._returning: deque[Run] = deque()
        self._held: dict[int, deque[Item]] = {}

    @property
    def returning(self) -> int:
        """Runs that want to go on."""
        return len(self._returning)

    def enter(self, run: Run) -> None:
        """A run waits for calls it made; its place was freed."""
        run.parked = True
        depth = len(run.ancestry) >> 4
        self.count += 1
        self._at[depth] += 1
        if self._at[depth] >= self._limit:
            self.full.add(depth)

    def leave(self, run: Run) -> None:
        """A run is parked no longer: it goes on, or it is over."""
        run.parked = False
        depth = len(run.ancestry) >> 4
        self.count -= 1
        self._at[depth] -= 1
        if self._at[depth] < self._limit:
            self.full.discard(depth)

    def ask(self, run: Run) -> None:
        """A parked run wants to go on; one whose call is cancelled has little time left, and comes first."""
        if run.cancelled:
            self._returning.appendleft(run)
        else:
            self._returning.append(run)

    def returns(self, run: Run) -> bool:
        """Whether it wants to go on."""
        return run in self._returning

    def come_back(self, slots: int, apart: int) -> Iterator[Run]:
        """Runs that may go on, in the order in which they asked; those that are over among them.

        Args:
            slots: free places in shared executors.
            apart: free places in executors of one run.
        """
        for _ in range(len(self._returning)):
            run = self._returning.popleft()
            if run.parked:
                free = apart if run.apart else slots
                if free <= 0:
                    self._returning.append(run)
                    continue
                if run.apart:
                    apart -= 1
                else:
                    slots -= 1
            yield run

    def hold(self, item: Item) -> None:
        """Keeps a record back until a run of its depth goes on; it counts as waiting."""
        own = item.own
        own.held += 1
        own.queued_bytes += len(item.record.value or b"")
        self.held_count += 1
        self._held.setdefault(depth_of(item), deque()).append(item)

    def pick(self, doomed: Doomed) -> None:
        """Holds no records of cancelled calls any more."""
        for depth, held in list(self._held.items()):
            left = doomed.pick(held)
            for item in set(held).difference(left):
                self._let_go(item)
            if left:
                self._held[depth] = left
            else:
                del self._held[depth]

    def release(self, most: int) -> None:
        """Puts up to `most` records, of each depth where something may start, back into their queues."""
        for depth, held in list(self._held.items()):
            if depth in self.full:
                continue
            free = [held.popleft() for _ in range(min(most, len(held)))]
            if not held:
                del self._held[depth]
            # The first one last: each goes to the head of its queue.
            for item in reversed(free):
                self._let_go(item)
                if item.own.alive and item.offset in item.own.items:
                    item.own.wait(item)

    def take(self, own: Owned, most: int) -> list[Item]:
        """Removes and returns up to `most` held records of a partition, the least nested and oldest first."""
        taken: list[Item] = []
        for depth in sorted(self._held):
            kept: deque[Item] = deque()
            for item in self._held[depth]:
                if item.own is own and len(taken) < most:
                    taken.append(item)
                    self._let_go(item)
                else:
                    kept.append(item)
            if kept:
                self._held[depth] = kept
            else:
                del self._held[depth]
        return taken

    def forget(self, own: Owned) -> None:
        """Holds nothing of a partition that is gone."""
        for depth, held in list(self._held.items()):
            left = deque(item for item in held if item.own is not own)
            self.held_count -= len(held) - len(left)
            if left:
                self._held[depth] = left
            else:
                del self._held[depth]
        own.held = 0

    def _let_go(self, item: Item) -> None:
        self.held_count -= 1
        item.own.held -= 1
        item.own.queued_bytes -= len(item.record.value or b"")


def depth_of(item: Item) -> int:
    """How many ancestors the call of a record has; -1 if the record cannot be read and never runs."""
    headers = item.record.headers
    return -1 if headers is None or item.record.poison else len(headers.ancestry) >> 4


def roots(items: Iterable[Item]) -> list[Item]:
    """Those without a parent that nothing has begun."""
    return [item for item in items if item.run is None and depth_of(item) == 0]

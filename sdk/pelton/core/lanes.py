"""Key order: one lane per key, in which a call starts when the one before it has ended for good."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pelton.core.ownership import Commits, Owned
from pelton.core.run import Item

if TYPE_CHECKING:
    from pelton.core.cancelling import Doomed


class Lanes:
    """The lanes of one assignment: records with one key, in the order of the log.

    The first record of a lane may run. When it is finished, the next one waits until that is committed: an
    owner that comes after this one would run the first again, and after the second had started.

    Attributes:
        waiting: records that wait behind others.
        waited_for: whether a record waits for a commit that was not asked for.
    """

    __slots__ = ("_ended", "_of", "waited_for", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.waited_for = False
        self._of: dict[bytes, deque[Item | None]] = {}
        # Keys whose first record, None by now, is finished and not committed yet.
        self._ended: list[bytes] = []

    def __len__(self) -> int:
        return len(self._of)

    def enter(self, key: bytes, item: Item) -> bool:
        """Whether a record may run; if not it waits in its lane from now on."""
        lane = self._of.get(key)
        if lane is None:
            self._of[key] = deque((item,))
            return True
        if lane[0] is item:
            return True
        if lane[0] is None:
            self.waited_for = True
        lane.append(item)
        self.waiting += 1
        return False

    def head(self, key: bytes) -> Item | None:
        """The record that may run, None when the next one waits for a commit."""
        return self._of[key][0]

    def leave(self, item: Item) -> None:
        """A record is finished, or waits no more."""
        key = lane_of(item)
        lane = None if key is None else self._of.get(key)
        if lane is None or key is None:
            return
        if lane[0] is item:
            lane[0] = None
            self._ended.append(key)
            self.waited_for |= len(lane) > 1
        elif item in lane:
            lane.remove(item)
            self.waiting -= 1

    def take_ended(self) -> list[bytes]:
        """Keys for whose next record a commit has to be asked for."""
        ended, self._ended = self._ended, []
        self.waited_for = False
        return ended

    def go_on(self, key: bytes) -> Item | None:
        """What comes next in a lane, now that the end of the first record is committed."""
        lane = self._of[key]
        lane.popleft()
        if lane:
            self.waiting -= 1
            return lane[0]
        del self._of[key]
        return None

    def behind(self) -> Iterable[Item]:
        """Records that wait behind others."""
        for lane in self._of.values():
            for number, item in enumerate(lane):
                if number and item is not None:
                    yield item


class KeyOrder:
    """Lets records of a function with key order run one after the other, key by key.

    Args:
        commits: of the engine.
        refuse: ends a record whose lane is held by an ancestor of its call.
    """

    def __init__(self, commits: Commits, refuse: Callable[[Item], None]) -> None:
        self._commits = commits
        self._refuse = refuse

    def enter(self, own: Owned, item: Item) -> bool:
        """Whether a record may be begun; if not it waits, and comes back to its queue, or it was ended."""
        key, lanes = lane_of(item), own.lanes
        if key is None or lanes is None or lanes.enter(key, item):
            return True
        own.held += 1
        own.queued_bytes += _size(item)
        head = lanes.head(key)
        if head is not None and _is_below(item, head):
            self._stop_waiting(own, item)
            self._refuse(item)
        return False

    def settle(self, owned: Iterable[Owned], *, due: bool) -> None:
        """Asks for the commits that lanes wait for.

        Args:
            owned: assignments.
            due: whether a commit is made anyway, which then serves the lanes in which nothing waits as well.
        """
        for own in owned:
            lanes = own.lanes
            if lanes is not None and (due or lanes.waited_for) and (ended := lanes.take_ended()):
                self._commits.ask((own,), self._answer(own, lanes, ended))

    def pick(self, own: Owned, doomed: Doomed) -> None:
        """Records of cancelled calls wait in no lane any more."""
        lanes = own.lanes
        if lanes is None or not lanes:
            return
        waiting = deque(lanes.behind())
        for item in set(waiting).difference(doomed.pick(waiting)):
            self._stop_waiting(own, item)

    def _stop_waiting(self, own: Owned, item: Item) -> None:
        if own.lanes is not None:
            own.lanes.leave(item)
        own.held -= 1
        own.queued_bytes -= _size(item)

    def _answer(self, own: Owned, lanes: Lanes, keys: list[bytes]) -> Callable[[bool], None]:
        def committed(acknowledged: bool) -> None:
            if not acknowledged:
                # Only when the partition is gone, and its lanes with it.
                return
            for key in keys:
                item = lanes.go_on(key)
                if item is not None:
                    own.held -= 1
                    own.queued_bytes -= _size(item)
                    own.wait_in_order(item)

        return committed


def lane_of(item: Item) -> bytes | None:
    """The key of a record whose caller gave one; without one it is its call id, and there is no order."""
    record = item.record
    headers, key = record.headers, record.key
    return None if headers is None or key is None or key == headers.call_id else key


def is_keyed(item: Item) -> bool:
    """Whether a record has its place in a lane, which it cannot leave."""
    return item.own.lanes is not None and lane_of(item) is not None


def _is_below(item: Item, head: Item) -> bool:
    """Whether the call of a record is part of what another one does."""
    headers, above = item.record.headers, head.record.headers
    if headers is None or above is None:
        return False
    ancestry, call_id = headers.ancestry, above.call_id
    return any(ancestry[at : at + 16] == call_id for at in range(0, len(ancestry), 16))


def _size(item: Item) -> int:
    return len(item.record.value or b"")

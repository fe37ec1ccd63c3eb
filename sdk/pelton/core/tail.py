"""Tail copies: records that wait in front of the calls of parked runs go to the end of their partition.

Every started call waits for a call it made, and that one lies in the log behind more waiting records than
are kept in memory. Those in front of it, roots nearly always, cannot start, since they would only wait as
well. So they are copied to the end of the same partition, and what is behind them is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pelton.core.call import CallId
from pelton.core.outbox import Outbox
from pelton.core.ownership import Owned
from pelton.core.run import Item

BATCH: Final = 256
"""So many records of a partition are on their way to its end at the same time."""

FIRST_PAUSE_MS: Final = 1_000
LONGEST_PAUSE_MS: Final = 30_000
"""When a round found nothing that could start, the next one waits, longer each time: what the parked runs
wait for is elsewhere, or not in the log yet."""

_REMEMBERED: Final = 65_536


class TailCopies:
    """The copies of one engine.

    Args:
        outbox: sends them.
        finished: called for each record whose copy is acknowledged; it finishes the original.
        failed: called for each record whose copy is not; it waits again.
    """

    def __init__(
        self, outbox: Outbox, finished: Callable[[Item], None], failed: Callable[[Item], None]
    ) -> None:
        self._outbox = outbox
        self._finished = finished
        self._failed = failed
        self._told: set[CallId] = set()

    def room(self, now_ms: int, own: Owned) -> int:
        """How many more records of a partition may be sent to its end now."""
        return 0 if now_ms < own.tail_not_before_ms else BATCH - own.tail_copying

    def send(self, now_ms: int, own: Owned, items: Sequence[Item]) -> None:
        """Sends records to the end of their partition; those that are copies of this round wait."""
        if own.tail_over:
            own.tail_over, own.tail_from = False, -1
        for item in items:
            if own.tail_from >= 0 and item.offset >= own.tail_from and not own.tail_over:
                # Once around: nothing that could start was found.
                own.tail_over = True
                own.tail_pause_ms = min(LONGEST_PAUSE_MS, max(FIRST_PAUSE_MS, own.tail_pause_ms * 2))
                own.tail_not_before_ms = now_ms + own.tail_pause_ms
            if own.tail_over:
                self._failed(item)
                continue
            own.tail_copying += 1
            self._tell(item)

    def reached(self, own: Owned) -> None:
        """A record of the partition has started: the next round begins at once."""
        own.tail_over, own.tail_from = False, -1
        own.tail_pause_ms = own.tail_not_before_ms = 0

    def _tell(self, item: Item) -> None:
        """`moved` is acknowledged before the record leaves its place."""
        headers = item.record.headers
        own = item.own
        if headers is None or headers.call_id in self._told:
            self._copy(item)
            return

        def told(ok: bool, _offset: int) -> None:
            if not ok:
                own.tail_copying -= 1
                self._failed(item)
                return
            if len(self._told) >= _REMEMBERED:
                self._told.clear()
            self._told.add(headers.call_id)
            self._copy(item)

        topic, number = own.partition
        where = f"{topic.name.lower()}/{number}"
        self._outbox.moved(headers.call_id, own.token(headers.attempt), where, told)

    def _copy(self, item: Item) -> None:
        own, record, headers = item.own, item.record, item.record.headers
        if headers is None or not own.alive or own.leaving or item.offset not in own.items:
            own.tail_copying -= 1
            self._failed(item)
            return
        if item.suspect:
            headers = headers._replace(
                may_have_run=max(own.counts.get(item.offset, 0), headers.may_have_run or 0),
                used=max(own.used.get(item.offset, 0), headers.used),
            )

        def copied(ok: bool, at: int) -> None:
            own.tail_copying -= 1
            if not ok:
                self._failed(item)
                return
            if own.tail_from < 0:
                own.tail_from = at
            self._finished(item)

        self._outbox.copy(own.partition, record, headers, copied)

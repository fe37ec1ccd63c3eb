"""Cancelled calls: which requests are known, whom they concern, and what a cancelled call ends with."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from pelton.core.call import CallId, Failure, call_id_text, call_time_ms
from pelton.core.run import Item, Run

if TYPE_CHECKING:
    from pelton.core.ownership import Owned

CANCEL_GRACE_MS: Final = 5_000
"""A cancelled attempt has so long to end by itself; then it loses its executor."""


class Cancellations:
    """The requests to cancel that an instance has read.

    One object serves all engines of an instance: whoever reads the requests adds them, and tells each engine
    of those that are new.

    Args:
        kept_ms: requests for calls older than this are forgotten: no call takes so long.
    """

    def __init__(self, kept_ms: int = 7 * 86_400_000) -> None:
        self._kept_ms = kept_ms
        self._reasons: dict[CallId, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, requests: Mapping[CallId, str]) -> None:
        """Takes requests: reasons by call id."""
        self._reasons.update(requests)

    def forget(self, now_ms: int) -> None:
        """Drops what concerns no call any more."""
        oldest = now_ms - self._kept_ms
        for call_id in [each for each in self._reasons if call_time_ms(each) < oldest]:
            del self._reasons[call_id]

    def why(self, call_id: CallId, ancestry: bytes) -> str:
        """Why a call is cancelled, "" when it is not.

        Args:
            call_id: the call.
            ancestry: its ancestors, 16 bytes each, the root first.
        """
        reasons = self._reasons
        if not reasons:
            return ""
        reason = reasons.get(call_id)
        if reason is not None:
            return reason or "its cancellation was asked for"
        for at in range(0, len(ancestry), 16):
            above = ancestry[at : at + 16]
            if above in reasons:
                return f"so was call {call_id_text(above)}, which it is part of"
        return ""


class Doomed:
    """Waiting records of calls that must not run, cancelled or expired: they end at once, without a slot."""

    def __init__(self, known: Cancellations) -> None:
        self._known = known
        self._items: deque[Item] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def why(self, item: Item) -> str:
        """Why the call of a record is cancelled, "" when it is not, or when the record cannot be read."""
        headers = item.record.headers
        return "" if headers is None else self._known.why(headers.call_id, headers.ancestry)

    def concerns(self, item: Item) -> bool:
        """Whether the call of a record must not run."""
        return item.expired or bool(self.why(item))

    def add(self, item: Item) -> None:
        """Such a record is kept here from now on, and is in no queue."""
        item.own.held += 1
        self._items.append(item)

    def pick(self, items: deque[Item]) -> deque[Item]:
        """Takes the records of calls that must not run; returns the others."""
        left: deque[Item] = deque()
        for item in items:
            if item.run is None and self.concerns(item):
                self.add(item)
            else:
                left.append(item)
        return left

    def ready(self) -> list[Item]:
        """Takes the records that may end now: those whose partition may be worked on."""
        ready: list[Item] = []
        for _ in range(len(self._items)):
            item = self._items.popleft()
            own = item.own
            if item.run is not None or item.offset not in own.items:
                own.held -= 1
            elif (
                own.serving
                and item.offset < own.horizon
                and not (own.full and not own.fills_a_gap(item.offset))
            ):
                own.held -= 1
                ready.append(item)
            else:
                self._items.append(item)
        return ready

    def forget(self, own: Owned) -> None:
        """Knows nothing of a partition that is gone."""
        self._items = deque(item for item in self._items if item.own is not own)


def cancelled_failure(run: Run, end: Failure | None = None) -> Failure:
    """What the outcome of a cancelled call says.

    Args:
        run: the run that ends with it.
        end: how its attempt ended; None if none ran.
    """
    message = f"the call was cancelled: {run.cancelled}"
    if end is None or end.code == "CANCELLED" or end.type.rpartition(".")[2] == "CancelledError":
        return Failure("CallCancelled", message, "", "CANCELLED", attempt=0 if end is None else run.attempt)
    what = f"{end.type}: {end.message}" if end.message else end.type
    return Failure(
        "CallCancelled",
        f"{message} (its attempt ended with {what})",
        end.traceback,
        "CANCELLED",
        attempt=run.attempt,
    )

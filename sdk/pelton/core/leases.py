"""Leases as an instance holds them: what it may start, what it asks for, and when its leases end."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from pelton.core.limits import Lease, LimitRequest, plan_of

LEASE_MS: Final = 8_000
"""A lease ends so long after its last renewal was sent; shorter than the governor's own count."""

REPEAT_MS: Final = 2_000
"""Requests are repeated, and leases renewed, so often."""

IDLE_MS: Final = 30_000
"""Slots that nothing used for so long are given back."""

MARGIN_MS: Final = 500
"""Nothing is started so shortly before a lease ends."""

_REMEMBERED: Final = 64
CLOCK_MARGIN_MS: Final = 5
"""Tokens are not used so close to the ends of their windows: clocks differ by a little."""


@dataclass(slots=True)
class _Held:
    """One limit as this instance knows it.

    Attributes:
        limit, as_of_ms, interval_us: as declared.
        partition: of the limit.
        seq: of the last request.
        sent: when the last requests were sent, by their numbers.
        seen: number of the last grant that was read.
        slots: slots it has, while the lease lasts.
        keep: slots it may keep.
        in_use: slots that attempts hold; those whose lease was lost count until they are over.
        waiting: how many more each user would like.
        expires_ms: when the lease ends.
        sent_ms: when the last request was sent; -1 when there is none to be repeated.
        used_ms: when a slot was used last.
        recorded: slots as the governor wrote them last.
        asked_more: slots or tokens that the last request asked for, beyond what it has; 0 for none.
        windows: of a rate: tokens not used yet, by the time from which they are good.
        planned_us: of a rate: the last grant that was taken in.
    """

    limit: int
    as_of_ms: int
    interval_us: int
    partition: int
    seq: int = 0
    sent: dict[int, int] = field(default_factory=dict)
    seen: int = 0
    slots: int = 0
    keep: int = 0
    in_use: int = 0
    waiting: dict[str, int] = field(default_factory=dict)
    expires_ms: int = 0
    sent_ms: int = -1
    asked_more: int = 0
    used_ms: int = 0
    recorded: int = 0
    windows: list[int] = field(default_factory=list)
    planned_us: int = 0


class LeaseBook:
    """The leases of one instance. Times are milliseconds of a clock that goes on while a machine sleeps.

    Args:
        instance: its id.
        partition_of: the partition of a limit.
    """

    def __init__(self, instance: str, partition_of: Callable[[str], int]) -> None:
        self._instance = instance
        self._partition_of = partition_of
        self._held: dict[str, _Held] = {}
        self._renewed_ms: dict[int, int] = {}

    def declare(self, key: str, limit: int, as_of_ms: int, interval_us: int = 0) -> None:
        """A limit that may be used from now on; see `LimitRequest` for its parts."""
        held = self._held.get(key)
        if held is None:
            partition = self._partition_of(key)
            self._held[key] = _Held(limit, as_of_ms, interval_us, partition)
        elif as_of_ms > held.as_of_ms:
            held.limit, held.as_of_ms, held.interval_us = limit, as_of_ms, interval_us

    # ---- use ----

    def use(self, key: str, at_ms: int) -> bool:
        """Takes a slot; False when there is none now."""
        held = self._held[key]
        if held.in_use >= min(held.slots, held.keep) or at_ms >= held.expires_ms - MARGIN_MS:
            return False
        held.in_use += 1
        held.used_ms = at_ms
        return True

    def done(self, key: str, at_ms: int) -> bool:
        """Gives back a slot that `use` gave; returns whether others wait for it."""
        held = self._held[key]
        held.in_use -= 1
        held.used_ms = at_ms
        return held.keep < held.slots

    def token(self, key: str, broker_ms: int) -> int:
        """Takes a token of a rate; returns until when, broker time, its attempt must have begun, or 0."""
        held = self._held[key]
        lasts_ms = plan_of(held.interval_us, held.limit).window_ms - CLOCK_MARGIN_MS
        windows = held.windows
        while windows and windows[0] + lasts_ms <= broker_ms:
            windows.pop(0)
        if not windows or windows[0] + CLOCK_MARGIN_MS > broker_ms:
            return 0
        return windows.pop(0) + lasts_ms

    def next_token_ms(self, key: str) -> int:
        """From when, broker time, the next token is good; 0 when there is none."""
        windows = self._held[key].windows
        return windows[0] + CLOCK_MARGIN_MS if windows else 0

    def want(self, key: str, user: str, count: int) -> None:
        """How many more slots or tokens a user would like now; 0 for none."""
        waiting = self._held[key].waiting
        if count:
            waiting[user] = count
        else:
            waiting.pop(user, None)

    # ---- requests ----

    def requests(self, at_ms: int) -> list[tuple[int, LimitRequest]]:
        """What is to be sent now, with its partition; counts as sent."""
        made: list[tuple[int, LimitRequest]] = []
        for key, held in list(self._held.items()):
            request = self._rate_request(key, held, at_ms) if held.interval_us else None
            if not held.interval_us:
                request = self._slots_request(key, held, at_ms)
            if request is not None:
                held.sent_ms = held.sent[held.seq] = self._renewed_ms[held.partition] = at_ms
                held.sent.pop(held.seq - _REMEMBERED, None)
                made.append((held.partition, request))
        for partition in {held.partition for held in self._held.values() if held.slots}:
            if at_ms - self._renewed_ms.get(partition, -REPEAT_MS) >= REPEAT_MS:
                self._renewed_ms[partition] = at_ms
                made.append((partition, LimitRequest(self._instance)))
        return made

    def release(self, at_ms: int) -> list[tuple[int, LimitRequest]]:
        """Gives back everything: nothing runs any more. To be sent."""
        made = []
        for key, held in self._held.items():
            if held.slots or held.waiting or held.recorded:
                held.slots = held.keep = held.in_use = 0
                held.waiting.clear()
                made.append((held.partition, self._request(key, held, 0, 0)))
        return made

    def _slots_request(self, key: str, held: _Held, at_ms: int) -> LimitRequest | None:
        waiting = sum(held.waiting.values())
        idle = not waiting and not held.in_use and at_ms - held.used_ms >= IDLE_MS
        claimed = 0 if idle else max(min(held.in_use, held.slots), min(held.slots, held.keep))
        gives_back = claimed < held.slots
        wants_more = waiting > 0 and held.in_use + waiting > claimed
        again = held.sent_ms < 0 or at_ms - held.sent_ms >= REPEAT_MS
        # What the governor wrote last is not what this instance claims: it has not read that yet.
        unsettled = held.recorded != claimed
        more = wants_more and held.asked_more < held.in_use + waiting
        if not (gives_back or more or (again and (wants_more or unsettled or held.asked_more))):
            return None
        held.slots, held.keep = claimed, min(held.keep, claimed)
        held.asked_more = held.in_use + waiting if wants_more else 0
        return self._request(key, held, claimed, held.in_use + waiting)

    def _rate_request(self, key: str, held: _Held, at_ms: int) -> LimitRequest | None:
        wanted = sum(held.waiting.values()) - len(held.windows)
        again = held.sent_ms < 0 or at_ms - held.sent_ms >= REPEAT_MS
        if wanted <= 0 or (not again and wanted <= held.asked_more):
            if again and held.asked_more and wanted <= 0:
                held.asked_more = 0
                return self._request(key, held, 0, 0)
            return None
        held.asked_more = wanted
        return self._request(key, held, 0, wanted)

    def _request(self, key: str, held: _Held, claimed: int, wanted: int) -> LimitRequest:
        held.seq += 1
        return LimitRequest(
            self._instance,
            key,
            held.seq,
            held.seen,
            claimed,
            wanted,
            held.limit,
            held.as_of_ms,
            held.interval_us,
        )

    # ---- what comes back ----

    def acknowledged(self, partition: int, sent_ms: int, at_ms: int) -> None:
        """A request that was sent at `sent_ms` is in the log: it renews what has not ended meanwhile."""
        for held in self._held.values():
            if held.partition == partition and held.slots and held.expires_ms > at_ms:
                held.expires_ms = max(held.expires_ms, sent_ms + LEASE_MS)

    def granted(self, lease: Lease, at_ms: int) -> bool:
        """A lease of this instance was read; returns whether something may start that could not before."""
        held = self._held.get(lease.key)
        if held is None or lease.instance != self._instance:
            return False
        if held.interval_us:
            return self._take_tokens(held, lease)
        held.recorded, held.seen = lease.slots, lease.grant
        if not held.slots:
            # It lasts from when what it answers was sent; that this was long ago means a long sleep.
            held.expires_ms = held.sent.get(lease.seq, -LEASE_MS) + LEASE_MS
        if held.expires_ms <= at_ms:
            return False
        if lease.slots > held.slots:
            held.asked_more, held.used_ms = 0, at_ms
        held.slots, held.keep = lease.slots, lease.keep
        return held.in_use < min(held.slots, held.keep)

    def _take_tokens(self, held: _Held, lease: Lease) -> bool:
        if lease.planned_us <= held.planned_us:
            return False
        held.planned_us = lease.planned_us
        held.asked_more = max(0, held.asked_more - len(lease.windows))
        for window in lease.windows:
            insort(held.windows, window)
        return bool(lease.windows)

    def deleted(self, key: str) -> bool:
        """The governor has deleted the lease of a limit; returns whether slots were lost."""
        held = self._held.get(key)
        if held is None:
            return False
        held.recorded = 0
        lost, held.slots, held.keep, held.asked_more = held.slots > 0, 0, 0, 0
        return lost

    def expired(self, at_ms: int) -> list[str]:
        """Limits whose leases ended; their slots are gone, and what holds them must not go on."""
        ended = [key for key, held in self._held.items() if held.slots and held.expires_ms <= at_ms]
        for key in ended:
            held = self._held[key]
            held.slots = held.keep = 0
            held.asked_more = 0
        return ended

    @property
    def ends_ms(self) -> int:
        """When the first lease ends that attempts run under; 0 when none does."""
        times = [held.expires_ms for held in self._held.values() if held.slots and held.in_use]
        return min(times, default=0)

    def slots(self, keys: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Slots and those in use, for those who ask."""
        return {key: (self._held[key].slots, self._held[key].in_use) for key in keys if key in self._held}

"""The governor's decisions: who gets how many slots and tokens of each limit, and who loses them.

It is told what it reads and the time, and says which leases are to be written. What it decided counts only
once that is committed: when writing fails, its partition is forgotten and read anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pelton.core.limits import Lease, LimitRequest, plan_of

EXPIRY_MS: Final = 9_000
"""An instance that was not heard of for so long has lost its leases; longer than its own count of them."""

TENURE_MS: Final = 250
"""Who got a slot keeps it so long, though others wait: handing it over costs two round trips."""

AHEAD_MS: Final = 500
"""Tokens are granted so long before they are good: longer than a grant takes to reach its instance."""

FORGET_RATE_MS: Final = 600_000
"""A rate nobody asked for in this time is forgotten, if its plan lies in the past."""


@dataclass(slots=True)
class _Share:
    """What one instance has and wants of one limit.

    Attributes:
        seq, grant, slots, keep: as in its lease.
        claimed: slots that its instance claimed since the lease was written; -1 when it has not.
        wanted: as in its last request.
        served_ms: when it got its last slot or token; who was not served for longest comes first.
        written: the lease as it was written last.
    """

    seq: int = 0
    grant: int = 0
    slots: int = 0
    keep: int = 0
    claimed: int = -1
    wanted: int = 0
    served_ms: int = -1
    written: Lease | None = None


@dataclass(slots=True)
class _Limit:
    """One limit and its shares."""

    key: str
    partition: int
    limit: int = 0
    as_of_ms: int = -1
    interval_us: int = 0
    planned_us: int = 0
    asked_ms: int = 0
    shares: dict[str, _Share] = field(default_factory=dict)


@dataclass(slots=True)
class _Partition:
    """What is known of a partition.

    Attributes:
        loaded: whether all its leases were read.
        heard: when each instance was heard of last.
        check_at: the end of the requests that has to be read before `suspects` lose their leases.
        suspects: instances that were silent too long when that end was asked for, and when each was heard.
    """

    loaded: bool = False
    heard: dict[str, int] = field(default_factory=dict)
    check_at: int = -1
    suspects: dict[str, int] = field(default_factory=dict)


Grant = tuple[int, str, str, Lease | None]
"""Partition, limit and instance of a lease to be written; None to delete it."""


class Governor:
    """Decides for the partitions it owns. Times are milliseconds of a clock that does not step.

    Args:
        expiry_ms: see `EXPIRY_MS`.
        tenure_ms: see `TENURE_MS`.
    """

    def __init__(self, expiry_ms: int = EXPIRY_MS, tenure_ms: int = TENURE_MS) -> None:
        self._expiry_ms, self._tenure_ms = expiry_ms, tenure_ms
        self._partitions: dict[int, _Partition] = {}
        self._limits: dict[str, _Limit] = {}
        self._dirty: set[str] = set()
        self._wake: dict[str, int] = {}

    # ---- membership and state ----

    def assigned(self, partition: int) -> None:
        """A partition is ours; nothing is decided in it before `loaded`."""
        self.gone(partition)
        self._partitions[partition] = _Partition()

    def gone(self, partition: int) -> None:
        """A partition is not ours any more, or has to be read anew."""
        self._partitions.pop(partition, None)
        for key in [key for key, limit in self._limits.items() if limit.partition == partition]:
            del self._limits[key]
            self._dirty.discard(key)
            self._wake.pop(key, None)

    def lease(self, partition: int, lease: Lease) -> None:
        """A lease that was in the log when the partition was assigned; the newest of its key."""
        limit = self._limit(partition, lease.key)
        if lease.as_of_ms >= limit.as_of_ms:
            limit.limit, limit.as_of_ms, limit.interval_us = lease.limit, lease.as_of_ms, lease.interval_us
        limit.planned_us = max(limit.planned_us, lease.planned_us)
        # What it wants is not known before it says so; that it needs what it has is the safe belief.
        limit.shares[lease.instance] = _Share(
            lease.seq, lease.grant, lease.slots, lease.keep, lease.slots, written=lease
        )

    def loaded(self, partition: int, at_ms: int) -> None:
        """All leases of a partition were given: each counts as renewed now."""
        own = self._partitions[partition]
        own.loaded = True
        for limit in self._limits.values():
            if limit.partition == partition:
                own.heard.update(dict.fromkeys(limit.shares, at_ms))
                limit.asked_ms = at_ms
                for share in limit.shares.values():
                    share.served_ms = at_ms if share.slots else -1
                self._dirty.add(limit.key)

    # ---- requests ----

    def request(self, partition: int, request: LimitRequest, at_ms: int) -> None:
        """A request was read."""
        own = self._partitions.get(partition)
        if own is None or not own.loaded:
            # Requests are repeated; what is not known yet would be judged wrongly.
            return
        own.heard[request.instance] = at_ms
        if not request.key or request.limit < 1:
            return
        limit = self._limit(partition, request.key)
        if request.as_of_ms >= limit.as_of_ms:
            limit.limit, limit.as_of_ms = request.limit, request.as_of_ms
            limit.interval_us = request.interval_us
        limit.asked_ms = at_ms
        share = limit.shares.setdefault(request.instance, _Share())
        # Claims about an earlier grant, or a lease that was lost, mean nothing; nobody gets more by claiming.
        if request.seen == share.grant:
            share.claimed = share.slots = min(share.slots, request.held)
            share.keep = min(share.keep, share.slots)
        share.grant = max(share.grant, request.seen)
        share.seq, share.wanted = request.seq, request.wanted
        self._dirty.add(request.key)

    # ---- expiry ----

    def overdue(self, at_ms: int) -> list[int]:
        """Partitions with instances that were silent too long; `check` is to follow for each."""
        return [
            partition
            for partition, own in self._partitions.items()
            if own.loaded
            and own.check_at < 0
            and any(at_ms - heard_ms > self._expiry_ms for heard_ms in own.heard.values())
        ]

    def check(self, partition: int, end: int, at_ms: int) -> None:
        """The end of the requests, asked for after `at_ms`: what is below it may still renew a lease."""
        own = self._partitions.get(partition)
        if own is not None:
            own.check_at = end
            own.suspects = {
                instance: heard_ms
                for instance, heard_ms in own.heard.items()
                if at_ms - heard_ms > self._expiry_ms
            }

    def reached(self, partition: int, offset: int) -> None:
        """All requests below this offset were given."""
        own = self._partitions.get(partition)
        if own is None or own.check_at < 0 or offset < own.check_at:
            return
        silent = {name for name, heard_ms in own.suspects.items() if own.heard.get(name) == heard_ms}
        own.check_at, own.suspects = -1, {}
        for instance in silent:
            del own.heard[instance]
        for limit in self._limits.values():
            if limit.partition == partition:
                for instance in silent & limit.shares.keys():
                    share = limit.shares[instance]
                    share.slots = share.keep = share.wanted = 0
                    self._dirty.add(limit.key)

    # ---- decisions ----

    def decide(self, at_ms: int, broker_ms: int) -> list[Grant]:
        """The leases to be written now.

        Args:
            at_ms: the time.
            broker_ms: broker time: tokens are granted in it.
        """
        due = [key for key, wake_ms in self._wake.items() if wake_ms <= at_ms]
        for key in due:
            del self._wake[key]
        dirty, grants = self._dirty.union(due), list[Grant]()
        for key in sorted(dirty):
            limit = self._limits.get(key)
            own = None if limit is None else self._partitions.get(limit.partition)
            if limit is None or own is None or not own.loaded:
                continue
            self._dirty.discard(key)
            if limit.interval_us:
                grants += self._grant_tokens(limit, at_ms, broker_ms)
            else:
                grants += self._grant_slots(limit, at_ms, broker_ms)
            if not limit.shares:
                self._limits.pop(key)
        return grants

    def next_ms(self) -> int:
        """When `decide` should be called again without anything new; 0 for no such time."""
        return min(self._wake.values(), default=0)

    def holders(self, key: str) -> Mapping[str, int]:
        """Slots of each instance, for those who ask why something waits."""
        limit = self._limits.get(key)
        return {} if limit is None else {name: share.slots for name, share in limit.shares.items()}

    def _limit(self, partition: int, key: str) -> _Limit:
        limit = self._limits.get(key)
        if limit is None:
            limit = self._limits[key] = _Limit(key, partition)
        return limit

    def _grant_slots(self, limit: _Limit, at_ms: int, broker_ms: int) -> list[Grant]:
        shares = limit.shares
        targets = self._targets(limit, at_ms)
        free = limit.limit - sum(share.slots for share in shares.values())
        for name, share in sorted(shares.items(), key=lambda entry: entry[1].served_ms):
            more = min(free, targets[name] - share.slots)
            if more > 0:
                share.slots += more
                share.served_ms = at_ms
                free -= more
        # Slots are asked back only for somebody who waits for them.
        missing = sum(max(0, targets[name] - share.slots) for name, share in shares.items())
        for name, share in shares.items():
            share.keep = min(share.slots, targets[name]) if missing else share.slots
        return self._changed(limit, broker_ms)

    def _targets(self, limit: _Limit, at_ms: int) -> dict[str, int]:
        """So many slots each should have: the same for all, but nobody more than it wants."""
        shares = limit.shares
        targets = dict.fromkeys(shares, 0)
        left = limit.limit
        asking = [name for name, share in shares.items() if share.wanted > 0]
        while asking and left >= len(asking):
            each = left // len(asking)
            for name in asking:
                more = min(each, shares[name].wanted - targets[name])
                targets[name] += more
                left -= more
            asking = [name for name in asking if shares[name].wanted > targets[name]]
        # The rest goes to those whose turn it is: who has had it for a short time only, then who waited most.
        turn = sorted(asking, key=lambda name: self._rank(limit, name, targets[name], at_ms))
        for name in turn[:left]:
            targets[name] += 1
        late = [shares[name].served_ms + self._tenure_ms for name in turn[:left] if shares[name].slots]
        if len(turn) > left and (ends := [ms for ms in late if ms > at_ms]):
            self._wake[limit.key] = min(ends)
        return targets

    def _rank(self, limit: _Limit, name: str, target: int, at_ms: int) -> tuple[bool, bool, int, str]:
        share = limit.shares[name]
        has_more = share.slots > target
        young = has_more and at_ms - share.served_ms < self._tenure_ms
        # While everybody has some, who has one more than others is no reason to move it.
        settled = has_more and target > 0
        return (not young, not settled, share.served_ms, name)

    def _changed(self, limit: _Limit, broker_ms: int) -> list[Grant]:
        grants: list[Grant] = []
        for name, share in list(limit.shares.items()):
            if not share.slots and not share.wanted:
                del limit.shares[name]
                if share.written is not None:
                    grants.append((limit.partition, limit.key, name, None))
                continue
            written = share.written
            if written is None and not share.slots:
                continue
            # Slots that were given back and granted again are another grant, though it looks the same.
            regranted = 0 <= share.claimed < share.slots
            if written is None or regranted or (written.slots, written.keep) != (share.slots, share.keep):
                share.claimed = -1
                # Never a number that was there before, also not before its lease was deleted: what is claimed
                # of one grant must not be taken for another.
                share.grant = max(share.grant + 1, broker_ms)
                share.written = Lease(
                    limit.key,
                    name,
                    share.seq,
                    share.grant,
                    share.slots,
                    share.keep,
                    limit.limit,
                    limit.as_of_ms,
                )
                grants.append((limit.partition, limit.key, name, share.written))
        return grants

    def _grant_tokens(self, limit: _Limit, at_ms: int, broker_ms: int) -> list[Grant]:
        plan = plan_of(limit.interval_us, limit.limit)
        now_us, shares = broker_ms * 1000, limit.shares
        windows: dict[str, list[int]] = {}
        while asking := [name for name, share in shares.items() if share.wanted > 0]:
            at_us = max(now_us, limit.planned_us - plan.ahead_us)
            if at_us > now_us + AHEAD_MS * 1000:
                self._wake[limit.key] = at_ms + (at_us - now_us) // 1000 - AHEAD_MS + 1
                break
            name = min(asking, key=lambda each: (shares[each].served_ms, each))
            shares[name].wanted -= 1
            # Whoever was served comes after all others, also within one moment.
            shares[name].served_ms = max(share.served_ms for share in shares.values()) + 1
            # Rounded up: a token is never good before its time.
            windows.setdefault(name, []).append(-(-at_us // 1000))
            limit.planned_us = max(limit.planned_us, at_us) + plan.interval_us
        grants: list[Grant] = []
        for name, granted in windows.items():
            share = shares[name]
            share.written = Lease(
                limit.key,
                name,
                share.seq,
                limit=limit.limit,
                as_of_ms=limit.as_of_ms,
                interval_us=limit.interval_us,
                planned_us=limit.planned_us,
                windows=tuple(granted),
            )
            grants.append((limit.partition, limit.key, name, share.written))
        return grants + self._forget(limit, at_ms, now_us)

    def _forget(self, limit: _Limit, at_ms: int, now_us: int) -> list[Grant]:
        """Deletes what says nothing any more: a rate whose plan is over and that nobody wants."""
        if any(share.wanted for share in limit.shares.values()):
            return []
        idle_ms = at_ms - limit.asked_ms
        if idle_ms < FORGET_RATE_MS or limit.planned_us > now_us:
            self._wake.setdefault(limit.key, at_ms + FORGET_RATE_MS)
            return []
        names = [name for name, share in limit.shares.items() if share.written is not None]
        limit.shares.clear()
        return [(limit.partition, limit.key, name, None) for name in names]

"""Limits: what a function declares, what instances ask the governor for, and what it grants them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

LONGEST_WINDOW_MS: Final = 250
"""A token of a rate is good for so long at most; what an instance cannot use by then is lost."""

SHORTEST_WINDOW_MS: Final = 25
"""Less than this is over before an attempt has reached its executor."""

CONCURRENCY: Final = "concurrency"
RATE: Final = "rate"


@dataclass(frozen=True, slots=True)
class ConcurrencySpec:
    """How many attempts may run at a time.

    Attributes:
        limit: so many, from 1.
        key: name of a limit shared by functions, "" for the function's own.
        per: whether each value of the calls' limit key (a tenant) has a limit of its own.
    """

    limit: int
    key: str = ""
    per: bool = False


@dataclass(frozen=True, slots=True)
class RateSpec:
    """How many attempts may start in a time.

    Attributes:
        rate: so many, from 1, in each
        per_ms: milliseconds.
        burst: so many at once, from 1.
        key: name of a limit shared by functions, "" for the function's own.
    """

    rate: int
    per_ms: int
    burst: int
    key: str = ""


def limit_key(kind: str, function: str, shared: str = "", part: str = "") -> str:
    """The name of a limit in the topics of limits.

    Args:
        kind: `CONCURRENCY` or `RATE`.
        function: whose limit it is.
        shared: name of a limit of several functions, "" for none.
        part: the tenant, "" for none; any text.
    """
    name = f"@{shared}" if shared else function
    return f"{kind}/{name}/{part}" if part else f"{kind}/{name}"


class RatePlan(NamedTuple):
    """How tokens are planned so that starts anywhere in their windows keep the promise.

    A token may be used up to a window after the time it is planned for. So the plan has that much less burst
    than was declared; with a burst of 1 its tokens lie that much further apart.

    Attributes:
        interval_us: microseconds between two tokens.
        ahead_us: by how much a token may come before its turn: the rest of the burst.
        window_ms: for how long a token is good.
    """

    interval_us: int
    ahead_us: int
    window_ms: int


def plan_of(interval_us: int, burst: int) -> RatePlan:
    """The plan of a rate.

    Args:
        interval_us: microseconds between two tokens as declared.
        burst: tokens at once as declared, from 1.
    """
    fitting_ms = interval_us * max(1, burst - 1) // 2000
    window_ms = max(SHORTEST_WINDOW_MS, min(LONGEST_WINDOW_MS, fitting_ms))
    window_us = window_ms * 1000
    ahead_us = (burst - 1) * interval_us - window_us
    if ahead_us >= 0:
        return RatePlan(interval_us, ahead_us, window_ms)
    return RatePlan(interval_us + window_us, 0, window_ms)


def interval_us_of(spec: RateSpec) -> int:
    """Microseconds between two tokens; rounded up, so that a limit is never exceeded by rounding."""
    return -(-spec.per_ms * 1000 // spec.rate)


class LimitRequest(NamedTuple):
    """What an instance says to the governor (topic `control.limit-requests`, key: the limit).

    Any of them renews all leases of the instance whose limits lie on the same partition.

    Attributes:
        instance: who asks.
        key: the limit; "" for a renewal alone.
        seq: counts the requests of this instance for this limit, from 1.
        seen: number of the last grant it has read: what it claims is said of that one, and means nothing to
            a later one.
        held: slots it claims from now on, at most what it was granted.
        wanted: slots it would like to have together; of a rate: tokens it would like to have now.
        limit: slots there are as its function declares it; of a rate: the burst.
        as_of_ms: when that was deployed: what was deployed last counts.
        interval_us: of a rate: microseconds between two tokens; 0 for slots.
    """

    instance: str
    key: str = ""
    seq: int = 0
    seen: int = 0
    held: int = 0
    wanted: int = 0
    limit: int = 0
    as_of_ms: int = 0
    interval_us: int = 0


class Lease(NamedTuple):
    """What the governor granted an instance (topic `control.limits`, key: the limit and the instance).

    Attributes:
        key: the limit.
        instance: whose lease it is.
        seq: of the last request that was read before this.
        grant: number of what was written for this limit and instance; rises, and never comes again.
        slots: slots it has.
        keep: so many of them it may keep; the others it gives back as they get free, since others wait.
        limit, as_of_ms, interval_us: of the limit, as in a request.
        planned_us: of a rate: the time, broker microseconds, of the next token in its plan.
        windows: of a rate: times, broker milliseconds, from which tokens are good.
    """

    key: str
    instance: str
    seq: int
    grant: int = 0
    slots: int = 0
    keep: int = 0
    limit: int = 0
    as_of_ms: int = 0
    interval_us: int = 0
    planned_us: int = 0
    windows: tuple[int, ...] = ()

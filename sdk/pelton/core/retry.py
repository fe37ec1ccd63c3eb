"""Retries: whether a failed attempt is followed by another one, when, and how storms of them are spaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from pelton.core.call import Failure

CODES: Final = (
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""The names of gRPC's status codes, except OK."""

RETRIED_CODES: Final = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")
"""Codes after which a function with a retry policy is tried again."""

IN_PROCESS_MS: Final = 1_000
"""Up to this delay the next attempt waits in the instance."""

IN_TOPIC_MS: Final = 30_000
"""Up to this delay it waits in the topic of retries; longer ones are timers."""

IN_PLACE_MS: Final = 60_000
"""With key order a call waits in its place, and never longer than this."""

RETRIES_PER_SECOND: Final = 200.0
"""Retries of a function that an instance starts in a second, when everything fails."""

RETRY_BURST: Final = 1_000
"""So many come at once before they are spaced."""


@dataclass(frozen=True, slots=True)
class RetrySpec:
    """How attempts follow each other.

    Attributes:
        initial_ms: delay before the second attempt.
        multiplier: by which each further delay is longer.
        max_wait_ms: longest delay.
        jitter: part of a delay that chance decides, 0 to 1: a delay of 10 s with 0.5 is 5 to 10 s.
        codes: failures that are retried, whoever says so; `Failure.retriable` says it for one failure.
    """

    initial_ms: int = 100
    multiplier: float = 2.0
    max_wait_ms: int = 1_000
    jitter: float = 0.5
    codes: tuple[str, ...] = ("UNAVAILABLE",)


NO_POLICY: Final = RetrySpec()
"""Without a policy of its own a function is tried again only when what ran it was lost."""


class Again(NamedTuple):
    """There is a further attempt.

    Attributes:
        due_ms: not before this broker time.
        used: attempts used by then.
    """

    due_ms: int
    used: int


class RetryBudget:
    """Spaces the retries of an instance, so that a storm of them does not keep down what it waits for.

    Never drops one: what is over the budget is due later. The first `burst` come when they are due, further
    ones at `per_second`; what was not used gathers again, up to the burst.

    Args:
        per_second: at least 1.
        burst: at least 1.
    """

    def __init__(self, per_second: float = RETRIES_PER_SECOND, burst: int = RETRY_BURST) -> None:
        self._interval_ms = 1000.0 / max(1.0, per_second)
        self._tolerance_ms = self._interval_ms * (max(1, burst) - 1)
        self._next_ms = 0.0

    def due(self, due_ms: int) -> int:
        """When a retry may start that should start at `due_ms`; takes its place in the budget."""
        at = max(self._next_ms, float(due_ms))
        self._next_ms = at + self._interval_ms
        return max(due_ms, int(at - self._tolerance_ms + 0.999))


def delay_ms(spec: RetrySpec, used: int, dice: float) -> int:
    """How long to wait before the next attempt.

    Args:
        spec: the policy.
        used: attempts used, from 1.
        dice: from 0 to 1.
    """
    try:
        full = min(float(spec.max_wait_ms), spec.initial_ms * spec.multiplier ** (used - 1))
    except OverflowError:
        full = float(spec.max_wait_ms)
    return round(full * (1.0 - spec.jitter) + full * spec.jitter * dice)


def decide(
    spec: RetrySpec,
    budget: RetryBudget,
    failure: Failure,
    *,
    used: int,
    max_attempts: int,
    at_ms: int,
    deadline_ms: int,
    longest_ms: int,
    dice: float,
) -> Again | None:
    """Whether a failed attempt is followed by another one, and when; None to give the call up.

    Args:
        spec: the policy.
        budget: of the instance; asked only if there is a next attempt.
        failure: what ended the attempt; its `after_ms` beats the policy's delay.
        used: attempts used, this one included.
        max_attempts: attempts granted.
        at_ms: broker time.
        deadline_ms: broker time after which it must not start; 0 for none.
        longest_ms: delays are cut to this; 0 for no limit.
        dice: from 0 to 1.
    """
    if used >= max_attempts or not (failure.retriable or failure.code in spec.codes):
        return None
    delay = failure.after_ms if failure.after_ms >= 0 else delay_ms(spec, used, dice)
    if longest_ms:
        delay = min(delay, longest_ms)
    if deadline_ms and at_ms + delay > deadline_ms:
        return None
    return Again(budget.due(at_ms + delay), used)

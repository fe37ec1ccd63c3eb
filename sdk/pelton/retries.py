"""Retry policies: how often, how soon and after which failures a call is tried again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from pelton.core.retry import CODES, IN_PLACE_MS, RETRIED_CODES, RetrySpec
from pelton.errors import DefinitionError
from pelton.policies import checked_count, checked_timeout
from pelton.runtime.retrying import NEVER, RetryRule

MAX_RETRIES: Final = 1000
"""More is a loop that nobody watches: the tick of a schedule is for what never ends."""

RetryOn = type[BaseException] | str | Callable[[BaseException], object]
"""What `retry_on` holds: an exception type, a gRPC status name, or a question about the exception."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How failed attempts of a function are followed by others.

    After an attempt that failed with UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED or ABORTED, or with
    what `retry_on` names, the call waits and is tried again, `max_retries` times at most. The n-th delay is
    `initial * multiplier ** (n - 1)`, at most `max_wait`, of which chance takes away up to the part `jitter`.

    Attributes:
        max_retries: attempts after the first one, 0 to 1,000.
        initial: delay before the second attempt, seconds or a `timedelta`.
        multiplier: by which each further delay is longer, from 1 to 100.
        max_wait: longest delay, seconds or a `timedelta`, up to 7 days.
        jitter: 0 to 1; with 0.5 a delay of 10 s is 5 to 10 s.
        retry_on: one or more exception types (with their subclasses), gRPC status names, or functions that
            are given the exception and say whether to try again.

    Raises:
        DefinitionError: a value is none of that.
    """

    max_retries: int = 3
    initial: float | timedelta = 1.0
    multiplier: float = 2.0
    max_wait: float | timedelta = 60.0
    jitter: float = 0.5
    retry_on: RetryOn | Iterable[RetryOn] = ()

    def __post_init__(self) -> None:
        checked_count("RetryPolicy", "max_retries", self.max_retries, low=0, high=MAX_RETRIES)
        initial = checked_timeout("RetryPolicy", self.initial, "initial")
        if initial > checked_timeout("RetryPolicy", self.max_wait, "max_wait") or not initial:
            raise DefinitionError(
                f"RetryPolicy: initial={self.initial!r} is above max_wait={self.max_wait!r}, or one of them "
                "is missing; give both, or neither"
            )
        _check_number("multiplier", self.multiplier, 1.0, 100.0)
        _check_number("jitter", self.jitter, 0.0, 1.0)
        # A generator must not be used up by the check.
        object.__setattr__(self, "retry_on", _conditions(self.retry_on))

    @property
    def spec(self) -> RetrySpec:
        """What the registry is told."""
        return RetrySpec(
            initial_ms=checked_timeout("RetryPolicy", self.initial, "initial"),
            multiplier=float(self.multiplier),
            max_wait_ms=checked_timeout("RetryPolicy", self.max_wait, "max_wait"),
            jitter=float(self.jitter),
            codes=self._codes(),
        )

    @property
    def rule(self) -> RetryRule:
        """How executors judge what user code raises."""
        conditions: tuple[Any, ...] = _conditions(self.retry_on)
        types = tuple(each for each in conditions if isinstance(each, type))
        predicates = tuple(each for each in conditions if not isinstance(each, (type, str)))
        return RetryRule(frozenset(self._codes()), types, predicates)

    def _codes(self) -> tuple[str, ...]:
        named = [each for each in _conditions(self.retry_on) if isinstance(each, str)]
        return tuple(sorted({*RETRIED_CODES, *named}))


def checked_retries(owner: str, retries: object, retry_policy: object) -> RetryPolicy | None:
    """The policy that `retries=` or `retry_policy=` give; None for neither.

    Raises:
        DefinitionError: both, or something else than a number or a `RetryPolicy`.
    """
    if retries is not None and retry_policy is not None:
        raise DefinitionError(f"{owner}: retries= and retry_policy= are the same; give one of them")
    keyword, value = ("retries", retries) if retries is not None else ("retry_policy", retry_policy)
    if value is None or isinstance(value, RetryPolicy):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return RetryPolicy(max_retries=checked_count(owner, keyword, value, low=0, high=MAX_RETRIES))
    raise DefinitionError(
        f"{owner}: {keyword} is how often to try again, like 3, or a RetryPolicy, not {value!r}"
    )


def check_in_place(owner: str, policy: RetryPolicy | None) -> None:
    """Refuses long delays of a function with key order: the calls behind would wait as long.

    Raises:
        DefinitionError: a delay may be above 60 s.
    """
    if policy is not None and policy.spec.max_wait_ms > IN_PLACE_MS:
        raise DefinitionError(
            f'{owner}: with ordering="key" a failed call holds up those behind it, so max_wait is at most '
            f"{IN_PLACE_MS // 1000} s, not {policy.max_wait!r}"
        )


def rule_of(policy: RetryPolicy | None) -> RetryRule:
    """How executors judge what user code raises under a policy, or without one."""
    return NEVER if policy is None else policy.rule


def _conditions(given: Any) -> tuple[Any, ...]:
    if isinstance(given, (type, str)) or callable(given) or not isinstance(given, Iterable):
        given = (given,)
    conditions = tuple(given)
    for condition in conditions:
        if isinstance(condition, str):
            if condition not in CODES:
                raise DefinitionError(
                    f"RetryPolicy: {condition!r} in retry_on is no gRPC status name: {', '.join(CODES)}"
                )
        elif isinstance(condition, type):
            if not issubclass(condition, BaseException):
                raise DefinitionError(
                    f"RetryPolicy: {condition.__qualname__} in retry_on is no exception type"
                )
        elif not callable(condition):
            raise DefinitionError(
                "RetryPolicy: retry_on holds exception types, gRPC status names and functions of the "
                f"exception, not {condition!r}"
            )
    return conditions


def _check_number(keyword: str, value: object, low: float, high: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise DefinitionError(f"RetryPolicy: {keyword} is between {low:g} and {high:g}, not {value!r}")

"""Whether a failed attempt may be tried again, as its function declares; judged where the exception is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from pelton.core.call import Failure
from pelton.errors import Retry
from pelton.runtime.codes import code_of
from pelton.runtime.failures import failure_of

_log = logging.getLogger("pelton.runtime")


@dataclass(frozen=True, slots=True)
class RetryRule:
    """What a function asks for; without any of it nothing is retried but `Retry`.

    Attributes:
        codes: gRPC status names.
        types: exceptions, with their subclasses.
        predicates: asked one after the other; a true answer asks for another attempt.
    """

    codes: frozenset[str] = frozenset()
    types: tuple[type[BaseException], ...] = ()
    predicates: tuple[Callable[[BaseException], object], ...] = ()

    def failure(self, error: BaseException, code: str | None = None) -> Failure:
        """The failure of an attempt that an exception ended, with the answer in it.

        Args:
            error: what user code raised.
            code: what is known of it already; None to find out.
        """
        found = code_of(error) if code is None else code
        failure = failure_of(error, code=found)
        if isinstance(error, Retry):
            return replace(failure, retriable=True, after_ms=error.after_ms)
        return replace(failure, retriable=self._asks_for_another(error, found))

    def _asks_for_another(self, error: BaseException, code: str) -> bool:
        if code in self.codes or isinstance(error, self.types):
            return True
        for predicate in self.predicates:
            try:
                if predicate(error):
                    return True
            except Exception:
                _log.exception("a predicate in retry_on raised; the attempt is not retried for it")
        return False


NEVER = RetryRule()
"""The rule of functions without a policy."""

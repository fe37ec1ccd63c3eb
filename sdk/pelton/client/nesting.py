"""Calls made by running attempts: what they inherit, and how an attempt stands aside while it waits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, TypeVar

from pelton.core.call import MAX_DEPTH, CallId
from pelton.errors import CallTooDeep

T = TypeVar("T")


class Lineage(NamedTuple):
    """What a nested call inherits.

    Attributes:
        ancestry: call ids from the root to the attempt that makes the call; never empty.
        deadline_ms: broker time after which no descendant must start; None for never.
        trace_parent: W3C trace parent, None when not traced.
    """

    ancestry: tuple[CallId, ...]
    deadline_ms: int | None = None
    trace_parent: str | None = None


class Nesting(Protocol):
    """What a connection needs to know in a process that runs attempts."""

    def lineage(self) -> Lineage | None:
        """What a call made here and now inherits; None outside of an attempt."""

    def block(self, wait: Callable[[], T], instead: Callable[[], Awaitable[T]] | None = None) -> T:
        """Calls `wait`, which blocks until another call got further; the slot is given back meanwhile.

        Returns, and raises what `wait` raised, only once the attempt has its slot again. On the thread of an
        event loop `instead` is awaited, or else `wait` runs on another thread: the loop goes on.
        """

    def aside(self, wait: Callable[[], T]) -> T:
        """Calls `wait`, which blocks for something else: the slot is kept, and an event loop goes on."""

    async def suspend(self, waiter: Awaitable[T]) -> T:
        """The same for what is awaited on a running loop."""


def check_depth(lineage: Lineage, function: str) -> None:
    """Refuses a call that would have too many ancestors.

    Raises:
        CallTooDeep: it would; nothing was sent.
    """
    if len(lineage.ancestry) > MAX_DEPTH:
        raise CallTooDeep(
            f"a call of {function!r} here would have {len(lineage.ancestry)} ancestors; at most {MAX_DEPTH} "
            "calls may be nested. Nothing was sent: return the rest of the work to the caller, or loop"
        )

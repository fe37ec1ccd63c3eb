"""What user code may know about the attempt it runs in."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pelton.core.call import CallId, call_id_text

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Context:
    """The attempt that is running.

    Attributes:
        call_id: id of the call as UUID text, the same in every attempt and delivery.
        attempt: which try this is, from 1.
        delivery: how often the record of the call was handed to an owner, from 1; above 1 the function may
            have run before, whole or in part.
        function: name of the function.
        deadline: the instant after which the call must not start, in broker time; None for never.
        instance: id of the instance that runs it.
    """

    call_id: str
    attempt: int
    delivery: int
    function: str
    deadline: datetime | None
    instance: str
    _attempt: Attempt | None = field(default=None, repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """Whether the attempt is to stop: its call was cancelled, its time is up, or another instance has it.

        It changes while the attempt runs. Code that is not async looks at it now and then, and returns or
        raises: an attempt whose call is cancelled loses its executor 5 s later.
        """
        return self._attempt is not None and self._attempt.interrupted


class Attempt:
    """One attempt as the runtime keeps it; `Context` is made of it only when user code asks.

    Attributes:
        call_id: 16 bytes.
        attempt: from 1.
        delivery: from 1.
        function: name of the function.
        deadline_ms: broker time in ms since the epoch; 0 for never.
        instance: id of the instance.
        over: whether it has ended; code it left behind may still run in its context.
        interrupted: whether it is to stop.
        ancestry: call ids from the root to the parent of the call; empty for a root call.
        trace_parent: W3C trace parent of the call; None when it is not traced.
    """

    __slots__ = (
        "_public",
        "ancestry",
        "attempt",
        "call_id",
        "deadline_ms",
        "delivery",
        "function",
        "instance",
        "interrupted",
        "over",
        "trace_parent",
    )

    def __init__(
        self, call_id: CallId, attempt: int, delivery: int, function: str, deadline_ms: int, instance: str
    ) -> None:
        self.call_id = call_id
        self.attempt = attempt
        self.delivery = delivery
        self.function = function
        self.deadline_ms = deadline_ms
        self.instance = instance
        self.over = False
        self.interrupted = False
        self.ancestry: tuple[CallId, ...] = ()
        self.trace_parent: str | None = None
        self._public: Context | None = None

    def public(self) -> Context:
        """What user code is shown."""
        if self._public is None:
            deadline = _EPOCH + timedelta(milliseconds=self.deadline_ms) if self.deadline_ms else None
            self._public = Context(
                call_id=call_id_text(self.call_id),
                attempt=self.attempt,
                delivery=self.delivery,
                function=self.function,
                deadline=deadline,
                instance=self.instance,
                _attempt=self,
            )
        return self._public


current_attempt: ContextVar[Attempt | None] = ContextVar("pelton_attempt", default=None)
"""The attempt the running code belongs to; tasks and `asyncio.to_thread` inherit it, plain threads do not."""


def context() -> Context:
    """Returns the attempt that the calling code runs in.

    It follows the code into tasks and `asyncio.to_thread`. A plain `threading.Thread` starts without it: hand
    it over with `contextvars.copy_context().run`.

    Raises:
        RuntimeError: the code runs outside of a call.
    """
    attempt = current_attempt.get()
    if attempt is None:
        raise RuntimeError(
            "context() was called outside of a call: it answers inside a function that Pelton runs, "
            "and in the tasks and asyncio.to_thread calls that function starts"
        )
    return attempt.public()

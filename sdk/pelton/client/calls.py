"""One call as this process reads it: accepted or not, folded, its chunks, its end."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from pelton.client.failures import error_of
from pelton.client.waking import settle, waker_of
from pelton.core.call import CallId, Result, call_id_text
from pelton.core.fold import Fold

if TYPE_CHECKING:
    from asyncio import Future

MAX_BEHIND_CHUNKS: Final = 10_000
"""A stream this many chunks behind stops reading until its consumer has caught up."""

MAX_BEHIND_BYTES: Final = 16 * 1024 * 1024
"""The same, in bytes of encoded chunks."""

# Shared by all that had none yet, and never added to: most calls stream nothing.
_NO_CHUNKS: Final[list[bytes]] = []

T = TypeVar("T")

Listener = Callable[[], None]
"""Told that something is new, perhaps once too often; on reading threads, so it must be quick."""

_changing = threading.Lock()
"""Held while a call ends or its listeners change: outcome, refusal and close may come at once."""


class Reader(Protocol):
    """What a call needs of the connection that reads it."""

    def ended(self, call: Call) -> None:
        """The call needs no more results."""

    def pause(self, call: Call) -> None:
        """The call wants no results until it is resumed."""

    def aside(self, wait: Callable[[], T]) -> T:
        """Calls what blocks, without stopping an event loop."""

    def unseen(self, call: Call, error: Exception) -> None:
        """The call was not accepted; nobody has been told yet."""

    def seen(self, call: Call) -> None:
        """Somebody was told."""


class Acceptance:
    """Whether Kafka acknowledged the record of a call; what `future.accepted` is.

    It can be waited for with `result()` and awaited. Both raise `SubmitFailed` when the record was certainly
    not accepted, and `AcceptanceUnknown` when it may be in the log all the same.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def done(self) -> bool:
        """Whether it is known."""
        return self._call.answered

    def result(self, timeout: float | None = None) -> None:
        """Returns when the call is accepted.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            SubmitFailed: it was certainly not accepted.
            AcceptanceUnknown: it may or may not be in the log.
            TimeoutError: not known yet.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Why it was not accepted, None when it was; waits as `result` does.

        Raises:
            TimeoutError: not known yet.
        """
        call = self._call
        if not call.answered:
            event = threading.Event()
            call.at_answer(event.set)
            if not call.reader.aside(lambda: event.wait(timeout)):
                raise TimeoutError(f"call {call.text} was not acknowledged within {timeout:g} s")
        if call.refusal is not None:
            call.reader.seen(call)
        return call.refusal

    def __await__(self) -> Generator[Future[None], None, None]:
        """Waits on the running loop."""
        if not self._call.answered:
            import asyncio

            loop = asyncio.get_running_loop()
            waiter: Future[None] = loop.create_future()
            waker = waker_of(loop)
            self._call.at_answer(lambda: waker.call(lambda: settle(waiter)))
            yield from waiter
        self.result(0)


class Call:
    """A call that was sent or attached to.

    Written by reading threads, read by everybody. `payload` and `error` are set before `ended`.

    Attributes:
        id: 16 bytes.
        function: name of the function.
        reader: the connection.
        fold: the records seen so far.
        answered: whether Kafka answered to the record of the call.
        refusal: why Kafka did not accept it, None when it did; set before `answered`.
        chunks: encoded chunks: all of them, or those not taken yet when `keeps` is false.
        keeps: whether chunks stay after they were taken.
        payload: the encoded value of a call that ended well.
        error: why the call ended without a value.
        ended: whether it ended.
        paused: whether it stopped reading because its consumer is far behind.
        taken_bytes: bytes of chunks that the consumer took; written by the consumer only.
    """

    __slots__ = (
        "_at_answer",
        "_at_end",
        "_listeners",
        "_received_bytes",
        "answered",
        "chunks",
        "ended",
        "error",
        "fold",
        "function",
        "id",
        "keeps",
        "paused",
        "payload",
        "reader",
        "refusal",
        "taken_bytes",
    )

    def __init__(self, call_id: CallId, function: str, reader: Reader, *, keeps: bool) -> None:
        self.id = call_id
        self.function = function
        self.reader = reader
        self.fold = Fold()
        self.answered = False
        self.refusal: Exception | None = None
        self.chunks: deque[bytes] | list[bytes] = _NO_CHUNKS if keeps else deque()
        self.keeps = keeps
        self.payload: bytes | None = None
        self.error: Exception | None = None
        self.ended = False
        self.paused = False
        self._listeners: tuple[Listener, ...] = ()
        self._at_end: tuple[Listener, ...] = ()
        self._at_answer: tuple[Listener, ...] = ()
        self.taken_bytes = 0
        self._received_bytes = 0

    @property
    def text(self) -> str:
        """The id as UUID text."""
        return call_id_text(self.id)

    @property
    def started(self) -> bool:
        """Whether an execution is known to have started."""
        return self.fold.started

    def receive(self, results: Sequence[Result]) -> None:
        """Takes records of the call in log order; never blocks."""
        fold = self.fold
        for result in results:
            restarts = fold.restarts
            fresh = fold.feed(result)
            if fold.restarts > restarts:
                self._begin_again()
            if fresh:
                if self.chunks is _NO_CHUNKS:
                    self.chunks = list(fresh)
                else:
                    self.chunks.extend(fresh)
                if not self.keeps:
                    self._received_bytes += sum(map(len, fresh))
            if fold.outcome is not None:
                self._finish(fold.outcome)
                return
        if not self.keeps and not self.paused and self._is_behind():
            self.paused = True
            self.reader.pause(self)
        for listener in self._listeners:
            listener()

    def _begin_again(self) -> None:
        """The stream begins again: values that nobody took are not given any more."""
        if self.keeps:
            self.chunks = _NO_CHUNKS
        else:
            self.chunks.clear()
            self._received_bytes = self.taken_bytes

    def listen(self, listener: Listener) -> None:
        """Tells `listener` of chunks and of the end from now on; look at the call after that, not before."""
        with _changing:
            self._listeners += (listener,)

    def unlisten(self, listener: Listener) -> None:
        """Tells `listener` no more. Idempotent."""
        with _changing:
            self._listeners = tuple(known for known in self._listeners if known != listener)

    def at_end(self, watcher: Listener) -> None:
        """Calls `watcher` once, when the call ends; at once when it has ended."""
        with _changing:
            ended = self.ended
            if not ended:
                self._at_end += (watcher,)
        if ended:
            watcher()

    @property
    def watchers(self) -> int:
        """How many are to be told of the end."""
        return len(self._at_end)

    def accept(self, error: Exception | None) -> None:
        """Takes the answer of Kafka to the record of the call."""
        if error is not None and not self.ended:
            self.reader.unseen(self, error)
            self.fail(error)
        self.answer(error)

    def answer(self, error: Exception | None) -> None:
        """Whether the call is accepted is known now; the first answer counts."""
        with _changing:
            if self.answered:
                return
            self.refusal = error
            self.answered = True
            waiting, self._at_answer = self._at_answer, ()
        for listener in waiting:
            listener()

    def at_answer(self, listener: Listener) -> None:
        """Calls `listener` once, when it is known whether the call is accepted; at once when it is."""
        with _changing:
            answered = self.answered
            if not answered:
                self._at_answer += (listener,)
        if answered:
            listener()

    def fail(self, error: Exception) -> None:
        """Ends the call here, without an outcome record."""
        self._end(None, error)

    def _is_behind(self) -> bool:
        return (
            len(self.chunks) > MAX_BEHIND_CHUNKS or self._received_bytes - self.taken_bytes > MAX_BEHIND_BYTES
        )

    def _finish(self, outcome: Result) -> None:
        # An outcome can only be read because the record of the call is in the log.
        if not self.answered:
            self.answer(None)
        if outcome.failure is not None:
            self._end(None, error_of(outcome.failure, self.text, outcome.attempts))
        else:
            self._end(outcome.items[0] if outcome.items else None, None)

    def _end(self, payload: bytes | None, error: Exception | None) -> None:
        with _changing:
            if self.ended:
                return
            self.payload = payload
            self.error = error
            self.ended = True
            # Dropped for good: a call and its future must not keep each other alive.
            told = (*self._listeners, *self._at_end)
            self._listeners = self._at_end = ()
        self.reader.ended(self)
        for listener in told:
            listener()


def _after_fork() -> None:
    """The lock may have been held by a thread that did not come along."""
    global _changing
    _changing = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)

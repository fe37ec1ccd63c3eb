"""The future of a call: a `concurrent.futures.Future` that can also be awaited."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from pelton.client.calls import Acceptance, Call
from pelton.client.connection import Connection
from pelton.client.notebook import in_notebook
from pelton.client.streams import Stream, tell_cancelled
from pelton.client.waking import settle, waker_of
from pelton.errors import CallCancelled, PayloadUnavailable, PeltonError
from pelton.protocol.claims import may_claim

if TYPE_CHECKING:
    import asyncio

# The states of a future of the standard library that ours can be in.
_PENDING: Final = "PENDING"
_FINISHED: Final = "FINISHED"

R = TypeVar("R")
T = TypeVar("T")

Decoder = Callable[[bytes], Any]


class BlockingCallWarning(RuntimeWarning):
    """A call blocks a thread on which an event loop runs; await `async_call` there instead."""


class _Waiting:
    """What a future of the standard library takes for its condition; a real one is made for the first waiter.

    Most futures are never waited for by a thread, and a condition is eight objects that the garbage
    collector looks at again and again while thousands of calls are open.
    """

    __slots__ = ("_full", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._full: threading.Condition | None = None

    def acquire(self) -> bool:
        """Takes the lock, as `concurrent.futures.wait` does."""
        return self._lock.acquire()

    def release(self) -> None:
        """Gives it back."""
        self._lock.release()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *exception: Any) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """As `threading.Condition.wait`; the lock is held, so only one waiter is the first."""
        if self._full is None:
            self._full = threading.Condition(self._lock)
        return self._full.wait(timeout)

    def notify_all(self) -> None:
        """As `threading.Condition.notify_all`."""
        if self._full is not None:
            self._full.notify_all()


class CallFuture(Future[R]):
    """The future of a call.

    It ends when the outcome of the call is read, and can be waited for from threads (`result`), from asyncio
    (`await`), and with `concurrent.futures.wait` and `as_completed`. For a generator the value is the list of
    what it yielded. Done callbacks run on a thread of their own.
    """

    def __init__(self, call: Call, connection: Connection, decode: Decoder, *, streams: bool) -> None:
        # What the constructor of `Future` sets, with a lighter condition.
        self._condition: Any = _Waiting()
        self._state = _PENDING
        self._result = None
        self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[Future[R]], object]] = []
        self._call = call
        self._connection = connection
        self._decode = decode
        self._streams = streams
        self._value: R | None = None
        self._problem: PeltonError | None = None
        self._is_decoded = False
        call.at_end(self._end)

    @property
    def call_id(self) -> str:
        """The id of the call, UUID text; `attach` takes it in any process."""
        return self._call.text

    @property
    def connection(self) -> Connection:
        """The connection that reads the call."""
        return self._connection

    @property
    def accepted(self) -> Acceptance:
        """Whether the call is accepted: Kafka acknowledged its record with all replicas in sync.

        Wait with `future.accepted.result(timeout)` or `await future.accepted`.
        """
        return Acceptance(self._call)

    def result(self, timeout: float | None = None) -> R:
        """The value of the call; may be asked again and loses nothing, also after a timeout.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: no outcome yet; the call goes on.
            CallFailed: the call failed; `FunctionError` when user code raised.
            TransportError: the call was not accepted.
            PayloadCorrupt: the value cannot be read.
        """
        try:
            if self.done():
                super().result()
            else:
                wait = super().result
                self._connection.block(lambda: wait(timeout), lambda: self._ended(timeout))
        except TimeoutError:
            if self.done():
                self._told()
                raise
            raise TimeoutError(
                f"call {self.call_id} of {self._call.function!r} has no outcome after {timeout:g} s; "
                "it goes on"
            ) from None
        except BaseException:
            self._told()
            raise
        if not self._is_decoded:
            self._read_value()
        if self._problem is not None:
            raise self._problem
        return cast(R, self._value)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Why the call failed, None when it did not; waits as `result` does.

        Raises:
            TimeoutError: no outcome yet; the call goes on.
        """
        wait = super().exception
        if not self.done():
            self._connection.block(lambda: wait(timeout), lambda: self._ended(timeout))
        error = wait()
        if error is not None:
            self._told()
            return error
        if not self._is_decoded:
            self._read_value()
        return self._problem

    def stream(self) -> Stream[Any]:
        """What a generator yields, from its first value on, while it runs.

        Each stream has one consumer; ask again for another one. Leaving it early leaves the call alone.

        Raises:
            TypeError: the function is no generator.
        """
        if not self._streams:
            raise TypeError(f"{self._call.function!r} is no generator and streams nothing; use result()")
        return Stream(self._call, self._connection, self._decode)

    def as_asyncio(self) -> asyncio.Future[R]:
        """A future of the running loop that ends as this one does. Cancelling it leaves the call alone."""
        import asyncio

        loop = asyncio.get_running_loop()
        waker = waker_of(loop)
        waiter: asyncio.Future[R] = loop.create_future()

        def copy() -> None:
            if waiter.done():
                return
            error = self.exception(0)
            if error is None:
                waiter.set_result(self.result(0))
            else:
                waiter.set_exception(error)

        if self._connection.nesting is not None and not self.done():
            return asyncio.ensure_future(self._awaited())
        super().add_done_callback(lambda _: waker.call(copy))
        return waiter

    async def _awaited(self) -> R:
        return await self

    async def _ended(self, timeout: float | None) -> Any:
        """Waits for the end on the running loop, as the blocking wait does; raises its error."""
        import asyncio

        loop = asyncio.get_running_loop()
        waker = waker_of(loop)
        waiter: asyncio.Future[None] = loop.create_future()
        super().add_done_callback(lambda _: waker.call(lambda: settle(waiter)))
        async with asyncio.timeout(timeout):
            await waiter
        return super().result()

    def __await__(self) -> Generator[Any, None, R]:
        """Waits on the running loop; cancelling the waiting task leaves the call alone."""
        if not self.done():
            import asyncio

            loop = asyncio.get_running_loop()
            waker = waker_of(loop)
            waiter: asyncio.Future[None] = loop.create_future()
            super().add_done_callback(lambda _: waker.call(lambda: settle(waiter)))
            if self._connection.nesting is None:
                yield from waiter
            else:
                yield from self._connection.suspend(waiter).__await__()
        if not self._is_decoded and self._connection.nesting is None and self._is_large():
            import asyncio

            # Reading it takes a while, and the loop has other tasks.
            yield from asyncio.to_thread(self._read_value).__await__()
        return self.result(0)

    def cancel(self) -> bool:
        """Asks for the end of the call and of all calls below it, and returns at once.

        The future ends by the outcome of the call: `CallCancelled` if it was in time, else whatever the call
        came to. A call that waits never starts; an async one that runs gets `CancelledError`; others see
        `context().cancelled`. An attempt that goes on for 5 s after that loses its executor.

        Returns:
            False when the call has ended already: then nothing is asked for.

        Raises:
            TransportError: the request cannot be sent.
        """
        if self.done():
            return False
        self._connection.cancel(self._call.id, self._call.function, "its caller cancelled the future")
        return True

    def cancelled(self) -> bool:
        """Whether the call has ended because somebody cancelled it."""
        return self.done() and isinstance(self._call.error, CallCancelled)

    def running(self) -> bool:
        """Whether an execution is known to have started and has not ended."""
        return self._call.started and not self.done()

    def done(self) -> bool:
        """Whether it has ended."""
        return self._state == _FINISHED

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """Calls `fn(future)` when the call ends, on the thread for callbacks; at once when it has ended."""
        super().add_done_callback(fn if self.done() else partial(self._hand_over, fn))

    def _hand_over(self, fn: Callable[[Future[R]], object], _: Future[R]) -> None:
        self._connection.callbacks.submit(lambda: fn(self))

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Calls `listener()` at the end of the call, on the reading thread: it must be quick."""
        super().add_done_callback(lambda _: listener())

    def detach(self) -> None:
        """Reads the call no longer, unless others do: it goes on, and this future never ends."""
        if self._call.watchers <= 1:
            self._connection.ended(self._call)

    def leave(self, *, aloud: bool) -> None:
        """Cancels the call, which nobody will ask for any more; with `aloud` stderr says so."""
        self._connection.leave(self._call, "its caller was interrupted")
        self.detach()
        if aloud:
            tell_cancelled(self.call_id)

    def __repr__(self) -> str:
        state = "finished" if self.done() else "running" if self._call.started else "pending"
        return f"<CallFuture {self.call_id} of {self._call.function!r}, {state}>"

    def _end(self) -> None:
        error = self._call.error
        if error is None:
            self.set_result(cast(R, None))  # the value is decoded when somebody asks for it
        else:
            self.set_exception(error)

    def _read_value(self) -> None:
        """Decodes on the thread that asks: the reading thread has other calls to serve."""
        with self._condition:
            if self._is_decoded:
                return
            call = self._call
            try:
                value: Any
                if self._streams:
                    value = [self._decode(chunk) for chunk in call.chunks]
                else:
                    value = None if call.payload is None else self._decode(call.payload)
                self._value = value
            except PayloadUnavailable as error:
                # Asked again later it may be there.
                self._problem = error
                return
            except PeltonError as error:
                self._problem = error
            else:
                self._problem = None
            self._is_decoded = True

    def _is_large(self) -> bool:
        """Whether a part of the value lies in the object store."""
        payloads = self._call.chunks if self._streams else (self._call.payload or b"",)
        return any(map(may_claim, payloads))

    def _told(self) -> None:
        self._connection.seen(self._call)


def wait_blocking(future: CallFuture[R], connection: Connection) -> R:
    """Waits for a call that was made as if it were local, `f(x)`; whoever leaves it cancels the call.

    Raises:
        KeyboardInterrupt: the user gave up waiting; stderr says that the call is cancelled.
    """
    warn_on_loop(connection)
    try:
        return future.result()
    except BaseException as error:
        # Interrupted, or its task cancelled: nobody has this future, so nobody will ever have the value.
        if not future.done():
            future.leave(aloud=isinstance(error, KeyboardInterrupt))
        raise


_warned = threading.Lock()


def warn_on_loop(connection: Connection) -> None:
    """Warns once when this thread runs an event loop that would be blocked; notebooks always run one."""
    if connection.nesting is not None:
        return
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None or in_notebook():
        return
    if _warned.acquire(blocking=False):
        warnings.warn(
            "f(x) blocks the event loop that runs on this thread until the call has ended; "
            "write `await f.async_call(x)` here",
            BlockingCallWarning,
            stacklevel=4,
        )


def forget_warning() -> None:
    """Warns again at the next occasion, as in a new process."""
    if _warned.locked():
        _warned.release()

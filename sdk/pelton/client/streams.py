"""Streams: what a generator yields, read from threads or from asyncio."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from pelton.client.calls import Acceptance, Call
from pelton.client.connection import Connection
from pelton.client.waking import Signal
from pelton.protocol.claims import may_claim

T_co = TypeVar("T_co", covariant=True)

_LEFT: Final = "its stream was left"


class Stream(Generic[T_co]):
    """The values of a generator, each once and in order, while the generator runs.

    Iterate with `for` or `async for`, in a `with` block or without. A stream has one consumer. After the last
    value a failed call raises its error. Leaving the stream of a call `f(x)` early, by `break`, `close` or an
    error, cancels the call; leaving one that was asked of a future leaves it alone.

    Args:
        call: whose values.
        connection: reads it.
        decode: makes values of chunks.
        owner: whether leaving it early cancels the call.
    """

    def __init__(
        self, call: Call, connection: Connection, decode: Callable[[bytes], Any], *, owner: bool = False
    ) -> None:
        self._owner = owner
        self._call = call
        self._connection = connection
        self._decode = decode
        self._index = 0
        self._begun = call.fold.restarts
        self._closed = False
        self._reading = threading.Lock()
        self._signal = Signal()
        call.listen(self._signal.notify)

    @property
    def call_id(self) -> str:
        """The id of the call, UUID text."""
        return self._call.text

    @property
    def restarts(self) -> int:
        """How often it has begun again, for functions with `on_stream_failure="restart"`.

        What was yielded before is yielded anew, perhaps with other values: forget it when this rises.
        """
        return self._call.fold.restarts

    @property
    def accepted(self) -> Acceptance:
        """Whether the call is accepted; as for `CallFuture`."""
        return Acceptance(self._call)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T_co:
        """The next value; waits for it.

        Raises:
            StopIteration: the generator ended.
            RuntimeError: somebody else is reading this stream.
            CallFailed: the call failed.
        """
        self._enter()
        try:
            while True:
                chunk = self._take()
                if chunk is not None:
                    return self._value(chunk)
                self._signal.clear()
                if not self._has_news():
                    self._connection.block(self._signal.wait, self._news)
                elif self._is_over():
                    self._raise_end()
                    raise StopIteration
                elif self._call.paused:
                    self._connection.resume(self._call)
        except KeyboardInterrupt:
            if not self._closed and not self._call.ended:
                tell_cancelled(self.call_id) if self._owner else tell_detached(self.call_id)
            self.close()
            raise
        except Exception:
            self.close()
            raise
        finally:
            self._reading.release()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        """The next value; waits for it on the running loop. Errors as for `next`, with StopAsyncIteration."""
        import asyncio

        self._enter()
        try:
            while True:
                chunk = self._take()
                if chunk is not None:
                    if self._connection.nesting is None and may_claim(chunk):
                        return await asyncio.to_thread(self._value, chunk)
                    return self._value(chunk)
                waiter = self._signal.arm(asyncio.get_running_loop())
                if not self._has_news():
                    await self._connection.suspend(waiter)
                elif self._is_over():
                    self._raise_end()
                    raise StopAsyncIteration
                elif self._call.paused:
                    # Attaching blocks until the transport knows the state of the call.
                    await asyncio.to_thread(self._connection.resume, self._call)
        except Exception:
            self.close()
            raise
        finally:
            self._reading.release()

    def close(self) -> None:
        """Stops reading; cancels the call if that is this stream's own and has not ended. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._call.unlisten(self._signal.notify)
        if not self._call.ended:
            if not self._call.keeps:
                self._connection.ended(self._call)
            if self._owner:
                self._connection.leave(self._call, _LEFT)
        self._signal.notify()

    async def aclose(self) -> None:
        """The same as `close`."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Missing when __init__ failed.
        if getattr(self, "_closed", True) is False:
            # Perhaps in a collection of garbage, whose thread may hold any lock: nothing here takes one.
            self._closed = True
            self._connection.leave(
                self._call, _LEFT if self._owner and not self._call.ended else "", self._signal.notify
            )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ended" if self._call.ended else "open"
        return f"<Stream {self.call_id} of {self._call.function!r}, {state}>"

    def _enter(self) -> None:
        if not self._reading.acquire(blocking=False):
            raise RuntimeError("this stream is being read already; a stream has one consumer")

    def _take(self) -> bytes | None:
        """The next chunk that is here, None when none is."""
        if self._closed:
            return None
        call = self._call
        chunks = call.chunks
        if isinstance(chunks, deque):
            try:
                chunk = chunks.popleft()
            except IndexError:
                # Also when the stream begins again at this moment.
                return None
            call.taken_bytes += len(chunk)
            return chunk
        if self._begun != call.fold.restarts:
            self._begun, self._index = call.fold.restarts, 0
        if self._index >= len(chunks):
            return None
        self._index += 1
        return chunks[self._index - 1]

    def _value(self, chunk: bytes) -> T_co:
        value: T_co = self._decode(chunk)
        return value

    def _is_over(self) -> bool:
        """Whether no chunk is here and none will come."""
        if self._closed:
            return True
        # The order matters: chunks are added before the end is known.
        return self._call.ended and not self._has_chunk()

    def _has_chunk(self) -> bool:
        chunks = self._call.chunks
        if isinstance(chunks, deque):
            return bool(chunks)
        return (self._index if self._begun == self._call.fold.restarts else 0) < len(chunks)

    def _has_news(self) -> bool:
        return self._closed or self._call.ended or self._call.paused or self._has_chunk()

    async def _news(self) -> bool:
        """Waits for something new on the running loop, as the blocking wait does."""
        import asyncio

        waiter = self._signal.arm(asyncio.get_running_loop())
        if not self._has_news():
            await waiter
        return True

    def _raise_end(self) -> None:
        """Raises the error of a failed call, once."""
        failed = None if self._closed else self._call.error
        self.close()
        if failed is not None:
            self._connection.seen(self._call)
            raise failed


def tell_cancelled(call_id: str) -> None:
    """Says that a call which nobody waits for any more is cancelled."""
    sys.stderr.write(f"pelton: interrupted; cancelling call {call_id}\n")


def tell_detached(call_id: str) -> None:
    """Says that nobody waits for this call any more."""
    sys.stderr.write(f"pelton: no longer waiting; call {call_id} goes on, and attach({call_id!r}) finds it\n")

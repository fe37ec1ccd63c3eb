"""How user code is called: arguments bound, values encoded, and every way to fail turned into a failure."""

from __future__ import annotations

import asyncio
import inspect
import logging
import typing
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pelton.core.call import CallId, Failure
from pelton.core.spec import FunctionKind
from pelton.errors import PayloadError, PayloadUnavailable, RecordError
from pelton.protocol import codec, payload
from pelton.runtime.failures import failure_of
from pelton.runtime.retrying import NEVER, RetryRule
from pelton.transport.payloads import PayloadStore, encode_value

Outcome = tuple[bytes | None, Failure | None]
"""How an attempt ended: the encoded value, or the failure; exactly one of them is None."""

Sink = Callable[[bytes], bool]
"""Takes an encoded chunk, blocking while the reader is behind; False when nobody wants more."""

AsyncSink = Callable[[bytes], Awaitable[bool] | None]
"""Takes an encoded chunk; returns None to go on at once, else what to await (False: nobody wants more)."""

NOTHING = payload.encode(None)
"""The value of a stream's outcome."""

CHUNKS_BETWEEN_TURNS = 64
"""An async generator that never waits still lets other tasks run after so many chunks."""

_INVALID = "INVALID_ARGUMENT"
_UNAVAILABLE = "UNAVAILABLE"
_log = logging.getLogger("pelton.runtime")


@dataclass(frozen=True, slots=True)
class Target:
    """The user's function, loaded.

    Attributes:
        name: name of the function in the registry.
        kind: how it is called.
        function: the function as the user wrote it.
        decode: reads argument payloads, dataclasses and enums of its annotations included.
        store: keeps results above the limit of a record; None refuses them.
        rule: after which failures it wants to be tried again.
    """

    name: str
    kind: FunctionKind
    function: Callable[..., Any]
    decode: Callable[[bytes], Any]
    store: PayloadStore | None = None
    rule: RetryRule = NEVER

    @classmethod
    def of(
        cls,
        name: str,
        kind: FunctionKind,
        function: Callable[..., Any],
        store: PayloadStore | None = None,
        rule: RetryRule = NEVER,
    ) -> Target:
        """Makes a target; annotations that cannot be evaluated are left out."""
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except Exception:
            # Names that exist for type checkers only: what they stand for arrives as `pelton.Record`.
            hints = {key: hint for key, hint in _annotations(function).items() if not isinstance(hint, str)}
        hints.pop("return", None)
        objects = None if store is None else store.open
        return cls(name, kind, function, payload.decoder(hints, pickles=True, objects=objects), store, rule)


class Arguments(NamedTuple):
    """What an invocation asks for.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        submitted_ms: when the caller submitted it, broker ms.
        ancestry: call ids from the root to the parent; empty for a root call.
        trace_parent: W3C trace parent, None when not traced.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    submitted_ms: int
    ancestry: tuple[CallId, ...] = ()
    trace_parent: str | None = None


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    return dict(getattr(function, "__annotations__", None) or {})


def read_arguments(target: Target, call_id: CallId, body: bytes) -> Arguments:
    """Reads the body of an input record.

    Args:
        target: the function that is about to be called.
        call_id: id in the header of the record; the body must bear the same.
        body: Avro bytes.

    Raises:
        RecordError: the body cannot be read or belongs to another call or function.
    """
    invocation = codec.decode_invocation(body)
    if invocation.call_id != call_id:
        raise RecordError("the body names another call id than the header")
    if invocation.function != target.name:
        raise RecordError(f"the body names function {invocation.function[:80]!r}, the record {target.name!r}")
    try:
        arguments = target.decode(invocation.arguments)
    except PayloadError as error:
        raise RecordError(f"arguments: {error}") from error
    if type(arguments) is tuple and len(arguments) == 2:
        args, kwargs = arguments
        if type(args) is tuple and type(kwargs) is dict and all(type(name) is str for name in kwargs):
            return Arguments(
                args, kwargs, invocation.submitted_ms, invocation.ancestry, invocation.trace_parent
            )
    raise RecordError("arguments: not a pair of positional and keyword arguments")


def call(target: Target, arguments: Arguments) -> Outcome:
    """Calls a plain function; never raises because of user code."""
    try:
        value = target.function(*arguments.args, **arguments.kwargs)
    except BaseException as error:
        return None, _user_failure(target, arguments, error)
    return _encoded(target, value)


async def call_async(target: Target, arguments: Arguments) -> Outcome:
    """Calls an async function; never raises because of user code, `SystemExit` and cancellation included."""
    try:
        value = await target.function(*arguments.args, **arguments.kwargs)
    except BaseException as error:
        return None, _user_failure(target, arguments, error)
    return _encoded(target, value)


def stream(target: Target, arguments: Arguments, sink: Sink) -> Outcome:
    """Runs a generator to its end and hands each chunk to the sink; the outcome's value is None."""
    generator: Generator[Any, Any, Any] | None = None
    failure: Failure | None
    try:
        generator = target.function(*arguments.args, **arguments.kwargs)
        for value in generator:
            encoded, failure = _encoded(target, value)
            if encoded is None:
                break
            if not sink(encoded):
                failure = interrupted()
                break
        else:
            return NOTHING, None
    except BaseException as error:
        failure = _user_failure(target, arguments, error)
    try:
        if generator is not None:
            generator.close()
    except BaseException:
        _log.exception("closing a stream raised")
    return None, failure


async def stream_async(target: Target, arguments: Arguments, sink: AsyncSink) -> Outcome:
    """Runs an async generator to its end and hands each chunk to the sink; the outcome's value is None."""
    generator: AsyncGenerator[Any, Any] | None = None
    failure: Failure | None
    count = 0
    try:
        generator = target.function(*arguments.args, **arguments.kwargs)
        async for value in generator:
            encoded, failure = _encoded(target, value)
            if encoded is None:
                break
            waiting = sink(encoded)
            if waiting is not None and not await waiting:
                failure = interrupted()
                break
            count += 1
            if count % CHUNKS_BETWEEN_TURNS == 0:
                await asyncio.sleep(0)
        else:
            return NOTHING, None
    except BaseException as error:
        failure = _user_failure(target, arguments, error)
    try:
        if generator is not None:
            await generator.aclose()
    except BaseException:
        _log.exception("closing a stream raised")
    return None, failure


def interrupted() -> Failure:
    """The failure of an attempt that was stopped from outside; its owner decides what becomes of the call."""
    return Failure(type="CancelledError", message="the attempt was interrupted", code="CANCELLED")


def _encoded(target: Target, value: Any) -> Outcome:
    try:
        return encode_value(target.store, target.name, value), None
    except PayloadUnavailable as error:
        return None, target.rule.failure(error, _UNAVAILABLE)
    except BaseException as error:
        # Not only PayloadError: values may bring code of their own, and nesting may be deeper than the stack.
        return None, failure_of(error, code=_INVALID)


def _user_failure(target: Target, arguments: Arguments, error: BaseException) -> Failure:
    if type(error) is TypeError and _does_not_bind(target, arguments, error):
        return failure_of(error, code=_INVALID)
    return target.rule.failure(error)


def _does_not_bind(target: Target, arguments: Arguments, error: TypeError) -> bool:
    """Whether the call itself was wrong, so that no line of user code ran."""
    trace = error.__traceback__
    if trace is None or trace.tb_next is not None:
        return False
    try:
        inspect.signature(target.function).bind(*arguments.args, **arguments.kwargs)
    except TypeError:
        return True
    except ValueError:
        # No signature to hold the arguments against (some builtins).
        return False
    return False

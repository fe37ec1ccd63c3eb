"""Calling a function by its name: what decorated functions and references to deployed ones share."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Generic, ParamSpec, Self, TypeVar, cast

from pelton.client import mapping, readiness, session
from pelton.client.binding import Binder, binder
from pelton.client.connection import ATTACH_SECONDS, Connection, Deadline
from pelton.client.futures import CallFuture, Decoder, wait_blocking, warn_on_loop
from pelton.client.streams import Stream
from pelton.core.call import call_id_text, parse_call_id
from pelton.core.spec import FunctionSpec
from pelton.errors import DefinitionError, FunctionNotFound, UnsupportedOption
from pelton.policies import checked_key, checked_name, checked_timeout, refuse_unsupported
from pelton.protocol import payload
from pelton.transport.payloads import encode_arguments

P = ParamSpec("P")
C = TypeVar("C")
R = TypeVar("R")

_LEARNED: Final = ("_spec", "_bind", "_decode", "_before")
"""Attributes of a callee that are worth nothing in another process."""


class Callee(Generic[P, C, R]):
    """A function called by its name: `C` is what `f(x)` returns, `R` what a future of it holds."""

    def __init__(self, name: str, version: int | None) -> None:
        self.name = name
        self.version = version
        self._spec: FunctionSpec | None = None
        self._bind: Binder | None = None
        self._decode: Decoder | None = None
        self._before: Callable[[], None] | None = None
        self._key: str | None = None
        self._deadline: Deadline | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What says which function it is; all that was learned of it here is learned anew elsewhere."""
        return {name: value for name, value in vars(self).items() if name not in _LEARNED}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(dict.fromkeys(_LEARNED), **state)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        """Calls the function and blocks until its value is here; for a generator returns a `Stream` at once.

        Who leaves it before, by Ctrl-C for example, cancels the call.

        Raises:
            TypeError: the arguments do not fit the signature; nothing was sent.
            FunctionNotFound: it is not deployed; nothing was sent.
            PayloadError: an argument does not travel; nothing was sent.
            CallFailed: the call failed; `FunctionError` when its code raised.
            TransportError: the call was not accepted.
        """
        connection, spec, arguments = self._prepare(args, kwargs)
        if spec.kind.streams:
            call = connection.new_call(spec, keeps=False)
            connection.send(call, spec, self.version, arguments, self._key, self._deadline)
            return cast(C, Stream(call, connection, self._decoder(), owner=True))
        return cast(C, wait_blocking(self._send(connection, spec, arguments), connection))

    def async_call(self, *args: P.args, **kwargs: P.kwargs) -> CallFuture[R]:
        """Calls the function and returns a future at once. Errors before sending as for a plain call."""
        connection, spec, arguments = self._prepare(args, kwargs)
        return self._send(connection, spec, arguments)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Calls the function and forgets it; returns the id of the call.

        It returns when the record was handed to the Kafka client. Records that Kafka did not accept are
        counted and told on stderr by `pelton.flush()` and at the end of the program.

        Raises:
            TypeError, FunctionNotFound, PayloadError: as for a plain call.
        """
        connection, spec, arguments = self._prepare(args, kwargs)
        return call_id_text(connection.submit(spec, self.version, arguments, self._key, self._deadline))

    def map(
        self,
        *iterables: Iterable[Any],
        ordered: bool = True,
        window: int = 1000,
        return_exceptions: bool = False,
    ) -> Iterator[R]:
        """Calls the function for each input, as the builtin `map` does, with many calls open at a time.

        Args:
            iterables: one per positional parameter; the shortest ends it.
            ordered: whether values come in the order of the inputs, or as calls end.
            window: most calls open at a time.
            return_exceptions: whether errors of calls are returned in place of values.

        Returns:
            An iterator over the values; inputs are taken as it advances.
        """
        return self.starmap(
            _zipped(iterables), ordered=ordered, window=window, return_exceptions=return_exceptions
        )

    def starmap(
        self,
        inputs: Iterable[Iterable[Any]],
        *,
        ordered: bool = True,
        window: int = 1000,
        return_exceptions: bool = False,
    ) -> Iterator[R]:
        """The same for inputs that are tuples of positional arguments."""
        mapping.check_window(window)
        warn_on_loop(session.current())
        over = mapping.map_ordered if ordered else mapping.map_unordered
        return over(self._start, (tuple(entry) for entry in inputs), window, return_exceptions)

    def amap(
        self,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        ordered: bool = True,
        window: int = 1000,
        return_exceptions: bool = False,
    ) -> AsyncIterator[R]:
        """`map` for `async for`; a single asynchronous iterable will do as well.

        Raises:
            TypeError: an asynchronous iterable beside others.
        """
        mapping.check_window(window)
        session.current()
        inputs: Iterable[tuple[Any, ...]] | AsyncIterable[tuple[Any, ...]]
        if len(iterables) == 1 and isinstance(iterables[0], AsyncIterable):
            inputs = _tuples(iterables[0])
        else:
            plain = [entry for entry in iterables if isinstance(entry, Iterable)]
            if len(plain) != len(iterables):
                raise TypeError("amap takes one asynchronous iterable alone, or any number of ordinary ones")
            inputs = _zipped(plain)
        return mapping.amap(self._start, inputs, window, ordered, return_exceptions)

    def attach(self, call_id: str, *, timeout: float = ATTACH_SECONDS) -> CallFuture[R]:
        """The future of a call that was made before, in this process or another one.

        Args:
            call_id: UUID text, as `future.call_id` and `submit` give it.
            timeout: seconds to find out what became of it.

        Raises:
            CallNotFound: there is no such call of this function.
            CallExpired: it is older than the time results are kept, 24 hours.
            ValueError: that is no call id.
        """
        connection = session.current()
        raw = parse_call_id(call_id)
        spec = connection.spec(self.name)
        call = connection.attach(self.name, raw, timeout)
        return CallFuture(call, connection, self._decoder(), streams=spec.kind.streams)

    def options(
        self,
        *,
        key: str | int | None = None,
        timeout: timedelta | float | None = None,
        deadline: datetime | None = None,
        **others: object,
    ) -> Self:
        """The same function with options for its calls.

        Args:
            timeout: a call must have ended so long after it was sent, a `timedelta` or seconds.
            deadline: a call must have ended by this instant, an aware `datetime`; one of the two. A call that
                is too late does not start; one that still runs is stopped; both end with `CallTimeout`. What
                the call calls inherits what is left.
            key: calls with one key start in the order in which they were sent, each after the end of the
                one before it; for functions with `ordering="key"`. A number is taken as its digits. None:
                no order.
            others: not in this version.

        Raises:
            DefinitionError: that is no key, no time, or both times are given.
            UnsupportedOption: another option was given, or the function has no key order.
        """
        refuse_unsupported(
            f"function {self.name!r}: options", {name: value or name for name, value in others.items()}
        )
        made = type(self).__new__(type(self))
        vars(made).update(vars(self))
        made._key = None if key is None else checked_key(f"function {self.name!r}", key)
        made._deadline = _deadline(f"function {self.name!r}: options", timeout, deadline)
        return made

    def wait_ready(self, timeout: float | timedelta = 300) -> None:
        """Blocks until the function can answer: it is deployed, and an instance is alive or will be started.

        After 5 s a line on stderr says what is missing.

        Args:
            timeout: seconds, or a `timedelta`.

        Raises:
            NotReady: it could not in this time; the message says why.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
        connection = session.current()
        if self._before is not None:
            self._before()
        connection.aside(lambda: readiness.wait_ready(connection.directory, self.name, self.version, seconds))

    def __repr__(self) -> str:
        version = "" if self.version is None else f", version={self.version}"
        return f"{type(self).__name__}({self.name!r}{version})"

    def _start(self, args: tuple[Any, ...]) -> CallFuture[R]:
        return self._send(*self._prepare(args, {}))

    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Connection, FunctionSpec, bytes]:
        """Everything that can be refused before anything is sent."""
        connection = session.current()
        bind = self._bind
        if bind is not None:
            # Before anything that may connect or wait: wrong arguments are wrong without a platform, too.
            bind(*args, **kwargs)
        if self._before is not None:
            self._before()
        spec = connection.spec(self.name)
        if spec is not self._spec:
            self._learn(spec)
            if self._key is not None and spec.ordering != "key":
                self._spec = None
                raise UnsupportedOption(
                    f"function {self.name!r} has no key order as deployed, so key= means nothing; deploy "
                    'it with ordering="key". Nothing was sent'
                )
            if self._bind is not None and bind is None:
                self._bind(*args, **kwargs)
        return connection, spec, encode_arguments(connection.transport.payloads, self.name, args, kwargs)

    def _send(self, connection: Connection, spec: FunctionSpec, arguments: bytes) -> CallFuture[R]:
        call = connection.new_call(spec, keeps=True)
        future: CallFuture[R] = CallFuture(
            call, connection, self._decode or self._decoder(), streams=spec.kind.streams
        )
        connection.send(call, spec, self.version, arguments, self._key, self._deadline)
        return future

    def _learn(self, spec: FunctionSpec) -> None:
        """Takes over what a spec says that was not seen before.

        Raises:
            FunctionNotFound: the version this refers to is not deployed.
        """
        self._spec = spec

    def _decoder(self) -> Decoder:
        """Decodes values; without annotations, dataclasses and Enums come back as `Record`."""
        decode = self._decode
        if decode is None:
            decode = self._decode = payload.decoder(
                self._returns(), pickles=True, objects=session.open_object
            )
        return decode

    def _returns(self) -> Any:
        """The annotation of what the function returns, None when it has none."""
        return None


def _deadline(owner: str, timeout: object, deadline: object) -> Deadline | None:
    """What options say of the end of calls; None when they say nothing.

    Raises:
        DefinitionError: both are given, or one of them is no time.
    """
    if timeout is not None and deadline is not None:
        raise DefinitionError(f"{owner}: timeout= and deadline= both say until when; give one of them")
    if timeout is not None:
        return Deadline(checked_timeout(owner, timeout))
    if deadline is None:
        return None
    if not isinstance(deadline, datetime) or deadline.tzinfo is None:
        raise DefinitionError(
            f"{owner}: deadline is a datetime with a zone, like datetime.now(UTC) + timedelta(minutes=5), "
            f"not {deadline!r}"
        )
    return Deadline(None, int(deadline.timestamp() * 1000))


class FunctionRef(Callee[..., Any, Any]):
    """A deployed function by its name; made by `function_ref`. Its signature is that of the latest spec."""

    def _learn(self, spec: FunctionSpec) -> None:
        if self.version is not None and self.version > spec.version:
            raise FunctionNotFound(
                f"Function {self.name!r} has no version {self.version}; the latest is {spec.version}. "
                "Nothing was sent."
            )
        # The signature of an older version is not in the registry; its worker refuses what does not fit.
        older = self.version is not None and self.version != spec.version
        self._bind = None if older else binder(spec.qualname, spec.parameters)
        self._spec = spec


def function_ref(name: str, version: int | None = None) -> FunctionRef:
    """A function that is deployed, or will be, by its name; no code of it is needed here.

    Args:
        name: its name.
        version: the spec version calls are pinned to; None for the latest.

    Raises:
        DefinitionError: the name cannot be that of a function, or the version is no number from 1 on.
    """
    checked_name("function", name)
    if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 1):
        raise DefinitionError(f"function_ref({name!r}): version is a whole number from 1 on, not {version!r}")
    return FunctionRef(name, version)


def _zipped(iterables: Iterable[Iterable[Any]]) -> Iterable[tuple[Any, ...]]:
    return zip(*iterables, strict=False)


async def _tuples(inputs: AsyncIterable[Any]) -> AsyncIterator[tuple[Any, ...]]:
    async for entry in inputs:
        yield (entry,)

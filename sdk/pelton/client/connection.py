"""A caller's side of one platform: the open calls, what was sent and not acknowledged, and how it ends."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeVar

from pelton.client.calls import Call, Listener
from pelton.client.nesting import Nesting, check_depth
from pelton.client.patience import Patience
from pelton.client.readiness import not_found
from pelton.client.waking import CallbackThread
from pelton.core.call import CallId, Invocation, Result, call_id_text, call_time_ms, mint_call_id
from pelton.core.spec import RESULTS_PARTITIONS, FunctionSpec
from pelton.errors import (
    AcceptanceUnknown,
    CallExpired,
    CallNotFound,
    CallTimeout,
    FunctionNotFound,
    PeltonError,
    TransportError,
)
from pelton.transport.ports import AttachState, Directory, Transport

CLOSE_SECONDS: Final = 10.0
"""How long closing waits for sends that Kafka has not acknowledged."""

ATTACH_SECONDS: Final = 30.0
"""How long attaching may take to say what became of a call."""

_SHOWN: Final = 5

T = TypeVar("T")


class Deadline(NamedTuple):
    """Until when a call must have ended.

    Attributes:
        within_ms: so long after it is sent; None for a fixed time.
        instant_ms: at this broker time; used when `within_ms` is None.
    """

    within_ms: int | None = None
    instant_ms: int = 0

    def at_ms(self, sent_ms: int) -> int:
        """The deadline of a call that is sent at a broker time."""
        return self.instant_ms if self.within_ms is None else sent_ms + self.within_ms


class Connection:
    """A caller's side of one platform. As a context manager it closes at the end of the block.

    Args:
        transport: how records travel.
        nesting: knows the attempts that run in this process; None where none does.

    Attributes:
        transport: how records travel.
        nesting: as given.
        directory: what is deployed.
        calls: open calls by id; a call is added before it is sent and leaves when it ends.
        callbacks: runs the done callbacks of users.
        closed: whether it was closed.
        unaccepted: calls of which closing had to say that Kafka did not accept them, or perhaps not.
    """

    def __init__(self, transport: Transport, nesting: Nesting | None = None) -> None:
        self.transport = transport
        self.nesting = nesting
        self.directory: Directory = transport.directory
        self.calls: dict[CallId, Call] = {}
        self.callbacks = CallbackThread()
        self.closed = False
        self.unaccepted = 0
        self._beside: dict[CallId, Call] = {}
        self._partitions: dict[str, int] = {}
        self._dice = random.Random(os.urandom(16))
        self._unanswered: dict[CallId, str] = {}
        self._refused: dict[CallId, tuple[str, Exception]] = {}
        self._cancelling: set[CallId] = set()
        self._leaving = CallbackThread("pelton-leaving")
        self._pid = os.getpid()
        self._all_answered = threading.Event()
        self._patience = Patience(self.calls, self.directory, transport.now_ms)

    def spec(self, function: str) -> FunctionSpec:
        """The latest spec of a function.

        Raises:
            FunctionNotFound: not in the registry; the message lists close names.
            TransportError: the connection is closed.
        """
        if self.closed:
            raise TransportError(
                "this connection to the platform is closed; pelton.connect() opens a new one"
            )
        return self.directory.function(function) or self._look_again(function)

    def new_call(self, spec: FunctionSpec, *, keeps: bool) -> Call:
        """A call whose results will be read; not sent yet.

        Args:
            spec: of the function.
            keeps: whether chunks stay after they were taken.
        """
        name = spec.name
        partition = self._partitions.get(name)
        if partition is None:
            partition = self._partitions[name] = self.transport.prepare(name)
        return Call(self._mint(partition), name, self, keeps=keeps)

    def send(
        self,
        call: Call,
        spec: FunctionSpec,
        version: int | None,
        arguments: bytes,
        key: str | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        """Hands a call to the transport; blocks only for backpressure.

        Args:
            call: made by `new_call`.
            spec: of the function.
            version: what it is pinned to, None for the latest.
            arguments: their payload.
            key: its ordering key, None for none.
            deadline: until when it must have ended, None for any time.

        Raises:
            CallTimeout: that time is over; nothing was sent.
            TransportError: nothing can be sent.
        """
        call_id = call.id
        self.calls[call_id] = call
        self._unanswered[call_id] = spec.name
        try:
            self.transport.submit(
                self._invocation(call_id, spec, version, arguments, key, deadline),
                spec,
                partial(self._accepted, call),
                call.receive,
            )
        except BaseException:
            self.calls.pop(call_id, None)
            self._answer(call_id)
            raise
        self._patience.watch(call_id)

    def submit(
        self,
        spec: FunctionSpec,
        version: int | None,
        arguments: bytes,
        key: str | None = None,
        deadline: Deadline | None = None,
    ) -> CallId:
        """Sends a call whose results nobody here will read; returns its id.

        That Kafka did not accept it is counted, and told by `flush` and at the end of the program.

        Raises:
            CallTimeout: its deadline is over; nothing was sent.
            TransportError: nothing can be sent.
        """
        # No reply is read, so any partition of the results topic does.
        call_id = self._mint(self._dice.randrange(RESULTS_PARTITIONS))
        self._unanswered[call_id] = spec.name
        try:
            self.transport.submit(
                self._invocation(call_id, spec, version, arguments, key, deadline),
                spec,
                partial(self._left, call_id, spec.name),
                _nobody,
            )
        except BaseException:
            self._answer(call_id)
            raise
        self.transport.forget(call_id)
        return call_id

    def cancel(self, call_id: CallId, function: str, reason: str) -> None:
        """Asks for the end of a call and of all calls below it; returns at once.

        That Kafka did not accept it is told on stderr.

        Raises:
            TransportError: nothing can be sent.
        """
        self._cancelling.add(call_id)
        try:
            self.transport.cancel(call_id, reason, partial(self._cancelled, call_id, function))
        except BaseException:
            self._cancelling.discard(call_id)
            raise

    def leave(self, call: Call, reason: str, listener: Listener | None = None) -> None:
        """Reads a call no longer that was left, and cancels it; takes no lock, and never blocks or raises.

        What a forked child inherited and drops is the parent's: that goes on.

        Args:
            call: the call.
            reason: why it is cancelled; "" leaves it alone.
            listener: told of nothing any more.
        """
        if self.closed or os.getpid() != self._pid:
            return
        if reason:
            self._cancelling.add(call.id)
        self._leaving.submit(partial(self._leave, call, reason, listener))

    def _leave(self, call: Call, reason: str, listener: Listener | None) -> None:
        if listener is not None:
            call.unlisten(listener)
        if not call.keeps and self._reads(call):
            self.ended(call)
        if not reason:
            return
        try:
            self.cancel(call.id, call.function, reason)
        except PeltonError as error:
            self._cancelled(call.id, call.function, error)

    def attach(self, function: str, call_id: CallId, timeout_s: float) -> Call:
        """Reads a call from its first record on, whoever sent it; shares one this process reads already.

        Raises:
            CallNotFound: there is no such call of this function.
            CallExpired: it is older than the time results are kept.
            DataLoss: its first records are no longer in the log.
            TransportError: no answer within `timeout_s`.
        """
        known = self._beside.get(call_id) or self.calls.get(call_id)
        if known is not None and known.function != function:
            raise CallNotFound(f"call {known.text} is a call of {known.function!r}, not of {function!r}")
        if known is not None and known.keeps:
            return known
        call = Call(call_id, function, self, keeps=True)
        # An open stream drops what it has yielded, so it cannot be shared: both read for themselves.
        (self.calls if known is None else self._beside)[call_id] = call
        try:
            self._read(call, timeout_s)
        except BaseException:
            self.ended(call)
            raise
        call.answer(None)
        return call

    def resume(self, call: Call) -> None:
        """Reads on after `pause`, a stretch of bounded size; the call may be paused again, or still.

        Raises:
            DataLoss: what comes next is no longer in the log.
            TransportError: the broker cannot be reached.
        """
        # Before anything can come: a receiver that has too much at once pauses the call again.
        call.paused = False
        if not self.transport.resume(call.id, call.receive, ATTACH_SECONDS):
            call.paused = True
        if not self._reads(call):
            # It ended, or was left by another thread, while this one read on.
            self.transport.forget(call.id, call.receive)

    def _reads(self, call: Call) -> bool:
        """Whether its results are still wanted."""
        return self.calls.get(call.id) is call or self._beside.get(call.id) is call

    def pause(self, call: Call) -> None:
        """Stops reading a call until `resume`."""
        self.transport.pause(call.id, call.receive)

    def ended(self, call: Call) -> None:
        """Reads a call no longer: it ended, or nobody wants it any more."""
        if self.calls.get(call.id) is call:
            self.calls.pop(call.id, None)
        elif self._beside.get(call.id) is call:
            self._beside.pop(call.id, None)
        if call.id in self.calls or call.id in self._beside:
            self.transport.forget(call.id, call.receive)
        else:
            self.transport.forget(call.id)

    def unseen(self, call: Call, error: Exception) -> None:
        """Remembers that a call was not accepted, until somebody asks for it."""
        self._refused[call.id] = (call.function, error)

    def seen(self, call: Call) -> None:
        """Somebody was told that the call was not accepted."""
        self._refused.pop(call.id, None)

    def flush(self, timeout_s: float) -> int:
        """Waits until Kafka has answered every send.

        Calls that were not accepted, and that nobody was told of, are told on stderr.

        Returns:
            Sends without an answer.
        """
        self._await_answers(timeout_s)
        self._tell_refused()
        return len(self._unanswered) + len(self._cancelling)

    def close(self, timeout_s: float = CLOSE_SECONDS) -> int:
        """Flushes what Kafka has not acknowledged, then ends; open calls go on without this process.

        Returns:
            Sends that were not acknowledged in time; they are told on stderr as well.
        """
        if self.closed:
            return 0
        self.closed = True
        self._patience.stop()
        deadline = time.monotonic() + timeout_s
        if self._cancelling:
            # Calls that were left a moment ago: what cancels them has to be sent first.
            self._await_answers(timeout_s)
        waiting = dict(self._unanswered)
        lost = self.transport.close(max(0.0, deadline - time.monotonic()))
        self._tell_unknown(waiting, lost, timeout_s)
        self._tell_refused()
        for call in [*self.calls.values(), *self._beside.values()]:
            call.fail(
                TransportError(
                    f"the connection was closed while call {call.text} of {call.function!r} was open; "
                    f"the call goes on, and attach({call.text!r}) finds it"
                )
            )
        return lost

    def block(self, wait: Callable[[], T], instead: Callable[[], Awaitable[T]] | None = None) -> T:
        """Calls `wait`, which blocks until a call got further; see `Nesting.block`."""
        return wait() if self.nesting is None else self.nesting.block(wait, instead)

    def aside(self, wait: Callable[[], T]) -> T:
        """Calls `wait`, which blocks for something else; see `Nesting.aside`."""
        return wait() if self.nesting is None else self.nesting.aside(wait)

    async def suspend(self, waiter: Awaitable[T]) -> T:
        """The same for what is awaited on the running loop."""
        return await (waiter if self.nesting is None else self.nesting.suspend(waiter))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _look_again(self, function: str) -> FunctionSpec:
        """It may have been deployed a moment ago: preparing reads the registry up to now."""
        try:
            self.transport.prepare(function)
        except FunctionNotFound:
            raise not_found(self.directory, function) from None
        spec = self.directory.function(function)
        if spec is None:
            raise not_found(self.directory, function)
        return spec

    def _mint(self, partition: int) -> CallId:
        return mint_call_id(self.transport.now_ms(), partition, self._dice.getrandbits(64).to_bytes(8, "big"))

    def _invocation(
        self,
        call_id: CallId,
        spec: FunctionSpec,
        version: int | None,
        arguments: bytes,
        key: str | None,
        deadline: Deadline | None,
    ) -> Invocation:
        lineage = None if self.nesting is None else self.nesting.lineage()
        deadline_ms = None if deadline is None else deadline.at_ms(call_time_ms(call_id))
        if lineage is not None and lineage.deadline_ms is not None:
            deadline_ms = min(lineage.deadline_ms, deadline_ms or lineage.deadline_ms)
        if deadline_ms is not None and deadline_ms <= call_time_ms(call_id):
            raise CallTimeout(
                f"the deadline of this call of {spec.name!r} had passed before it was sent; nothing was sent",
                code="DEADLINE_EXCEEDED",
                type="DeadlineExceeded",
            )
        if lineage is None:
            return Invocation(
                call_id=call_id,
                function=spec.name,
                arguments=arguments,
                version=version,
                deadline_ms=deadline_ms,
                ordering_key=key,
                submitted_ms=call_time_ms(call_id),
            )
        check_depth(lineage, spec.name)
        return Invocation(
            call_id=call_id,
            function=spec.name,
            arguments=arguments,
            version=version,
            deadline_ms=deadline_ms,
            parent=lineage.ancestry[-1],
            ancestry=lineage.ancestry,
            ordering_key=key,
            trace_parent=lineage.trace_parent,
            submitted_ms=call_time_ms(call_id),
        )

    def _accepted(self, call: Call, error: Exception | None) -> None:
        """Kafka's answer to the record of a call."""
        call.accept(error)
        self._answer(call.id)

    def _left(self, call_id: CallId, function: str, error: Exception | None) -> None:
        """Kafka's answer to the record of a call that nobody waits for."""
        if error is not None:
            self._refused[call_id] = (function, error)
        self._answer(call_id)

    def _answer(self, call_id: CallId) -> None:
        self._unanswered.pop(call_id, None)
        self._look_whether_answered()

    def _cancelled(self, call_id: CallId, function: str, error: Exception | None) -> None:
        """Kafka's answer to a request to cancel."""
        if error is not None:
            sys.stderr.write(f"pelton: call {call_id_text(call_id)} of {function!r} goes on: {error}\n")
        self._cancelling.discard(call_id)
        self._look_whether_answered()

    def _await_answers(self, timeout_s: float) -> None:
        self._all_answered.clear()
        if self._unanswered or self._cancelling:
            self._all_answered.wait(timeout_s)

    def _look_whether_answered(self) -> None:
        if not self._unanswered and not self._cancelling:
            self._all_answered.set()

    def _read(self, call: Call, timeout_s: float) -> None:
        state = self.transport.attach(call.function, call.id, call.receive, timeout_s)
        if state is AttachState.UNKNOWN:
            raise CallNotFound(f"no call {call.text} of function {call.function!r} exists")
        if state is AttachState.EXPIRED:
            raise CallExpired(
                f"call {call.text} of {call.function!r} is older than the time results are kept"
            )

    def _tell_unknown(self, waiting: dict[CallId, str], lost: int, timeout_s: float) -> None:
        """One line about the sends whose answer closing did not wait for."""
        unknown = [
            call_id
            for call_id in waiting
            if call_id in self._unanswered
            or isinstance(self._refused.get(call_id, (None, None))[1], AcceptanceUnknown)
        ]
        for call_id in unknown:
            self._refused.pop(call_id, None)
        count = max(lost, len(unknown))
        self.unaccepted += count
        if count:
            shown = [call_id_text(call_id) for call_id in unknown[:_SHOWN]]
            more = ["..."] if count > len(shown) else []
            sys.stderr.write(
                f"pelton: {count} call(s) were not acknowledged by Kafka within {timeout_s:g} s; they may or "
                f"may not run, and attaching to them tells: {', '.join(shown + more)}\n"
            )

    def _tell_refused(self) -> None:
        """One line per function about calls that were not accepted and that nobody was told of."""
        refused = dict(self._refused)
        for call_id in refused:
            self._refused.pop(call_id, None)
        for function, count in Counter(name for name, _ in refused.values()).items():
            if self.closed:
                self.unaccepted += count
            why = next(error for name, error in refused.values() if name == function)
            sys.stderr.write(f"pelton: {count} call(s) of {function!r} were not accepted by Kafka: {why}\n")


def _nobody(results: Sequence[Result]) -> None:
    """Takes the results of a call that nobody waits for."""

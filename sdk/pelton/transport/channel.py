"""The way of nested calls: a transport over the frame channel between an executor and its coordinator.

An executor holds no Kafka client, no credentials and no key. What user code calls leaves as frames; the
coordinator sends it to Kafka and relays what comes back.
"""

from __future__ import annotations

import itertools
import logging
import operator
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from pelton.core.call import CallId, Invocation, call_id_text
from pelton.core.spec import ContainerSpec, FunctionSpec, InstanceStatus
from pelton.errors import (
    AcceptanceUnknown,
    DataLoss,
    FunctionNotFound,
    PayloadCorrupt,
    PayloadUnavailable,
    PeltonError,
    PlatformNotRunning,
    SubmitFailed,
    TransportError,
)
from pelton.protocol.codec import (
    decode_container_spec,
    decode_function_spec,
    decode_instance_status,
    decode_result,
    encode_invocation,
)
from pelton.protocol.frames import FromExecutor, Question, ToExecutor
from pelton.transport.exchange import ExchangedPayloads
from pelton.transport.payloads import PayloadStore
from pelton.transport.ports import AttachState, Directory, OnAccepted, OnResults
from pelton.transport.registry import Registry

MAX_OPEN_SENDS: Final = 10_000
"""Calls that Kafka has not answered to; submitting more blocks."""

MAX_OPEN_BYTES: Final = 32 * 1024 * 1024
"""The same, in bytes of their records."""

SUBMIT_TIMEOUT_S: Final = 60.0
"""Submitting blocks so long at most."""

ANSWER_TIMEOUT_S: Final = 60.0
"""A question is answered within this time."""

_ACCEPTED: Final = int(ToExecutor.ACCEPTED)
_RESULTS: Final = int(ToExecutor.RESULTS)
_ANSWER: Final = int(ToExecutor.ANSWER)
_SPECS: Final = int(ToExecutor.SPECS)
_CALL: Final = int(FromExecutor.CALL)
_FORGET: Final = int(FromExecutor.FORGET)
_ASK: Final = int(FromExecutor.ASK)
_CANCEL: Final = int(FromExecutor.CANCEL)
_PAUSE: Final = int(FromExecutor.PAUSE)

HEARD: Final = frozenset((_ACCEPTED, _RESULTS, _ANSWER, _SPECS))
"""Kinds of records that `ChannelTransport.take` takes."""

_ERRORS: Final[dict[str, type[PeltonError]]] = {
    kind.__name__: kind
    for kind in (
        AcceptanceUnknown,
        DataLoss,
        FunctionNotFound,
        PayloadCorrupt,
        PayloadUnavailable,
        PlatformNotRunning,
        SubmitFailed,
    )
}
_LOGGER: Final = logging.getLogger("pelton.transport")


class _Open:
    """A call whose results are wanted, or whose acceptance is not known."""

    __slots__ = ("call_id", "on_accepted", "on_results", "size")

    def __init__(
        self, call_id: CallId, on_results: OnResults | None, on_accepted: OnAccepted | None, size: int
    ) -> None:
        self.call_id = call_id
        self.on_results = on_results
        self.on_accepted = on_accepted
        self.size = size


class _Asked:
    """A question without an answer yet."""

    __slots__ = ("answered", "error", "number", "value")

    def __init__(self, number: int) -> None:
        self.number = number
        self.answered = threading.Event()
        self.error: list[str] | None = None
        self.value: Any = None


class ChannelDirectory(Registry):
    """Implements `ports.Directory`: specs are pushed by the coordinator, statuses are asked for.

    Args:
        now_ms: broker time.
        learn: returns once specs are pushed.
        ask_instances: asks for statuses.
    """

    def __init__(
        self,
        now_ms: Callable[[], int],
        learn: Callable[[], None],
        ask_instances: Callable[[str | None], list[InstanceStatus]],
    ) -> None:
        super().__init__(now_ms)
        self._learn = learn
        self._ask_instances = ask_instances

    def function(self, name: str) -> FunctionSpec | None:
        """The latest verified spec, or None."""
        self._learn()
        return super().function(name)

    def functions(self) -> Sequence[FunctionSpec]:
        """All functions, by name."""
        self._learn()
        return super().functions()

    def container(self, name: str) -> ContainerSpec | None:
        """The container spec, or None."""
        self._learn()
        return super().container(name)

    def containers(self) -> Sequence[ContainerSpec]:
        """All containers, by name."""
        self._learn()
        return super().containers()

    def instances(self, container: str | None = None) -> Sequence[InstanceStatus]:
        """Live instances, asked for now; `container=""` lists live deployers, None all."""
        return self._ask_instances(container)

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until `ready()` holds; looks at each change of specs and twice a second, since it may ask."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            self.await_change(min(left_s, 0.5))
        return True


class ChannelTransport:
    """Implements `ports.Transport` over frames.

    Args:
        post: sends a record to the coordinator soon; never blocks.
        now_ms: broker time.
        aside: calls what blocks, without stopping an event loop on the calling thread.
        exchange: folder by which payloads above the limit of a record go to and fro; None refuses them.

    Attributes:
        aside: as given.
    """

    def __init__(
        self,
        post: Callable[[list[Any]], object],
        now_ms: Callable[[], int],
        aside: Callable[[Callable[[], Any]], Any] = operator.call,
        exchange: Path | None = None,
    ) -> None:
        self.aside = aside
        self._payloads = None if exchange is None else ExchangedPayloads(exchange, self)
        self._post = post
        self._now_ms = now_ms
        self._refs = itertools.count(1)
        self._lock = threading.Lock()
        self._answered = threading.Condition(self._lock)
        self._open: dict[int, _Open] = {}
        self._of_call: dict[CallId, tuple[int, ...]] = {}
        self._asked: dict[int, _Asked] = {}
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._closed = False
        self._directory = ChannelDirectory(now_ms, self._learn, self._instances)
        self._learning: _Asked | None = None
        self._has_specs = False

    def now_ms(self) -> int:
        """Broker time in milliseconds since the epoch."""
        return self._now_ms()

    @property
    def directory(self) -> Directory:
        """What is deployed."""
        return self._directory

    @property
    def config(self) -> None:
        """As `ports.Transport.config`."""

    @property
    def payloads(self) -> PayloadStore | None:
        """As `ports.Transport.payloads`."""
        return self._payloads

    def prepare(self, function: str) -> int:
        """As `ports.Transport.prepare`."""
        return int(self.ask(Question.PREPARE, function))

    def submit(
        self, invocation: Invocation, spec: FunctionSpec, on_accepted: OnAccepted, on_results: OnResults
    ) -> None:
        """As `ports.Transport.submit`."""
        data = encode_invocation(invocation)
        opened = _Open(invocation.call_id, on_results, on_accepted, len(data))
        self._await_room(len(data), spec.name)
        with self._lock:
            ref = self._register(opened)
        self._post([_CALL, ref, data])

    def attach(self, function: str, call_id: CallId, on_results: OnResults, timeout_s: float) -> AttachState:
        """As `ports.Transport.attach`; the replay comes on the reading thread."""
        with self._lock:
            ref = self._register(_Open(call_id, on_results, None, 0))
        state = AttachState.UNKNOWN
        try:
            state = AttachState(
                self.ask(Question.ATTACH, ref, function, call_id, timeout_s, wait_s=timeout_s + 5)
            )
        finally:
            if state in (AttachState.UNKNOWN, AttachState.EXPIRED):
                self._drop(ref)
        return state

    def cancel(self, call_id: CallId, reason: str, on_accepted: OnAccepted) -> None:
        """As `ports.Transport.cancel`; never blocks."""
        with self._lock:
            if self._closed:
                raise TransportError("the connection is closed; nothing was sent")
            self._unanswered += 1
            ref = self._register(_Open(call_id, None, on_accepted, 0))
        self._post([_CANCEL, ref, call_id, reason])

    def forget(self, call_id: CallId, on_results: OnResults | None = None) -> None:
        """As `ports.Transport.forget`."""
        for ref in self._of_call.get(call_id, ()):
            opened = self._open.get(ref)
            if opened is not None and (on_results is None or opened.on_results == on_results):
                self._drop(ref)

    def pause(self, call_id: CallId, on_results: OnResults) -> None:
        """As `ports.Transport.pause`."""
        ref = self._ref(call_id, on_results)
        if ref is not None:
            self._post([_PAUSE, ref])

    def resume(self, call_id: CallId, on_results: OnResults, timeout_s: float) -> bool:
        """As `ports.Transport.resume`; results come on the reading thread."""
        ref = self._ref(call_id, on_results)
        return ref is None or bool(self.ask(Question.RESUME, ref, timeout_s, wait_s=timeout_s + 5))

    def close(self, timeout_s: float) -> int:
        """As `ports.Transport.close`."""
        with self._answered:
            self._closed = True
            self._answered.wait_for(lambda: not self._unanswered, timeout_s)
            return self._unanswered

    def ask(self, question: Question, *arguments: Any, wait_s: float = ANSWER_TIMEOUT_S) -> Any:
        """Asks the coordinator, and waits for the answer.

        Raises:
            PeltonError: what the coordinator says went wrong.
            TransportError: closed, or no answer in time.
        """
        return self._answer(self._asking(question, *arguments), question, wait_s)

    # --- the reading thread ---

    def take(self, record: list[Any]) -> None:
        """Takes a record of one of the kinds `HEARD` from the coordinator; never blocks."""
        kind = record[0]
        if kind == _RESULTS:
            opened = self._open.get(record[1])
            on_results = None if opened is None else opened.on_results
            if opened is not None and on_results is not None:
                self._hand_over(opened, on_results, record[2])
        elif kind == _ACCEPTED:
            self._accepted(record[1], record[2])
        elif kind == _ANSWER:
            asked = self._asked.pop(record[1], None)
            if asked is not None:
                asked.error, asked.value = record[2], record[3]
                asked.answered.set()
        else:
            for what, name, data in record[1]:
                if what == "function":
                    self._directory.put_function(name, None if data is None else decode_function_spec(data))
                else:
                    self._directory.put_container(name, None if data is None else decode_container_spec(data))

    def _accepted(self, ref: int, error: list[str] | None) -> None:
        with self._answered:
            opened = self._open.get(ref)
            if opened is None or opened.on_accepted is None:
                return
            on_accepted, opened.on_accepted = opened.on_accepted, None
            self._unanswered -= 1
            self._unanswered_bytes -= opened.size
            self._answered.notify_all()
            if opened.on_results is None:
                self._unregister(ref, opened)
        failure = None if error is None else _error(error)
        if failure is not None and not isinstance(failure, AcceptanceUnknown):
            self._drop(ref)
        on_accepted(failure)

    # --- inside ---

    def _ref(self, call_id: CallId, on_results: OnResults) -> int | None:
        """What names a receiver in frames; None when it is not known any more."""
        for ref in self._of_call.get(call_id, ()):
            opened = self._open.get(ref)
            if opened is not None and opened.on_results == on_results:
                return ref
        return None

    @staticmethod
    def _hand_over(opened: _Open, on_results: OnResults, results: list[bytes]) -> None:
        try:
            on_results([decode_result(data) for data in results])
        except Exception:
            _LOGGER.exception("results of call %s could not be handled", call_id_text(opened.call_id))

    def _register(self, opened: _Open) -> int:
        """Needs the lock."""
        ref = next(self._refs)
        self._open[ref] = opened
        self._of_call[opened.call_id] = (*self._of_call.get(opened.call_id, ()), ref)
        return ref

    def _unregister(self, ref: int, opened: _Open) -> None:
        """Needs the lock."""
        self._open.pop(ref, None)
        left = tuple(known for known in self._of_call.get(opened.call_id, ()) if known != ref)
        if left:
            self._of_call[opened.call_id] = left
        else:
            self._of_call.pop(opened.call_id, None)

    def _drop(self, ref: int) -> None:
        """Wants no more results; a call that Kafka has not answered to is remembered until it has."""
        with self._lock:
            opened = self._open.get(ref)
            if opened is None or opened.on_results is None:
                return
            opened.on_results = None
            if opened.on_accepted is None:
                self._unregister(ref, opened)
        self._post([_FORGET, ref])

    def _await_room(self, size: int, function: str) -> None:
        """Takes room for a record that Kafka has not answered to; waits while there is none.

        Raises:
            SubmitFailed: none came in time.
            TransportError: closed.
        """

        def take(wait_s: float) -> bool:
            with self._answered:
                self._answered.wait_for(lambda: self._closed or self._has_room(size), wait_s)
                if self._closed:
                    raise TransportError("the connection is closed; nothing was sent")
                if not self._has_room(size):
                    return False
                self._unanswered += 1
                self._unanswered_bytes += size
                return True

        # Whoever runs an event loop must not wait here, not even for the room that another thread took.
        if not take(0) and not self.aside(lambda: take(SUBMIT_TIMEOUT_S)):
            raise SubmitFailed(
                f"{self._unanswered} calls wait for Kafka's answer, and none came within "
                f"{SUBMIT_TIMEOUT_S:g} s; this call of {function!r} was not sent"
            )

    def _has_room(self, size: int) -> bool:
        waiting = self._unanswered
        return not waiting or (waiting < MAX_OPEN_SENDS and self._unanswered_bytes + size <= MAX_OPEN_BYTES)

    def _asking(self, question: Question, *arguments: Any) -> _Asked:
        if self._closed:
            raise TransportError("the connection is closed; nothing was sent")
        asked = _Asked(next(self._refs))
        self._asked[asked.number] = asked
        self._post([_ASK, asked.number, str(question), list(arguments)])
        return asked

    def _answer(self, asked: _Asked, question: Question, wait_s: float) -> Any:
        if not self.aside(lambda: asked.answered.wait(wait_s)):
            self._asked.pop(asked.number, None)
            raise TransportError(f"the instance did not answer ({question}) within {wait_s:g} s")
        if asked.error is not None:
            raise _error(asked.error)
        return asked.value

    def _learn(self) -> None:
        """Waits until specs are pushed; asks once for all who wait, and holds no lock while it waits."""
        if self._has_specs:
            return
        with self._lock:
            asked = self._learning
            if asked is None:
                asked = self._learning = self._asking(Question.SPECS)
        try:
            self._answer(asked, Question.SPECS, ANSWER_TIMEOUT_S)
        except BaseException:
            self._learning = None
            raise
        self._has_specs = True

    def _instances(self, container: str | None) -> list[InstanceStatus]:
        return [decode_instance_status(data) for data in self.ask(Question.INSTANCES, container)]


def error_words(error: Exception) -> list[str]:
    """An error as it stands in frames."""
    name = type(error).__name__ if isinstance(error, PeltonError) else TransportError.__name__
    return [name, str(error) if isinstance(error, PeltonError) else f"{type(error).__name__}: {error}"]


def _error(words: list[str]) -> Exception:
    """The error that was sent as words; of a class of ours, whatever the words say."""
    name, message = words
    return _ERRORS.get(name, TransportError)(message)

"""Nested calls: what executors ask of Kafka is done for them here, and what comes back is told in frames."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from pelton.core.call import CallId, Result
from pelton.core.spec import ContainerSpec, FunctionSpec
from pelton.errors import PayloadUnavailable, PeltonError, SubmitFailed
from pelton.protocol.claims import decode_claim
from pelton.protocol.codec import (
    decode_invocation,
    encode_container_spec,
    encode_function_spec,
    encode_instance_status,
    encode_result,
)
from pelton.protocol.frames import FromExecutor, Question, ToExecutor
from pelton.transport.channel import error_words
from pelton.transport.exchange import exchanged_file
from pelton.transport.payloads import ObjectStore
from pelton.transport.ports import OnResults, Transport
from pelton.transport.registry import OnSpec, Registry

_ACCEPTED: Final = int(ToExecutor.ACCEPTED)
_RESULTS: Final = int(ToExecutor.RESULTS)
_ANSWER: Final = int(ToExecutor.ANSWER)
_SPECS: Final = int(ToExecutor.SPECS)
_CALL: Final = int(FromExecutor.CALL)
_FORGET: Final = int(FromExecutor.FORGET)
_CANCEL: Final = int(FromExecutor.CANCEL)
_PAUSE: Final = int(FromExecutor.PAUSE)

KINDS: Final = frozenset((_CALL, _FORGET, _CANCEL, _PAUSE, int(FromExecutor.ASK)))
"""Kinds of records that `Relay.take` takes."""

ATTACH_S: Final = 60.0
"""Attaching for an executor takes no longer than this, whatever it asks for."""

_HELPERS: Final = 16
_log = logging.getLogger(__name__)

Tell = Callable[[Sequence[Sequence[Any]]], object]
"""Sends records to one executor; never blocks."""


class Client:
    """One executor as the relay sees it.

    Args:
        tell: sends records to it.
    """

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.gone = False
        self.calls: dict[int, tuple[CallId, OnResults]] = {}
        self.on_spec: OnSpec | None = None


class Relay:
    """Does what executors ask; one for all functions of an instance.

    One thread takes their calls in order, and blocks when Kafka is behind; questions, which may take long,
    are answered on others.

    Args:
        open_transport: connects a transport; called when an executor makes the first call.
        store: keeps large payloads for executors; None refuses them.
        exchange: the folder by which they hand them over.
    """

    def __init__(
        self,
        open_transport: Callable[[], Transport],
        store: ObjectStore | None = None,
        exchange: Path = Path(),
    ) -> None:
        self._open_transport = open_transport
        self._store = store
        self._exchange = exchange
        self._transport: Transport | None = None
        self._opening = threading.Lock()
        self._queue: SimpleQueue[tuple[Client, list[Any]] | None] = SimpleQueue()
        self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="pelton-nested")
        self._thread: threading.Thread | None = None
        self._closed = False

    def take(self, client: Client, record: list[Any]) -> None:
        """Takes a record of one of the kinds `KINDS`, already checked; never blocks."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pelton-nested-calls", daemon=True)
            self._thread.start()
        self._queue.put((client, record))

    def gone(self, client: Client) -> None:
        """An executor ended: what it called goes on, and is read no longer."""
        client.gone = True
        transport = self._transport
        if transport is None:
            return
        for call_id, on_results in list(client.calls.values()):
            transport.forget(call_id, on_results)
        client.calls.clear()
        directory = transport.directory
        if client.on_spec is not None and isinstance(directory, Registry):
            directory.unlisten(client.on_spec)

    def close(self, timeout_s: float) -> None:
        """Ends it. Blocks."""
        self._closed = True
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._helpers.shutdown(wait=False, cancel_futures=True)
        if self._transport is not None:
            self._transport.close(timeout_s)

    def _connected(self) -> Transport:
        """The transport, opened on first use.

        Raises:
            PeltonError: it cannot be opened.
        """
        with self._opening:
            if self._transport is None:
                self._transport = self._open_transport()
            return self._transport

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            client, record = entry
            try:
                if record[0] == _CALL:
                    self._call(client, record[1], record[2])
                elif record[0] == _FORGET:
                    self._forget(client, record[1])
                elif record[0] == _PAUSE:
                    self._pause(client, record[1])
                elif record[0] == _CANCEL:
                    self._cancel(client, record[1], record[2], record[3])
                else:
                    self._helpers.submit(self._answer, client, record[1], record[2], record[3])
            except Exception:
                if self._closed:
                    return
                _log.exception("a record of an executor could not be served")

    def _call(self, client: Client, ref: int, data: bytes) -> None:
        try:
            invocation = decode_invocation(data)
            transport = self._connected()
            spec = transport.directory.function(invocation.function)
            if spec is None:
                raise SubmitFailed(f"function {invocation.function!r} is not deployed; nothing was sent")
            on_results = self._receiver(client, ref, invocation.call_id)
            transport.submit(invocation, spec, partial(self._accepted, client, ref), on_results)
            self._forget_if_gone(client, ref)
        except PeltonError as error:
            client.calls.pop(ref, None)
            refused = error if isinstance(error, SubmitFailed) else SubmitFailed(str(error))
            self._accepted(client, ref, refused)

    def _cancel(self, client: Client, ref: int, call_id: CallId, reason: str) -> None:
        try:
            self._connected().cancel(call_id, reason, partial(self._accepted, client, ref))
        except PeltonError as error:
            self._accepted(client, ref, error)

    def _accepted(self, client: Client, ref: int, error: Exception | None) -> None:
        self._tell(client, [_ACCEPTED, ref, None if error is None else error_words(error)])

    def _receiver(self, client: Client, ref: int, call_id: CallId) -> OnResults:
        def on_results(results: Sequence[Result]) -> None:
            self._tell(client, [_RESULTS, ref, [encode_result(result) for result in results]])

        client.calls[ref] = (call_id, on_results)
        return on_results

    def _forget_if_gone(self, client: Client, ref: int) -> None:
        """An executor may end while it is served: what was registered after that is read by nobody."""
        if client.gone:
            self._forget(client, ref)

    def _forget(self, client: Client, ref: int) -> None:
        known = client.calls.pop(ref, None)
        if known is not None:
            self._connected().forget(*known)

    def _pause(self, client: Client, ref: int) -> None:
        known = client.calls.get(ref)
        if known is not None:
            self._connected().pause(*known)

    def _tell(self, client: Client, record: Sequence[Any]) -> None:
        if not client.gone:
            client.tell((record,))

    # --- questions, on helper threads ---

    def _answer(self, client: Client, number: int, question: str, arguments: Sequence[Any]) -> None:
        try:
            value, error = self._reply(client, question, arguments), None
        except PeltonError as failure:
            value, error = None, error_words(failure)
        except Exception as failure:
            if self._closed:
                return
            _log.exception("a question of an executor could not be answered: %s", question)
            value, error = None, error_words(failure)
        self._tell(client, (_ANSWER, number, error, value))

    def _reply(self, client: Client, question: str, arguments: Sequence[Any]) -> Any:
        if question in (Question.KEEP, Question.FETCH):
            return self._exchanged(question, *arguments)
        transport = self._connected()
        if question == Question.PREPARE:
            return transport.prepare(arguments[0])
        if question == Question.INSTANCES:
            return [encode_instance_status(one) for one in transport.directory.instances(arguments[0])]
        if question == Question.SPECS:
            self._subscribe(client, transport)
            return None
        if question == Question.RESUME:
            known = client.calls.get(arguments[0])
            return known is None or transport.resume(*known, min(arguments[1], ATTACH_S))
        ref, function, call_id, timeout_s = arguments
        on_results = self._receiver(client, ref, call_id)
        state = transport.attach(function, call_id, on_results, min(timeout_s, ATTACH_S))
        self._forget_if_gone(client, ref)
        return state.value

    def _exchanged(self, question: str, name: str, data: bytes) -> None:
        """Stores or fetches a large payload."""
        if self._store is None:
            raise PayloadUnavailable("this instance has no object store for payloads above 512 KiB")
        file, claim = exchanged_file(self._exchange, name), decode_claim(data)
        if question == Question.KEEP:
            self._store.keep(file, claim)
        else:
            self._store.fetch(claim, file)

    def _subscribe(self, client: Client, transport: Transport) -> None:
        directory = transport.directory
        if client.on_spec is not None or not isinstance(directory, Registry):
            return

        def on_spec(what: str, name: str, spec: FunctionSpec | ContainerSpec | None) -> None:
            if isinstance(spec, FunctionSpec):
                data: bytes | None = encode_function_spec(spec)
            else:
                data = None if spec is None else encode_container_spec(spec)
            self._tell(client, (_SPECS, [[what, name, data]]))

        client.on_spec = on_spec
        directory.listen(on_spec)
        if client.gone:
            directory.unlisten(on_spec)


def is_sound(record: Sequence[Any]) -> bool:
    """Whether the fields of a record of one of `KINDS` are of their types: user code has the channel, too."""
    kind = record[0]
    if kind == _CALL:
        return type(record[1]) is int and type(record[2]) is bytes
    if kind in (_FORGET, _PAUSE):
        return type(record[1]) is int
    if kind == _CANCEL:
        _, ref, call_id, reason = record
        return type(ref) is int and type(call_id) is bytes and len(call_id) == 16 and type(reason) is str
    _, number, question, arguments = record
    if type(number) is not int or type(arguments) is not list:
        return False
    kinds = [type(argument) for argument in arguments]
    if question == Question.PREPARE:
        return kinds == [str]
    if question in (Question.KEEP, Question.FETCH):
        return kinds == [str, bytes]
    if question == Question.INSTANCES:
        return kinds in ([str], [type(None)])
    if question == Question.RESUME:
        return kinds in ([int, float], [int, int])
    if question == Question.ATTACH:
        return kinds in ([int, str, bytes, float], [int, str, bytes, int]) and len(arguments[2]) == 16
    return question == Question.SPECS and not kinds

"""Callers and inboxes of the contract suite: what a transport told, and waiting for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from pelton.core.call import Invocation, Result, ResultKind, Token, mint_call_id
from pelton.core.fold import fold
from pelton.core.spec import FunctionSpec
from pelton.transport.memory import Delivery
from pelton.transport.ports import Transport

TOKEN = Token(1, 1, 0, 0, 1)
WAIT_S = 20.0


class Inbox:
    """Collects what a transport tells of one call."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.results: list[Result] = []
        self.batches: list[int] = []
        self.accepted: list[Exception | None] = []

    def on_results(self, results: Sequence[Result]) -> None:
        with self.changed:
            self.results.extend(results)
            self.batches.append(len(results))
            self.changed.notify_all()

    def on_accepted(self, error: Exception | None) -> None:
        with self.changed:
            self.accepted.append(error)
            self.changed.notify_all()

    def await_that(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout=WAIT_S), (self.accepted, self.results[-3:])

    def await_outcome(self) -> tuple[list[bytes], Result]:
        """Chunks and outcome by the fold."""
        self.await_that(lambda: fold(self.results)[1] is not None)
        chunks, outcome = fold(self.results)
        assert outcome is not None
        return chunks, outcome


class Caller:
    """A client and the calls it made."""

    def __init__(self, transport: Transport, spec: FunctionSpec) -> None:
        self.transport = transport
        self.spec = spec

    def mint(self, *, before_ms: int = 0) -> bytes:
        partition = self.transport.prepare(self.spec.name)
        return mint_call_id(self.transport.now_ms() - before_ms, partition, os.urandom(8))

    def invocation(
        self, arguments: bytes = b"", *, function: str | None = None, deadline_ms: int | None = None
    ) -> Invocation:
        return Invocation(
            self.mint(),
            function or self.spec.name,
            arguments,
            deadline_ms=deadline_ms,
            submitted_ms=self.transport.now_ms(),
        )

    def submit(self, arguments: bytes = b"") -> tuple[bytes, Inbox]:
        invocation, inbox = self.invocation(arguments), Inbox()
        self.transport.submit(invocation, self.spec, inbox.on_accepted, inbox.on_results)
        return invocation.call_id, inbox

    def accepted(self, arguments: bytes = b"") -> tuple[bytes, Inbox]:
        """A call that Kafka has acknowledged."""
        call_id, inbox = self.submit(arguments)
        inbox.await_that(lambda: bool(inbox.accepted))
        assert inbox.accepted == [None]
        return call_id, inbox


def chunk(call_id: bytes, first: int, *items: bytes) -> Result:
    return Result(call_id, TOKEN, ResultKind.CHUNK, first=first, items=items)


def outcome(call_id: bytes, value: bytes = b"done", first: int = 0) -> Result:
    return Result(call_id, TOKEN, ResultKind.OUTCOME, first=first, items=(value,), attempts=1)


def echo(delivery: Delivery) -> None:
    """A worker that answers with the arguments."""
    delivery.append(outcome(delivery.headers.call_id, delivery.invocation.arguments))

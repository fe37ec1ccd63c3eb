"""What the call book reads from real topics: waiting, running and finished calls, also of long histories."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator

import pytest

from pelton.core.call import (
    CallId,
    Failure,
    InputHeaders,
    Invocation,
    Result,
    ResultKind,
    Token,
    mint_call_id,
)
from pelton.core.offsets import CommitMeta, encode_metadata
from pelton.core.spec import FunctionKind, FunctionSpec
from pelton.protocol import codec, headers
from pelton.protocol.topics import Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.log import KafkaFailure
from pelton_platform.deploy.callbook import FAILED, RUNNING, SUCCEEDED, WAITING, CallBook, overview
from support.embedded_broker import Broker

_numbers = itertools.count(1)
SPEC = FunctionSpec("f", 1, "c", FunctionKind.GENERATOR, (), "m", "f", "0" * 64, partitions=1)
TOKEN = Token(1, 1, 0, 0, 1)


class Writer:
    """Writes calls and results of `f` as callers and coordinators do."""

    def __init__(self, config: ConnectionConfig) -> None:
        self.topics = Topics(config.namespace)
        self.admin = Admin(config)
        self.admin.create_topics(self.topics.topic_plans_for_function(SPEC, 1))
        self.producer = RecordProducer(config)

    def call(self) -> CallId:
        """Submit a call; its results go to partition 0."""
        call_id = mint_call_id(time.time_ns() // 1_000_000, 0, os.urandom(8))
        body = codec.encode_invocation(Invocation(call_id, "f", b""))
        self.send(self.topics.invocations("f"), body, headers.encode_input(InputHeaders(call_id, "f")))
        return call_id

    def result(
        self, call_id: CallId, kind: ResultKind, first: int = 0, *items: bytes, failure: Failure | None = None
    ) -> None:
        """Write one result record."""
        result = Result(call_id, TOKEN, kind, first, items, failure=failure, attempts=1, worker="w")
        self.send(
            self.topics.results("f"), codec.encode_result(result), headers.encode_result(call_id, TOKEN)
        )

    def send(self, topic: str, value: bytes, record_headers: list[tuple[str, bytes]]) -> None:
        """Append a record to partition 0 and wait for its acknowledgement."""
        reports: list[KafkaFailure | None] = []
        self.producer.send(
            topic,
            value,
            partition=0,
            headers=record_headers,
            on_report=lambda failure, *_: reports.append(failure),
        )
        assert self.producer.flush(30) == 0
        assert reports == [None]


@pytest.fixture
def config(broker: Broker) -> ConnectionConfig:
    """A namespace of its own."""
    return ConnectionConfig(broker.bootstrap_servers, f"callbook-{next(_numbers)}")


@pytest.fixture
def writer(config: ConnectionConfig) -> Iterator[Writer]:
    """A writer whose function has its topics."""
    writer = Writer(config)
    yield writer
    writer.producer.close()
    writer.admin.close()


@pytest.fixture
def book(config: ConnectionConfig, writer: Writer) -> Iterator[CallBook]:
    """A call book of the same namespace."""
    book = CallBook(config)
    yield book
    book.close()


def test_deploy_callbook_tells_states_apart(writer: Writer, book: CallBook) -> None:
    """Waiting, running, succeeded and failed calls are each shown as what they are, once."""
    waiting, running, done, failed, finished_above = (writer.call() for _ in range(5))
    writer.result(running, ResultKind.STARTED)
    writer.result(running, ResultKind.CHUNK, 0, b"a")
    writer.result(done, ResultKind.CHUNK, 0, b"a", b"b")
    writer.result(done, ResultKind.OUTCOME, 2, b"v")
    writer.result(failed, ResultKind.OUTCOME, failure=Failure("ValueError", "x"))
    meta = encode_metadata(CommitMeta(epoch=1, finished=((4, 1),)))
    writer.admin.commit_for_idle_group(
        writer.topics.group("f"), {(writer.topics.invocations("f"), 0): (0, meta)}
    )
    entries = overview(book.open_calls(SPEC), book.results(SPEC, 0, most=100))
    states = {entry.call_id: entry.state for entry in entries}
    assert states == {waiting: WAITING, running: RUNNING, done: SUCCEEDED, failed: FAILED}
    assert finished_above not in states
    found = book.find([SPEC], done)
    assert found is not None
    assert (found.state, found.chunks, found.worker) == (SUCCEEDED, [b"a", b"b"], "w")
    assert found.outcome is not None
    assert found.outcome.items == (b"v",)
    in_queue = book.find([SPEC], waiting)
    assert in_queue is not None
    assert in_queue.place == f"{writer.topics.invocations('f')}/0/0"
    assert book.find([SPEC], mint_call_id(time.time_ns() // 1_000_000, 0, os.urandom(8))) is None


def test_deploy_callbook_reads_the_ends_of_a_long_backlog(writer: Writer, book: CallBook) -> None:
    """With a bound the oldest and the newest calls are read, and a short backlog is read once and whole."""
    calls = [writer.call() for _ in range(7)]
    assert [entry.call_id for entry in book.open_calls(SPEC, most=2)] == [*calls[:2], *calls[-2:]]
    assert [entry.call_id for entry in book.open_calls(SPEC, most=5)] == calls
    assert [entry.call_id for entry in book.open_calls(SPEC, most=7)] == calls


def test_deploy_callbook_lists_calls_whose_beginning_is_cut_off(writer: Writer, book: CallBook) -> None:
    """When only the last results are read, a stream that began before them still has its outcome."""
    call = writer.call()
    for number in range(5):
        writer.result(call, ResultKind.CHUNK, number, b"x")
    writer.result(call, ResultKind.OUTCOME, 5, b"v")
    assert book.results(SPEC, 0, most=2)[call].state == SUCCEEDED
    assert book.results(SPEC, 0, most=1)[call].state == SUCCEEDED

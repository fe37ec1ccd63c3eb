"""The caller's side over the broker in memory: the same routing as on Kafka, real threads, and a worker."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pelton import function, gather
from pelton.client import calls, session
from pelton.core.call import Failure, Result, ResultKind, Token, call_id_text, mint_call_id
from pelton.core.spec import FunctionSpec
from pelton.decorators import Function
from pelton.definitions import container_spec, function_spec
from pelton.errors import CallNotFound, FunctionError
from pelton.protocol import payload
from pelton.references import function_ref
from pelton.transport.memory import Delivery, MemoryBroker, MemoryTransport


@dataclass
class Label:
    """What `classify` returns."""

    name: str
    score: float


@function(name="memory-classify")
def classify(text: str) -> Label:
    """Labels a text; an empty one is an error."""
    if not text:
        raise ValueError("nothing to label")
    return Label(text.upper(), 0.5)


@function(name="memory-count")
def count(n: int) -> Iterator[int]:
    """Counts."""
    yield from range(n)


@function(name="memory-double")
async def double(n: int) -> int:
    """Doubles."""
    return 2 * n


class Worker:
    """Runs the bare function for each record; `gate` holds it up."""

    def __init__(self, target: Function[..., Any, Any, Any]) -> None:
        self.target = target
        self.gate = threading.Event()
        self.gate.set()
        self.delivered = 0

    def __call__(self, delivery: Delivery) -> None:
        """Runs one call and appends its results."""
        self.gate.wait(10)
        self.delivered += 1
        token = Token(delivery.headers.attempt, 1, 0, delivery.partition, self.delivered)
        call_id = delivery.headers.call_id
        args, kwargs = payload.decode_arguments(delivery.invocation.arguments)
        sequence = 0
        try:
            value = self.target.fn(*args, **kwargs)
            if inspect.isgenerator(value):
                for item in value:
                    items = (payload.encode(item),)
                    delivery.append(Result(call_id, token, ResultKind.CHUNK, first=sequence, items=items))
                    sequence += 1
                value = None
            elif inspect.iscoroutine(value):
                value = asyncio.run(value)
        except Exception as error:
            failure = Failure(f"builtins.{type(error).__name__}", str(error), attempt=1)
            delivery.append(Result(call_id, token, ResultKind.OUTCOME, first=sequence, failure=failure))
            return
        items = (payload.encode(value),)
        delivery.append(Result(call_id, token, ResultKind.OUTCOME, first=sequence, items=items))


@dataclass
class Platform:
    """A broker with the three functions and their workers."""

    broker: MemoryBroker
    workers: dict[str, Worker]
    specs: dict[str, FunctionSpec]


@pytest.fixture
def platform() -> Iterator[Platform]:
    """Everything deployed, and this process connected."""
    broker = MemoryBroker()
    workers, specs = {}, {}
    for entry in (classify, count, double):
        declared: Function[..., Any, Any, Any] = entry
        spec = function_spec(declared, version=1, bundle="b")
        broker.deploy(spec, container_spec(declared.container, functions=[spec.name], version=1, bundle="b"))
        specs[spec.name], workers[spec.name] = spec, Worker(declared)
        broker.serve(spec.name, workers[spec.name])
    session.install(MemoryTransport(broker))
    yield Platform(broker, workers, specs)
    for worker in workers.values():
        worker.gate.set()
    session.close()
    broker.close()


def test_values_errors_and_streams_come_back(platform: Platform) -> None:
    """The value with its class, the user's error, the stream, for all kinds of functions."""
    assert classify("a") == Label("A", 0.5)
    assert function_ref("memory-classify")("a").name == "A"
    with pytest.raises(FunctionError, match=r"^ValueError: nothing to label"):
        classify("")
    assert double(21) == 42
    assert list(count(5)) == [0, 1, 2, 3, 4]
    assert list(count(0)) == []
    assert count.async_call(3).result(10) == [0, 1, 2]
    assert list(double.map(range(100), window=7)) == [2 * n for n in range(100)]


def test_accepted_comes_from_the_broker_alone(platform: Platform) -> None:
    """P1: appended and not acknowledged is not accepted, also when the call ran meanwhile."""
    platform.workers["memory-double"].gate.clear()
    double.async_call(0).accepted.result(10)
    platform.broker.freeze()
    future = double.async_call(1)
    with pytest.raises(TimeoutError):
        future.accepted.result(0.05)
    platform.broker.thaw()
    future.accepted.result(10)
    platform.workers["memory-double"].gate.set()
    assert future.result(10) == 2


def test_another_process_attaches(platform: Platform) -> None:
    """While it waits and after it ended; an id nobody used is not found."""
    platform.workers["memory-count"].gate.clear()
    first = count.async_call(4)
    first.accepted.result(10)
    session.install(MemoryTransport(platform.broker))
    waiting = count.attach(first.call_id)
    platform.workers["memory-count"].gate.set()
    assert waiting.result(10) == [0, 1, 2, 3]
    session.install(MemoryTransport(platform.broker))
    ended = function_ref("memory-count").attach(first.call_id)
    assert list(ended.stream()) == [0, 1, 2, 3]
    unused = mint_call_id(session.current().transport.now_ms(), 1, b"nobody's")
    with pytest.raises(CallNotFound):
        _ = count.attach(call_id_text(unused))


def test_a_slow_consumer_reads_on_from_the_log(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that runs ahead is left and taken up again, from threads and from asyncio, exactly."""
    monkeypatch.setattr(calls, "MAX_BEHIND_CHUNKS", 50)
    stream = count(1000)
    first = next(stream)
    ended = count.attach(stream.call_id)
    assert ended.result(10) == list(range(1000))
    assert len(stream._call.chunks) < 1000
    assert [first, *stream] == list(range(1000))

    async def main() -> list[int]:
        return [value async for value in count(1000)]

    assert asyncio.run(main()) == list(range(1000))


def test_many_threads_and_a_loop_share_one_connection(platform: Platform) -> None:
    """Nothing is lost or mixed up between callers of one process."""
    found: dict[int, list[int]] = {}

    def calling(number: int) -> None:
        found[number] = gather(*[double.async_call(number * 1000 + n) for n in range(50)], timeout=30)

    threads = [threading.Thread(target=calling, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()

    async def main() -> list[int]:
        return list(await asyncio.gather(*[double.async_call(-n) for n in range(200)]))

    assert asyncio.run(main()) == [-2 * n for n in range(200)]
    for thread in threads:
        thread.join()
    assert found == {k: [2 * (k * 1000 + n) for n in range(50)] for k in range(8)}
    assert session.current().calls == {}


def test_leaving_a_stream_early_leaves_the_call_alone(platform: Platform) -> None:
    """The attempt runs to its end, and its result can be had."""
    with count(100) as stream:
        assert next(stream) == 0
    assert count.attach(stream.call_id).result(10) == list(range(100))


def test_submitted_calls_run(platform: Platform) -> None:
    """Fire and forget is as durable as any call."""
    ids = [double.submit(n) for n in range(20)]
    assert session.flush(10) == 0
    assert [double.attach(call_id).result(10) for call_id in ids] == [2 * n for n in range(20)]

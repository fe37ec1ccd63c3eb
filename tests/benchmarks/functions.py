"""What the benchmarks deploy: functions that do nothing, in containers that differ in what is measured."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pelton
from pelton import Container

one = Container(name="bench-one", min_instances=1, max_instances=1, max_concurrent_requests=512)
two = Container(name="bench-two", min_instances=2, max_instances=2, max_concurrent_requests=256)
backlog = Container(name="bench-backlog", min_instances=1, max_instances=1, max_concurrent_requests=1)
takeover = Container(name="bench-takeover", min_instances=2, max_instances=2, max_concurrent_requests=8)


@pelton.function(name="bench-echo", container=one)
def echo(value: str) -> str:
    """Returns what it is given."""
    return value


@pelton.function(name="bench-aecho", container=one)
async def aecho(value: str) -> str:
    """The same, on the loop."""
    return value


@pelton.function(name="bench-keyed", ordering="key", container=one)
def keyed(value: str) -> str:
    """Returns what it is given, one call of a key after the other."""
    return value


@pelton.function(
    name="bench-flaky",
    container=one,
    retry_policy=pelton.RetryPolicy(1, initial=0.001, max_wait=0.001, jitter=0, retry_on=ValueError),
)
def flaky(value: str) -> str:
    """Fails once, and returns what it is given."""
    if pelton.context().attempt == 1:
        raise ValueError("once")
    return value


@pelton.function(name="bench-nest", container=one)
def nest(calls: int, value: str) -> list[float]:
    """Calls the echo so often, one after the other; returns the round trips in ms."""
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        echo(value)
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


@pelton.function(name="bench-count", container=one)
def count(number: int) -> Iterator[int]:
    """Yields so many numbers."""
    yield from range(number)


@pelton.function(name="bench-echo-two", container=two)
def echo_two(value: str) -> str:
    """Returns what it is given, in one of two instances."""
    return value


@pelton.function(name="bench-held", container=backlog)
def held(path: str) -> None:
    """Ends when a file is gone: what waits behind it waits long."""
    while path and os.path.exists(path):
        time.sleep(0.05)


@pelton.function(name="bench-slow", container=takeover)
def slow(path: str, number: int) -> None:
    """Notes when it starts, then takes long."""
    with open(path, "a") as notes:
        notes.write(f"{number} {os.getpid()} {time.time()}\n")
    time.sleep(15)

"""Calls that can be cancelled: what each kind of function sees of it, and how a function passes it on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import pelton

workers = pelton.Container(name="simulations", max_concurrent_requests=4)


@pelton.function(name="estimate-pi", container=workers)
def estimate_pi(seconds: float = 3600) -> float:
    """Computes until its time is over or nobody wants it any more; what it has by then is its value."""
    inside = total = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end and not pelton.context().cancelled:
        for _ in range(10_000):
            inside += random.random() ** 2 + random.random() ** 2 < 1
        total += 10_000
    return 4 * inside / total


@pelton.function(name="watch-market", container=workers)
async def watch_market(name: str) -> str:
    """Waits for hours; cancelled, it cleans up at the place where it waits."""
    try:
        await asyncio.sleep(3600)
    finally:
        pelton.logger.info("no longer watching", market=name)
    return name


@pelton.function(name="prices", container=workers)
def prices(start: float) -> Iterator[float]:
    """A stream without end: whoever leaves it ends it."""
    price = start
    while True:
        yield price
        price *= random.uniform(0.99, 1.02)
        time.sleep(0.01)


@pelton.function(name="first-above", container=workers)
def first_above(start: float, limit: float) -> float:
    """Leaves a stream as soon as it has seen enough, which cancels the call behind it."""
    for price in prices(start):
        if price > limit:
            return price
    return limit

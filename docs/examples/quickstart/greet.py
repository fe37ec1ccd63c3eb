"""Two functions to deploy and call: one returns a value, one streams."""

from __future__ import annotations

from collections.abc import Iterator

import pelton


@pelton.function(name="greet")
def greet(name: str) -> str:
    """Says hello; what it prints comes back with `pelton logs greet`."""
    print(f"greeting {name}")
    return f"Hello, {name}!"


@pelton.function(name="countdown")
def countdown(start: int) -> Iterator[int]:
    """Streams start, start - 1, ... 1: the caller sees each number when it is yielded."""
    yield from range(start, 0, -1)

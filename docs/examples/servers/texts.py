"""What the servers of this folder call: one function that returns a value, one that streams."""

from __future__ import annotations

from collections.abc import Iterator

import pelton

workers = pelton.Container(name="texts", min_instances=1, max_concurrent_requests=8)


@pelton.function(name="shout", container=workers)
def shout(text: str) -> str:
    """Says it louder."""
    return text.upper()


@pelton.function(name="letters", container=workers)
def letters(word: str) -> Iterator[str]:
    """Streams the letters of a word."""
    yield from word

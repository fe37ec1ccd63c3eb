"""Functions that call functions: a text is cut into lines, counted in many calls, and summed up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pelton

workers = pelton.Container(name="word-count", image=pelton.Image.debian_slim(), max_concurrent_requests=4)


@pelton.function(name="lines-of", container=workers)
def lines_of(text: str) -> Iterator[str]:
    """Streams the lines of a text that are not empty."""
    yield from filter(None, map(str.strip, text.splitlines()))


@pelton.function(name="count-words", container=workers)
def count_words(line: str) -> dict[str, int]:
    """Counts the words of one line."""
    return dict(Counter(line.lower().split()))


@pelton.function(name="most-common", container=workers)
def most_common(text: str, number: int = 3) -> list[str]:
    """The most frequent words of a text: a stream is read, and each line of it is a call."""
    total: Counter[str] = Counter()
    for counts in count_words.map(lines_of(text)):
        total.update(counts)
    return [word for word, _ in total.most_common(number)]


@pelton.function(name="compare", container=workers)
async def compare(left: str, right: str) -> list[str]:
    """The words that both texts use most: two calls at the same time, awaited as anything else."""
    first, second = most_common.async_call(left), most_common.async_call(right)
    return sorted({*await first} & {*await second})


@pelton.function(name="depth", container=workers)
def depth(levels: int) -> int:
    """Calls itself; each call gives its slot back while it waits for the next one."""
    return 0 if levels == 0 else 1 + depth(levels - 1)

"""Timers in memory: when each is due and where it lies, in a few bytes, however many there are."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final, NamedTuple

BUCKET_MS: Final = 60_000
"""Timers of one minute lie together; a minute is sorted when it comes near."""

_OFFSET_BITS: Final = 44
_OFFSETS: Final = (1 << _OFFSET_BITS) - 1


class Due(NamedTuple):
    """A timer whose time has come.

    Attributes:
        due_ms: when, broker time.
        partition, offset: where it lies.
    """

    due_ms: int
    partition: int
    offset: int


class _Bucket:
    """The timers of one minute: 8 bytes each, the millisecond within the minute above the offset."""

    __slots__ = ("entries", "sorted")

    def __init__(self) -> None:
        self.entries = array("Q")
        self.sorted = True

    def add(self, ms: int, offset: int) -> None:
        """Adds one, in no order."""
        self.entries.append(ms << _OFFSET_BITS | offset)
        self.sorted = False

    def take(self, ms: int, most: int) -> list[int]:
        """Removes and returns up to `most` of those before a millisecond, earliest first."""
        if not self.sorted:
            self.entries = array("Q", sorted(self.entries))
            self.sorted = True
        count = min(most, bisect_left(self.entries, ms << _OFFSET_BITS))
        taken = list(self.entries[:count])
        del self.entries[:count]
        return taken


class TimerBook:
    """When the timers of some partitions are due."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[int, _Bucket]] = {}

    def __len__(self) -> int:
        return sum(len(bucket.entries) for buckets in self._buckets.values() for bucket in buckets.values())

    @property
    def size_bytes(self) -> int:
        """Memory of all entries."""
        return 8 * len(self)

    def add(self, partition: int, due_ms: int, offset: int) -> None:
        """Remembers a timer."""
        minute, ms = divmod(due_ms, BUCKET_MS)
        buckets = self._buckets.setdefault(partition, {})
        bucket = buckets.get(minute)
        if bucket is None:
            bucket = buckets[minute] = _Bucket()
        bucket.add(ms, offset)

    def forget(self, partition: int) -> None:
        """Knows nothing of a partition any more."""
        self._buckets.pop(partition, None)

    def take(self, until_ms: int, most: int) -> list[Due]:
        """Removes and returns up to `most` timers that are due before a time, earliest minute first."""
        taken: list[Due] = []
        for minute, partition in sorted(self._minutes(until_ms)):
            bucket = self._buckets[partition][minute]
            ms = min(BUCKET_MS, until_ms - minute * BUCKET_MS)
            for entry in bucket.take(ms, most - len(taken)):
                due_ms = minute * BUCKET_MS + (entry >> _OFFSET_BITS)
                taken.append(Due(due_ms, partition, entry & _OFFSETS))
            if not bucket.entries:
                del self._buckets[partition][minute]
            if len(taken) >= most:
                break
        return taken

    def _minutes(self, until_ms: int) -> Iterator[tuple[int, int]]:
        for partition, buckets in self._buckets.items():
            for minute in buckets:
                if minute * BUCKET_MS < until_ms:
                    yield minute, partition

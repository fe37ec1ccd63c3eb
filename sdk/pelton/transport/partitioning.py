"""Which partition a record goes to: by its key, as Java's clients choose it, or spread evenly, in runs."""

from __future__ import annotations

import random
from typing import Final

_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF
_LONGEST_RUN: Final = 32
_RUNS_OF_ALL: Final = 4


def murmur2(data: bytes) -> int:
    """The 32 bit hash that Kafka's default partitioner takes of a key."""
    length = len(data)
    hashed = (_SEED ^ length) & _MASK
    whole = length & ~3
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * _MULTIPLIER & _MASK
        word = (word ^ word >> 24) * _MULTIPLIER & _MASK
        hashed = (hashed * _MULTIPLIER & _MASK) ^ word
    if tail := data[whole:]:
        hashed = (hashed ^ int.from_bytes(tail, "little")) * _MULTIPLIER & _MASK
    hashed = (hashed ^ hashed >> 13) * _MULTIPLIER & _MASK
    return hashed ^ hashed >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key in a topic with so many partitions."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


class Spread:
    """Spreads records over the partitions of a topic: in turn, and in runs when many are on their way.

    Records for one partition share a request to the broker, its answer, and the fetch that brings them to
    their reader: with records one by one over eight partitions nearly each record costs all of these alone.
    A run is at most a quarter of a partition's even share of what is open, so that no partition has much
    more to do than another. What is sent alone goes to the next partition at once.

    May be used from many threads: when two of them meet, a run is a little longer or shorter.
    """

    __slots__ = ("_at", "_left", "partitions")

    def __init__(self, partitions: int, dice: random.Random) -> None:
        self.partitions = partitions
        self._at = dice.randrange(partitions)
        self._left = 0

    def next(self, opened: int) -> int:
        """The partition for the next record, when so many of its kind are open."""
        if self._left > 0:
            self._left -= 1
        else:
            self._left = min(opened // (self.partitions * _RUNS_OF_ALL), _LONGEST_RUN) - 1
            self._at = (self._at + 1) % self.partitions
        return self._at

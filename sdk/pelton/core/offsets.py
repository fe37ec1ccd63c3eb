"""Which records of a partition are finished: the tracker, and the metadata that travels with every commit."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

METADATA_LIMIT: Final = 3072
"""Bytes of base64 text; the broker's limit is 4,095 UTF-16 units (measured), this leaves room."""

METADATA_FULL: Final = METADATA_LIMIT * 3 // 4
"""Above this no new records are taken in."""

_VERSION: Final = 1
_PREFIX: Final = "p1:"


@dataclass(frozen=True, slots=True)
class CommitMeta:
    """What a commit says besides its offset.

    Attributes:
        epoch: owner epoch of the partition.
        bound: records below it may have run before (*suspects below*).
        finished: runs of finished offsets above the committed one, as (first, length), ascending.
        counts: delivery counts by offset.
        used: attempts used by offset.
    """

    epoch: int = 0
    bound: int = 0
    finished: tuple[tuple[int, int], ...] = ()
    counts: Mapping[int, int] = field(default_factory=dict)
    used: Mapping[int, int] = field(default_factory=dict)


def _write(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


class _Numbers:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self) -> int:
        number = shift = 0
        while True:
            if self.at >= len(self.data) or shift > 63:
                raise ValueError("truncated or over-long number")
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7


def _write_map(out: bytearray, entries: Mapping[int, int], base: int) -> None:
    _write(out, len(entries))
    last = base
    for offset in sorted(entries):
        _write(out, offset - last)
        _write(out, entries[offset])
        last = offset


def _read_map(numbers: _Numbers, base: int) -> dict[int, int]:
    entries: dict[int, int] = {}
    last = base
    for _ in range(numbers.take()):
        last += numbers.take()
        entries[last] = numbers.take()
    return entries


def encode_metadata(meta: CommitMeta, base: int = 0) -> str:
    """Text for the commit of offset `base`; all offsets in it are at or above `base`."""
    out = bytearray((_VERSION,))
    _write(out, base)
    _write(out, meta.epoch)
    _write(out, meta.bound)
    _write(out, len(meta.finished))
    last = base
    for first, length in meta.finished:
        _write(out, first - last)
        _write(out, length)
        last = first + length
    _write_map(out, meta.counts, base)
    _write_map(out, meta.used, base)
    return _PREFIX + base64.b64encode(bytes(out)).decode("ascii")


def decode_metadata(text: str | None) -> CommitMeta | None:
    """Reads commit metadata; None when it is missing, foreign, cut or corrupt (the caller then replays)."""
    if not text or not text.startswith(_PREFIX):
        return None
    try:
        data = base64.b64decode(text[len(_PREFIX) :], validate=True)
        if not data or data[0] != _VERSION:
            return None
        numbers = _Numbers(data)
        numbers.at = 1
        base, epoch, bound = numbers.take(), numbers.take(), numbers.take()
        runs: list[tuple[int, int]] = []
        last = base
        for _ in range(numbers.take()):
            first = last + numbers.take()
            length = numbers.take()
            runs.append((first, length))
            last = first + length
        counts, used = _read_map(numbers, base), _read_map(numbers, base)
        if numbers.at != len(data):
            return None
    except (ValueError, binascii.Error):
        return None
    return CommitMeta(epoch, bound, tuple(runs), counts, used)


def initial_metadata() -> str:
    """Metadata the deployer commits at offset 0 when it creates a function: nothing may have run."""
    return encode_metadata(CommitMeta())


def unfinished(committed: int, meta: CommitMeta | None, end: int) -> int:
    """Records of a partition without a durable end: what `end - committed` would be without finished gaps."""
    count = max(0, end - committed)
    if meta is not None:
        for first, length in meta.finished:
            count -= max(0, min(first + length, end) - max(first, committed))
    return count


class FinishedRuns:
    """The set of finished offsets of a partition, kept as the lowest unfinished one and runs above it.

    Attributes:
        base: lowest unfinished offset.
    """

    __slots__ = ("_at", "_ends", "base")

    def __init__(self, base: int, runs: tuple[tuple[int, int], ...] = ()) -> None:
        self.base = base
        self._at: dict[int, int] = {}
        """first -> end of each run above base."""
        self._ends: dict[int, int] = {}
        """end -> first of each run above base."""
        for first, length in runs:
            for offset in range(max(first, base), first + length):
                self.add(offset)

    def add(self, offset: int) -> None:
        """Marks an offset finished that is not yet (the caller knows: checking would cost a search)."""
        if offset == self.base:
            self.base = self._at.pop(offset + 1, offset + 1)
            if self.base != offset + 1:
                del self._ends[self.base]
            return
        first = self._ends.pop(offset, offset)
        end = self._at.pop(offset + 1, offset + 1)
        self._at[first] = end
        self._ends[end] = first

    def discard(self, offset: int) -> None:
        """Takes back an offset above base that was marked finished."""
        for first, end in self._at.items():
            if first <= offset < end:
                break
        else:
            return
        del self._at[first]
        del self._ends[end]
        if first < offset:
            self._at[first] = offset
            self._ends[offset] = first
        if offset + 1 < end:
            self._at[offset + 1] = end
            self._ends[end] = offset + 1

    def joins(self, offset: int) -> bool:
        """Whether an unfinished offset lies beside finished ones."""
        return offset == self.base or offset in self._ends or offset + 1 in self._at

    def __contains__(self, offset: int) -> bool:
        if offset < self.base:
            return True
        if not self._at:
            return False
        if offset in self._at or offset + 1 in self._ends:
            return True
        return any(first <= offset < end for first, end in self._at.items())

    def runs(self) -> tuple[tuple[int, int], ...]:
        """The runs above base as (first, length), ascending."""
        return tuple((first, self._at[first] - first) for first in sorted(self._at))

    @property
    def gaps(self) -> int:
        """Number of runs above base."""
        return len(self._at)

    def __iter__(self) -> Iterator[int]:
        for first, length in self.runs():
            yield from range(first, first + length)

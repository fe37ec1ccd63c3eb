"""Carries out what a governor decides: reads requests, reads the leases there are, and commits grants."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from pelton.core.governing import Governor, Grant
from pelton.errors import PeltonError, RecordError
from pelton.protocol.codec import decode_lease, decode_limit_request, encode_lease
from pelton.protocol.limits import lease_key
from pelton.transport.log import LogRecord, Place
from pelton_platform import telemetry

READ_S: Final = 1.0
"""How long reading the leases of partitions may take at a time; others wait meanwhile."""

_COMPLAIN_EVERY_S: Final = 5.0
_log = telemetry.get_logger(__name__)


class Ranges(Protocol):
    """Reads stretches of the log, without records of aborted transactions."""

    def read(self, ranges: Mapping[Place, tuple[int, int]], timeout_s: float) -> Iterator[list[LogRecord]]:
        """Yields records in batches."""


class Offsets(Protocol):
    """Asks for offsets; records of open transactions count."""

    def starts(self, topic: str, partitions: Sequence[int]) -> Mapping[int, int]:
        """The first offset of each."""

    def ends(self, topic: str, partitions: Sequence[int]) -> Mapping[int, int]:
        """The offset the next record of each will get."""


class Writer(Protocol):
    """Commits leases, if this process is still the owner of their partitions."""

    def __call__(self, records: Sequence[tuple[int, bytes, bytes | None]]) -> None:
        """Writes all of them or none; raises a TransportError."""


class LimitService:
    """The limits of the partitions that this process owns; one thread uses it.

    Args:
        topics: of requests and of leases.
        ranges: reads leases.
        offsets: asks for offsets.
        write: commits leases.
        at_ms: a clock that does not step.
        broker_ms: broker time.

    Attributes:
        counters: how often what happened.
    """

    def __init__(
        self,
        topics: tuple[str, str],
        ranges: Ranges,
        offsets: Offsets,
        write: Writer,
        at_ms: Callable[[], int],
        broker_ms: Callable[[], int],
    ) -> None:
        self._requests, self._leases = topics
        self._ranges, self._offsets, self._write = ranges, offsets, write
        self._at_ms, self._broker_ms = at_ms, broker_ms
        self._governor = Governor()
        self._unread: set[int] = set()
        self._positions: dict[int, int] = {}
        self._complained_at = -_COMPLAIN_EVERY_S
        self.counters: Counter[str] = Counter()

    # ---- the topic of requests ----

    def assigned(self, ends: Mapping[int, int]) -> None:
        """See `SharedListener`."""
        for partition in ends:
            self._read_anew(partition)

    def gone(self, partitions: Sequence[int]) -> None:
        """See `SharedListener`."""
        for partition in partitions:
            self._governor.gone(partition)
            self._unread.discard(partition)
            self._positions.pop(partition, None)

    def records(self, batch: Sequence[LogRecord]) -> None:
        """See `SharedListener`."""
        at_ms = self._at_ms()
        for record in batch:
            try:
                request = decode_limit_request(record.value)
            except RecordError as error:
                self.counters["refused"] += 1
                where = f"{record.topic}/{record.partition}/{record.offset}"
                _log.error("limit-request-refused", place=where, reason=str(error))
                continue
            self.counters["requests"] += 1
            self._governor.request(record.partition, request, at_ms)

    def reached(self, partition: int, offset: int) -> None:
        """See `SharedListener`."""
        self._positions[partition] = offset
        self._governor.reached(partition, offset)

    # ---- deciding ----

    def serve(self) -> None:
        """Reads what is not known yet, expires what was silent, and commits what was decided. Blocks."""
        try:
            self._read()
            self._expire()
        except PeltonError as error:
            self._complain("leases-not-read", error)
        grants = self._governor.decide(self._at_ms(), self._broker_ms())
        if not grants:
            return
        try:
            self._write([_record(grant) for grant in grants])
            self.counters["grants"] += len(grants)
        except PeltonError as error:
            # Whether they were committed is not known: the log says.
            self._complain("grants-not-committed", error)
            for partition in {grant[0] for grant in grants}:
                self._read_anew(partition)

    def wait_s(self, longest_s: float) -> float:
        """How long to wait for requests before `serve` is to be called again."""
        next_ms = self._governor.next_ms()
        if self._unread or not next_ms:
            return longest_s
        return min(longest_s, max(0.0, (next_ms - self._at_ms()) / 1000))

    def _read_anew(self, partition: int) -> None:
        self._governor.assigned(partition)
        self._unread.add(partition)

    def _read(self) -> None:
        """Reads the leases of partitions that came, up to their ends: open transactions are waited for."""
        if not self._unread:
            return
        unread = sorted(self._unread)
        starts = self._offsets.starts(self._leases, unread)
        ends = self._offsets.ends(self._leases, unread)
        newest: dict[int, dict[bytes, bytes]] = {partition: {} for partition in unread}
        spans = {(self._leases, each): (starts[each], ends[each]) for each in unread}
        for batch in self._ranges.read(spans, READ_S):
            for record in batch:
                leases = newest[record.partition]
                if record.key is None:
                    continue
                if record.value is None:
                    leases.pop(record.key, None)
                else:
                    leases[record.key] = record.value
        for partition, leases in newest.items():
            for value in leases.values():
                try:
                    self._governor.lease(partition, decode_lease(value))
                except RecordError as error:
                    self.counters["refused"] += 1
                    _log.error("lease-refused", partition=partition, reason=str(error))
            self._governor.loaded(partition, self._at_ms())
            self._unread.discard(partition)

    def _expire(self) -> None:
        """What may still renew the leases of silent instances lies below the ends that are asked for now."""
        at_ms = self._at_ms()
        overdue = self._governor.overdue(at_ms)
        if overdue:
            for partition, end in self._offsets.ends(self._requests, overdue).items():
                self._governor.check(partition, end, at_ms)
                self._governor.reached(partition, self._positions.get(partition, 0))

    def _complain(self, event: str, error: PeltonError) -> None:
        self.counters["failed"] += 1
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_EVERY_S:
            self._complained_at = now
            _log.warning(event, reason=str(error))


def _record(grant: Grant) -> tuple[int, bytes, bytes | None]:
    partition, key, instance, lease = grant
    return partition, lease_key(key, instance), None if lease is None else encode_lease(lease)

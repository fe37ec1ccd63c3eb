"""Removing payloads from the object store once no record has named them for 31 days."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Final

import structlog

from pelton.errors import PayloadUnavailable, PeltonError
from pelton.protocol.claims import named_in
from pelton.protocol.topics import Topics
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.ranges import RangeReader
from pelton.transport.payloads import LEDGER, ObjectStore

KEPT_S: Final = 31 * 86_400.0
"""A payload stays so long after the last record that named it."""

INTERVAL_S: Final = 86_400.0
"""How often is looked."""

FIRST_AFTER_S: Final = 300.0
"""When is looked for the first time: what restarts every day sweeps all the same."""

_DRAFT_S: Final = 86_400.0
_READ_S: Final = 600.0
_log = structlog.get_logger("deployer")


@dataclass(frozen=True, slots=True)
class Swept:
    """What one look came to.

    Attributes:
        objects: how many there were.
        unnamed: how many of them no record names.
        removed: how many were removed.
    """

    objects: int
    unnamed: int
    removed: int


class Sweeper:
    """Looks which objects no record names, and removes those that none has named for long enough.

    The store itself remembers since when that is so, for each object: what is not remembered counts from now.

    Args:
        store: where they are.
        named: ids of the objects that records of a function name; raises when that cannot be said.
        now_s: seconds since the epoch.
    """

    def __init__(
        self, store: ObjectStore, named: Callable[[str], Set[bytes]], now_s: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._named = named
        self._now_s = now_s

    def sweep(self) -> Swept:
        """Looks once.

        Raises:
            PayloadUnavailable: the store cannot be reached.
        """
        now_s = self._now_s()
        for draft in self._store.old_drafts(now_s - _DRAFT_S):
            draft.unlink(missing_ok=True)
        # Listed before records are read: what is named by a record that comes later is newer than this.
        objects = list(self._store.objects())
        before = self._read_ledger()
        unnamed: dict[str, float] = {}
        named: dict[str, Set[bytes] | None] = {}
        for found in objects:
            if found.function not in named:
                named[found.function] = self._named_of(found.function)
            ids = named[found.function]
            if ids is None:
                # Nobody can say: what was remembered stays.
                unnamed |= {found.path: before[found.path]} if found.path in before else {}
            elif found.id not in ids:
                unnamed[found.path] = before.get(found.path, now_s)
        removed = [
            path
            for path, since in unnamed.items()
            if now_s - since >= KEPT_S and named[path.partition("/")[0]] is not None
        ]
        for path in removed:
            self._store.remove(path)
            del unnamed[path]
        self._store.write_note(LEDGER, json.dumps(unnamed, sort_keys=True).encode())
        return Swept(len(objects), len(unnamed) + len(removed), len(removed))

    def _named_of(self, function: str) -> Set[bytes] | None:
        try:
            return self._named(function)
        except PeltonError as error:
            _log.warning("payloads-not-swept", function=function, reason=str(error))
            return None

    def _read_ledger(self) -> dict[str, float]:
        note = self._store.read_note(LEDGER)
        try:
            found = json.loads(note or b"{}")
            return {str(path): float(since) for path, since in found.items()}
        except (ValueError, AttributeError, TypeError) as error:
            # Forgotten means counted anew: nothing is removed too early.
            _log.warning("payload-ledger-unreadable", reason=str(error))
            return {}


def read_named(admin: Admin, ranges: RangeReader, topics: Topics, function: str) -> Set[bytes]:
    """Ids of all objects that the records of a function name: waiting, finished and given up ones.

    Raises:
        TransportError: Kafka cannot be reached, or is slow.
        DataLoss: records were trimmed meanwhile.
    """
    known = admin.topics()
    names = [
        topics.invocations(function),
        topics.retries(function),
        topics.results(function),
        topics.dead_letters(function),
    ]
    places = [(name, number) for name in names for number in range(known.get(name, 0))]
    spans = {place: span for place, span in admin.watermarks(places).items() if span[0] < span[1]}
    found: set[bytes] = set()
    if spans:
        for batch in ranges.read(spans, _READ_S):
            for record in batch:
                found.update(named_in(record.value or b""))
    return found


def sweep_once(store: ObjectStore, admin: Admin, ranges: RangeReader, topics: Topics) -> None:
    """Looks once, and says what it came to."""
    try:
        swept = Sweeper(store, lambda function: read_named(admin, ranges, topics, function)).sweep()
    except PayloadUnavailable as error:
        _log.warning("payloads-not-swept", reason=str(error))
        return
    _log.info("payloads-swept", objects=swept.objects, unnamed=swept.unnamed, removed=swept.removed)

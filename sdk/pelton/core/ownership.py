"""What an instance knows of a partition it owns, and how commits of it are made and answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pelton.core.call import InputPartition, Token
from pelton.core.decisions import Action, Commit, CommitOutcome, InputRecord
from pelton.core.offsets import METADATA_FULL, METADATA_LIMIT, CommitMeta, FinishedRuns, encode_metadata
from pelton.core.run import Item, Run

if TYPE_CHECKING:
    from pelton.core.lanes import Lanes

_ENTRY_BYTES: Final = 4
"""Estimated bytes of one run or count in the metadata before base64."""

Answer = Callable[[bool], None]
"""Called with True when a commit that includes the state at the time of asking was acknowledged."""


class Owned:
    """One assignment of one partition: tracker, epoch, horizon, waiting records.

    Attributes:
        partition: which one.
        alive: until it is lost or handed over.
        ready: its epoch is committed; before that nothing is dispatched.
        informed: cancellations that were in the log at the assignment are known; before that neither.
        leaving: being revoked; nothing more is dispatched.
        epoch: owner epoch, in every token.
        bound: records below it may have run, or may run at a former owner that does not know it is one.
        counted_below: records below it were in the log at the assignment: they are suspects.
        horizon: committed horizon; nothing at or above it is dispatched.
        wanted: horizon asked for by the next commit.
        finished: which records are finished.
        counts, used: delivery counts and attempts used, by offset.
        position: offset expected next from the log.
        queue: records waiting to be dispatched.
        queued_bytes: size of their bodies.
        items: all unfinished records taken in, and committed copies still ahead, by offset.
        restored_end: below it, records may be known already (from the metadata, or as copies).
        committed: acknowledged committed offset.
        paused: whether intake is paused.
        dirty: finished records since the last commit.
        held: records kept out of the queue: their calls are cancelled, too many of their depth are parked, or
            others with their key come first.
        lanes: records by key; None when the function has no key order.
        delayed: records that wait for their time.
        since_ms: when the assignment began, broker time.
        stretch: so many more records may wait here than a share of the window.
        tail_from: offset of the first copy made in this round of tail copies, -1 before it.
        tail_over: the round came back to its first copy.
        tail_copying: records on their way to the end of the partition.
        tail_pause_ms, tail_not_before_ms: how long the next round waits, and until when.
    """

    __slots__ = (
        "alive",
        "bound",
        "committed",
        "counted_below",
        "counts",
        "delayed",
        "dirty",
        "epoch",
        "finished",
        "held",
        "horizon",
        "informed",
        "items",
        "lanes",
        "leaving",
        "partition",
        "paused",
        "position",
        "queue",
        "queued_bytes",
        "ready",
        "restored_end",
        "runs",
        "since_ms",
        "stretch",
        "tail_copying",
        "tail_from",
        "tail_not_before_ms",
        "tail_over",
        "tail_pause_ms",
        "trimmed",
        "used",
        "wanted",
    )

    def __init__(
        self,
        partition: InputPartition,
        offset: int,
        meta: CommitMeta | None,
        log_end: int,
        now_ms: int,
        ahead: int,
    ) -> None:
        if meta is None:
            meta = CommitMeta(bound=log_end)
        self.partition = partition
        self.alive = True
        self.ready = False
        self.informed = False
        self.leaving = False
        self.epoch = max(meta.epoch + 1, now_ms)
        self.bound = meta.bound
        # Who died before this assignment dispatched nothing that came after it; only who is frozen still may.
        self.counted_below = min(meta.bound, log_end)
        self.horizon = meta.bound
        self.wanted = max(meta.bound, offset + ahead)
        self.finished = FinishedRuns(offset, meta.finished)
        self.restored_end = max((first + length for first, length in meta.finished), default=offset)
        self.counts = dict(meta.counts)
        self.used = dict(meta.used)
        self.position = offset
        self.queue: deque[Item] = deque()
        self.queued_bytes = 0
        self.items: dict[int, Item] = {}
        self.committed = -1
        self.trimmed = -1
        self.paused = False
        self.dirty = 0
        self.runs = 0
        self.held = 0
        self.stretch = 0
        self.delayed = 0
        self.since_ms = now_ms
        self.lanes: Lanes | None = None
        self.tail_from = -1
        self.tail_over = False
        self.tail_copying = 0
        self.tail_pause_ms = 0
        self.tail_not_before_ms = 0

    def token(self, attempt: int) -> Token:
        """A token higher than every earlier one of this assignment."""
        self.runs += 1
        topic, number = self.partition
        return Token(attempt, self.epoch, topic, number, self.runs)

    def take_in(self, record: InputRecord) -> Item | None:
        """Takes the next record of the log; None when it needs no dispatch."""
        offset = record.offset
        if offset < self.position:
            return None
        while self.position < offset:
            # A hole in the log holds no call; it must not hold up the commit.
            if self.position >= self.restored_end or self.position not in self.finished:
                self.finished.add(self.position)
                self.dirty += 1
            self.position += 1
        self.position = offset + 1
        if offset < self.restored_end and (offset in self.items or offset in self.finished):
            return None
        headers = record.headers
        suspect = offset < self.counted_below or (headers is not None and headers.may_have_run is not None)
        item = Item(self, offset, record, suspect)
        self.items[offset] = item
        return item

    def wait(self, item: Item) -> None:
        """Puts a record back at the head of the queue."""
        self.queue.appendleft(item)
        self.queued_bytes += len(item.record.value or b"")

    def wait_in_order(self, item: Item) -> None:
        """Puts a record back in front of all that come after it in the log."""
        at = 0
        for other in self.queue:
            if other.offset > item.offset:
                break
            at += 1
        self.queue.insert(at, item)
        self.queued_bytes += len(item.record.value or b"")

    def bind(self, offset: int, record: InputRecord, run: Run) -> Item | None:
        """The item of a committed copy, bound to its run; None when the copy already went its own way."""
        if offset < self.position:
            item = self.items.get(offset)
            if item is None or item.run is not None:
                return None
        else:
            item = Item(self, offset, record, suspect=True)
            self.items[offset] = item
            self.restored_end = max(self.restored_end, offset + 1)
        item.run = run
        item.dispatched = True
        return item

    def finish(self, item: Item) -> None:
        """Marks a record finished: what it stands for is acknowledged by Kafka."""
        offset = item.offset
        if self.alive and self.items.pop(offset, None) is not None:
            self.finished.add(offset)
            self.dirty += 1
            if self.counts:
                self.counts.pop(offset, None)
            if self.used:
                self.used.pop(offset, None)
            if self.lanes is not None:
                self.lanes.leave(item)

    def metadata_bytes(self) -> int:
        """Estimated size of the metadata text."""
        entries = self.finished.gaps + len(self.counts) + len(self.used)
        return 40 + entries * _ENTRY_BYTES * 4 // 3

    @property
    def serving(self) -> bool:
        """Whether records may be dispatched."""
        return self.ready and self.informed and not self.leaving

    @property
    def full(self) -> bool:
        """Whether the metadata leaves no room for more records in the air."""
        return self.metadata_bytes() > METADATA_FULL

    def fills_a_gap(self, offset: int) -> bool:
        """Whether the end of a record makes no further gap: it may be begun while the metadata is full."""
        return self.finished.joins(offset)

    def snapshot(self, *, leave: bool = False) -> tuple[int, str]:
        """Offset and metadata for a commit; with `leave`, as handed to the next owner."""
        base = self.finished.base
        counts = {offset: count for offset, count in self.counts.items() if offset >= base}
        used = {offset: count for offset, count in self.used.items() if offset >= base}
        bound = self._leaving_bound(counts) if leave else self.wanted
        runs = self.finished.runs()
        while True:
            text = encode_metadata(CommitMeta(self.epoch, bound, runs, counts, used), base)
            if len(text) <= METADATA_LIMIT or not runs:
                return base, text
            # Forgetting the highest runs only makes their records run again, as suspects below the bound.
            dropped = runs[len(runs) // 2 :]
            runs = runs[: len(runs) // 2]
            bound = max(bound, dropped[-1][0] + dropped[-1][1])

    def _leaving_bound(self, counts: dict[int, int]) -> int:
        """1 + the highest unfinished offset any owner dispatched; takes back our own deliveries."""
        bound = 0
        for offset, item in self.items.items():
            if item.dispatched or offset < self.bound:
                bound = max(bound, offset + 1)
            if item.raised and item.run is not None and item.run.alive:
                left = counts.get(offset, 0) - 1
                if left > 0:
                    counts[offset] = left
                else:
                    counts.pop(offset, None)
        if self.position < self.bound:
            bound = self.bound
        return bound


class Commits:
    """Commits of an engine: one in flight at a time, answering everybody who asked before it was made."""

    def __init__(self, actions: list[Action], retry_ms: int) -> None:
        self._actions = actions
        self._retry_ms = retry_ms
        self._asked: list[tuple[tuple[Owned, ...], bool, Answer]] = []
        self._flying: list[tuple[tuple[Owned, ...], bool, Answer]] = []
        self._wanted: dict[Owned, int] = {}
        self._offsets: Mapping[InputPartition, tuple[int, str]] = {}
        self._next_id = 0
        self.flying_id = 0
        self.not_before_ms = 0
        self.refused = 0

    def ask(self, owned: Iterable[Owned], answer: Answer, *, leave: bool = False) -> None:
        """Asks for one commit of all of `owned`; answered when it is acknowledged or they are dropped."""
        self._asked.append((tuple(owned), leave, answer))

    @property
    def busy(self) -> bool:
        """Whether a commit is in flight or asked for."""
        return bool(self._asked) or self.flying_id != 0

    @property
    def flying(self) -> Sequence[Owned]:
        """Assignments in the commit in flight."""
        return tuple(self._wanted) if self.flying_id else ()

    @property
    def waiting(self) -> bool:
        """Whether one is asked for but not in flight."""
        return bool(self._asked)

    def issue(self, now_ms: int, dirty: Iterable[Owned]) -> bool:
        """Commits what was asked for and `dirty` partitions, unless a commit is in flight; True if made."""
        if self.flying_id or now_ms < self.not_before_ms:
            return False
        snapshots: dict[InputPartition, tuple[int, str]] = {}
        self._wanted = {}
        leaving = {own for group, leave, _ in self._asked if leave for own in group}
        for group, _, _ in self._asked:
            for own in group:
                self._add(snapshots, own, own in leaving)
        for own in dirty:
            self._add(snapshots, own, own in leaving)
        self._flying, self._asked = self._asked, []
        if not snapshots:
            self._settle(False)
            return False
        self._next_id += 1
        self.flying_id = self._next_id
        self._offsets = snapshots
        self._actions.append(Commit(self.flying_id, snapshots))
        return True

    def _add(self, snapshots: dict[InputPartition, tuple[int, str]], own: Owned, leave: bool) -> None:
        if own.alive and own.partition not in snapshots:
            own.dirty = 0
            snapshots[own.partition] = own.snapshot(leave=leave)
            self._wanted[own] = own.wanted

    def answered(self, now_ms: int, commit_id: int, outcome: CommitOutcome) -> None:
        """Takes the broker's answer; a refused or unknown one is repeated while the partitions are ours."""
        if commit_id != self.flying_id:
            return
        self.flying_id = 0
        if outcome is CommitOutcome.OK:
            for own, wanted in self._wanted.items():
                own.horizon = max(own.horizon, wanted)
                own.committed = max(own.committed, self._offsets[own.partition][0])
            self._settle(True)
            return
        if outcome is not CommitOutcome.UNKNOWN:
            self.refused += 1
        self.not_before_ms = now_ms + self._retry_ms
        for own in self._wanted:
            own.dirty = max(own.dirty, 1)
        again, self._flying = self._flying, []
        for group, leave, answer in again:
            if outcome is not CommitOutcome.LOST and all(own.alive for own in group):
                self._asked.append((group, leave, answer))
            else:
                answer(False)

    def _settle(self, acknowledged: bool) -> None:
        flying, self._flying = self._flying, []
        for group, _, answer in flying:
            answer(acknowledged and all(own.alive for own in group))

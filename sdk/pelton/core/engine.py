"""The engine of a worker: which record is run when, what is written for it, and when its offset is done.

It decides and does nothing: events go in through its methods, actions come out of `take()`. One engine
serves one function in one instance. Its rules keep the promises that every accepted call has exactly one
outcome, that commits never pass a record without durable evidence of its end, and that a record which kills
what runs it comes to an end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from pelton.core.attempts import Attempts
from pelton.core.call import Failure, InputPartition
from pelton.core.cancelling import Cancellations
from pelton.core.decisions import (
    Action,
    Alarm,
    CommitOutcome,
    InputRecord,
    Interrupt,
    Pause,
    ReadCancellations,
    Released,
    Resume,
    Trim,
    Unpark,
)
from pelton.core.expiring import Deadlines, not_begun
from pelton.core.handover import Handover
from pelton.core.lanes import KeyOrder, Lanes, is_keyed
from pelton.core.offsets import decode_metadata
from pelton.core.ownership import Owned
from pelton.core.parking import depth_of, roots
from pelton.core.run import Item, Run, RunKey, RunState
from pelton.core.runs import EngineSettings
from pelton.core.tail import TailCopies


class Engine(Attempts):
    """Decides for one function in one instance; see the module's docstring."""

    def __init__(
        self,
        settings: EngineSettings,
        dice: Callable[[], float] = lambda: 0.5,
        cancellations: Cancellations | None = None,
    ) -> None:
        super().__init__(settings, dice, cancellations)
        self._owned: dict[InputPartition, Owned] = {}
        self._turn: deque[Owned] = deque()
        self._handovers: list[Handover] = []
        self._slots = 0
        self._dirty_since = 0
        self._look_at_commits = False
        self._trim_at = 0
        self._waiting_until = Deadlines()
        self._tail = TailCopies(self._outbox, self._copied, self._not_copied)
        self._order = KeyOrder(self._commits, self._refuse_lane) if settings.ordered else None

    # ---- what others may see ----

    def take(self) -> list[Action]:
        """The actions decided since the last call, to be carried out in order."""
        self._dispatch()
        if self._done and not self._dirty_since:
            self._dirty_since = self._now
        if self._order is not None:
            self._order.settle(self._turn, due=False)
        if self._look_at_commits or self._commits.waiting or self._done >= self.settings.commit_count:
            self._commit()
        taken = self._actions[:]
        self._actions.clear()
        return taken

    @property
    def running(self) -> int:
        """Attempts in executors, parked ones among them."""
        return self._busy + self._isolated + self._parking.count

    @property
    def waiting(self) -> int:
        """Records taken in and not dispatched."""
        queued = sum(len(own.queue) + (own.lanes.waiting if own.lanes else 0) for own in self._turn)
        aside = len(self._apart) + len(self._delayed) + len(self._doomed)
        return queued + aside + self._parking.held_count

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits for an acknowledgement."""
        held = all(run.state is RunState.BACKOFF for run in self._runs.values())
        return held and not len(self._outbox) and not self._commits.busy and not self._handovers

    # ---- events: membership ----

    def assigned(
        self,
        now_ms: int,
        partition: InputPartition,
        committed: tuple[int, str] | None,
        log_start: int,
        log_end: int,
    ) -> int:
        """A partition is ours from now on.

        Args:
            now_ms: broker time.
            partition: which one.
            committed: the group's committed offset and metadata, None when there is none.
            log_start: first offset in the log.
            log_end: offset the next record will get.

        Returns:
            The offset to read from; -1 when nothing may be read: records the group still needed are gone.
        """
        self._now = now_ms
        self._drop_partition(partition)
        offset, meta = (
            (log_start, None) if committed is None else (committed[0], decode_metadata(committed[1]))
        )
        if not log_start <= offset <= log_end:
            self.counters["out_of_range"] += 1
            self._actions.append(
                Alarm(
                    "committed offset outside of the log: intake of this partition stopped",
                    {"partition": partition, "committed": offset, "log_start": log_start, "log_end": log_end},
                )
            )
            return -1
        own = Owned(partition, offset, meta, log_end, now_ms, self.settings.horizon)
        if self._order is not None:
            own.lanes = Lanes()
        self._owned[partition] = own
        self._turn.append(own)

        def ready(acknowledged: bool) -> None:
            own.ready = acknowledged

        self._commits.ask((own,), ready)
        self._actions.append(ReadCancellations(partition, own.epoch))
        self._trim_at = self._trim_at or now_ms + self.settings.trim_ms
        return offset

    def cancellations_read(self, now_ms: int, partition: InputPartition, epoch: int) -> None:
        """All requests to cancel that were in the log when this was asked for were added."""
        self._now = now_ms
        own = self._owned.get(partition)
        if own is not None and own.epoch == epoch:
            own.informed = True

    def cancelled(self, now_ms: int) -> None:
        """Requests to cancel were added: what they concern ends, or never starts."""
        super().cancelled(now_ms)
        self._sweep()

    def _sweep(self) -> None:
        """Takes what must not run out of wherever it waits."""
        doomed = self._doomed
        for own in self._owned.values():
            left = doomed.pick(own.queue)
            if len(left) < len(own.queue):
                own.queued_bytes -= _bytes_of(own.queue) - _bytes_of(left)
                own.queue = left
            if self._order is not None:
                self._order.pick(own, doomed)
        self._apart = doomed.pick(self._apart)
        self._delayed.pick(self._dooms)
        self._parking.pick(doomed)

    def revoke(self, now_ms: int, partitions: Sequence[InputPartition]) -> None:
        """The group takes partitions away; `Released` says when they may go."""
        self._now = now_ms
        leaving = [self._owned[partition] for partition in partitions if partition in self._owned]
        for own in leaving:
            own.leaving = True
        kept = [own for own in self._owned.values() if own.ready and own.alive and not own.leaving]
        self._handovers.append(Handover(leaving, now_ms, kept, tuple(partitions)))
        self._turn_handovers()

    def lost(self, now_ms: int, partitions: Sequence[InputPartition]) -> None:
        """Partitions are gone already: everything of these assignments is dropped."""
        self._now = now_ms
        for partition in partitions:
            self._drop_partition(partition)
        self._turn_handovers()

    def _turn_handovers(self) -> None:
        for handover in self._handovers:
            handover.turn(self._now, self._runs, self._outbox, self._commits, self._release)
        if self._handovers:
            self._handovers = [handover for handover in self._handovers if not handover.done]

    def _release(self, handover: Handover) -> None:
        self.counters["copies"] += handover.copies
        offsets = {own.partition: own.committed for own in handover.leaving if own.committed > own.trimmed}
        for own in handover.leaving:
            if self._owned.get(own.partition) is own:
                self._drop_partition(own.partition)
        if offsets:
            self._actions.append(Trim(offsets))
        self._actions.append(Released(handover.partitions))

    def _drop_partition(self, partition: InputPartition) -> None:
        own = self._owned.pop(partition, None)
        if own is None:
            return
        own.alive = own.ready = False
        self._turn.remove(own)
        for run in [run for run in self._runs.values() if any(item.own is own for item in run.items)]:
            run.items = [item for item in run.items if item.own is not own]
            if run.items and run.partition != partition:
                continue
            if run.state is RunState.RUNNING:
                self._interrupt(run, "its partition went to another instance", forced=False)
            self.counters["dropped_runs"] += 1
            self._kill(run)
            self._rerun(run.items)
        self._apart = deque(item for item in self._apart if item.own is not own)
        for key in list(self._blocked):
            self._blocked[key] = [item for item in self._blocked[key] if item.own is not own]
        self._delayed.forget(own)
        self._parking.forget(own)
        self._doomed.forget(own)

    # ---- events: records, reports, commits, time ----

    def records(self, now_ms: int, partition: InputPartition, batch: Sequence[InputRecord]) -> None:
        """Records of a partition in offset order."""
        self._now = now_ms
        own = self._owned.get(partition)
        if own is None:
            return
        queue, size, cancellations = own.queue, 0, len(self._cancellations)
        for record in batch:
            item = own.take_in(record)
            headers = record.headers
            if item is not None and headers is not None and headers.deadline_ms:
                self._waiting_until.watch(headers.deadline_ms, item)
            if item is not None and not (cancellations and self._dooms(item)):
                queue.append(item)
                size += len(record.value or b"")
        own.queued_bytes += size
        self._limit_intake(own)

    def _limit_intake(self, own: Owned) -> None:
        settings, share = self.settings, max(1, len(self._owned))
        count, size = settings.window // share + own.stretch, settings.window_bytes // share
        waiting = len(own.queue) + own.held
        if own.paused:
            if waiting <= count // 2 and own.queued_bytes <= size // 2:
                own.paused = False
                self._actions.append(Resume(own.partition))
        elif waiting > count or own.queued_bytes > size:
            own.paused = True
            self._actions.append(Pause(own.partition))

    def reported(self, now_ms: int, send_id: int, ok: bool, offset: int) -> None:
        """The delivery report of a record: acknowledged at `offset`, or expired."""
        self._now = now_ms
        if not ok:
            self.counters["expiries"] += 1
        run = self._outbox.reported(send_id, ok, offset)
        if run is not None:
            self._proceed(run)
        if self._handovers:
            self._turn_handovers()

    def committed(self, now_ms: int, commit_id: int, outcome: CommitOutcome) -> None:
        """The broker's answer to a commit."""
        self._now = now_ms
        if outcome in (CommitOutcome.REFUSED, CommitOutcome.LOST):
            self.counters["refused_commits"] += 1
        lost = self._commits.flying if outcome is CommitOutcome.LOST else ()
        self._commits.answered(now_ms, commit_id, outcome)
        for own in lost:
            # A partition that came back meanwhile is another assignment: this answer says nothing about it.
            if self._owned.get(own.partition) is own:
                self._drop_partition(own.partition)
        if self._handovers:
            self._turn_handovers()

    def capacity(self, now_ms: int, slots: int) -> None:
        """How many attempts the ready shared executors take together."""
        self._now = now_ms
        self._slots = slots

    def drain(self, now_ms: int) -> None:
        """Starts nothing more; what runs may end."""
        self._now = now_ms
        self._draining = True

    def tick(self, now_ms: int) -> None:
        """Does what is due by the clock."""
        self._now = now_ms
        self._look_at_commits = True
        self._start_young()
        self._end_backoff()
        for item in self._delayed.due(now_ms):
            item.own.wait(item)
        if self.settings.timeout_ms:
            self._end_overdue()
        if self._deadlines:
            self._end_past_deadline()
        if self._waiting_until.passed(now_ms):
            self._sweep()
        self._end_stuck()
        if self._trim_at and self._trim_at <= now_ms:
            self._trim_at = now_ms + self.settings.trim_ms
            offsets = {
                own.partition: own.committed for own in self._owned.values() if own.committed > own.trimmed
            }
            for own in self._owned.values():
                own.trimmed = max(own.trimmed, own.committed)
            if offsets:
                self._actions.append(Trim(offsets))
        self._turn_handovers()

    def _commit(self) -> None:
        settings, done = self.settings, self._done
        self._look_at_commits, self._done = False, 0
        dirty = [own for own in self._owned.values() if own.dirty and own.ready and not own.leaving]
        if dirty and not self._dirty_since:
            self._dirty_since = self._now
        due = dirty and (
            self._now - self._dirty_since >= settings.commit_age_ms or done >= settings.commit_count
        )
        if due and self._order is not None:
            self._order.settle(dirty, due=True)
        if (due or self._commits.waiting) and self._commits.issue(self._now, dirty):
            self._dirty_since = 0

    # ---- dispatch ----

    def _dispatch(self) -> None:
        parking = self._parking
        if parking.returning:
            self._come_back()
        if self._draining:
            return
        if self._doomed:
            self._end_doomed()
        if self._due:
            self._start_due(self._slots)
        if parking.held_count and self._busy < self._slots:
            parking.release(self._slots - self._busy)
        for _ in range(len(self._apart)):
            if self._isolated >= self.settings.isolated:
                break
            item = self._apart.popleft()
            if not self._dispatch_apart(item):
                self._apart.append(item)
        turn = self._turn
        left = len(turn)
        while left and self._busy < self._slots:
            own = turn[0]
            turn.rotate(-1)
            left = len(turn) if self._dispatch_from(own) else left - 1
        if parking.count and parking.count == len(self._runs) and not parking.returning:
            self._reach_behind()

    def _come_back(self) -> None:
        """Parked runs that want to go on take what is free, before anything fresh does."""
        for run in self._parking.come_back(self._slots - self._busy, self.settings.isolated - self._isolated):
            if run.parked:
                self._parking.leave(run)
                if run.apart:
                    run.isolated = True
                    self._isolated += 1
                else:
                    run.slot = True
                    self._busy += 1
            self._actions.append(Unpark(run.id))
            if run.cancelled and run.alive and run.state is RunState.RUNNING:
                self._actions.append(Interrupt(run.id, "its call was cancelled", True, True))

    def _end_doomed(self) -> None:
        """Ends waiting records of cancelled calls."""
        for own in self._turn:
            self._look_ahead(own)
        for item in self._doomed.ready():
            self._end_waiting(item)
            if item.own.paused:
                self._limit_intake(item.own)

    def _end_waiting(self, item: Item) -> None:
        """Ends a record whose call is cancelled, without running it."""
        headers = item.record.headers
        if headers is not None and not self._bound(item):
            item.dispatched = True
            run = self._new_run(item, (headers.call_id, headers.attempt))
            if run.cancelled:
                self._end_cancelled(run, None)
            else:
                self._give_up(run, not_begun())

    def _must_not_run(self, item: Item) -> bool:
        """Whether a record that is about to begin belongs to a call that is cancelled, or too late."""
        headers = item.record.headers
        if headers is not None and headers.deadline_ms and headers.deadline_ms < self._now:
            item.expired = True
        return item.expired or (len(self._cancellations) > 0 and bool(self._doomed.why(item)))

    def _dooms(self, item: Item) -> bool:
        """Whether the call of a record is cancelled; then it ends without running."""
        if item.run is not None or not self._doomed.concerns(item):
            return False
        self._doomed.add(item)
        return True

    def _reach_behind(self) -> None:
        """Every started call waits for calls it made: what lies in front of those goes to the log's end."""
        for own in self._turn:
            room = self._tail.room(self._now, own)
            if not own.serving or room <= 0 or not (own.paused or own.full):
                continue
            items = self._parking.take(own, room)
            if own.full:
                queued = [item for item in roots(own.queue) if not is_keyed(item)][: room - len(items)]
                chosen = set(queued)
                own.queue = deque(item for item in own.queue if item not in chosen)
                own.queued_bytes -= _bytes_of(queued)
                items += queued
            if not items and own.paused and self._order is not None:
                # Records with a key keep their place: what lies behind them is reached by taking in more.
                own.stretch += self.settings.window
                own.paused = False
                self._actions.append(Resume(own.partition))
            self._tail.send(self._now, own, [item for item in items if not self._bound(item)])

    def _same_call(self, item: Item) -> Run | None:
        """A run of the call and attempt of a record, which is bound to it instead of waiting."""
        headers = item.record.headers
        return None if headers is None else self._by_key.get((headers.call_id, headers.attempt))

    def _bound(self, item: Item) -> bool:
        """Binds a record to the run of its call: `moved` would outdo what that one writes."""
        other = self._same_call(item)
        if other is None:
            return False
        self._bind(item, other, other.key)
        return True

    def _copied(self, item: Item) -> None:
        """The copy of a root is acknowledged: the original is done."""
        self.counters["tail_copies"] += 1
        item.own.finish(item)
        self._done += 1
        if item.own.paused:
            self._limit_intake(item.own)

    def _not_copied(self, item: Item) -> None:
        if item.own.alive and item.offset in item.own.items:
            self._parking.hold(item)

    def _dispatch_from(self, own: Owned) -> bool:
        """Begins up to a share of a partition's waiting records; whether any was taken from the queue."""
        if not own.serving or not own.queue:
            return False
        self._look_ahead(own)
        tight = own.full
        queue, items, horizon, taken = own.queue, own.items, own.horizon, 0
        share = max(1, (self._slots - self._busy) // len(self._turn))
        full, order = self._parking.full, self._order
        while queue and taken < share and self._busy < self._slots:
            item = queue[0]
            offset = item.offset
            if offset >= horizon or ((tight or (item.suspect and own.full)) and not own.fills_a_gap(offset)):
                break
            queue.popleft()
            record = item.record
            own.queued_bytes -= len(record.value or b"")
            taken += 1
            if item.run is None and offset in items:
                if order is not None and self._same_call(item) is None and not order.enter(own, item):
                    continue
                if full and depth_of(item) in full and not is_keyed(item) and self._same_call(item) is None:
                    self._parking.hold(item)
                    continue
                if own.tail_from >= 0 or own.tail_pause_ms:
                    self._tail.reached(own)
                self._begin(item, record)
        if own.paused:
            self._limit_intake(own)
        return taken > 0

    def _look_ahead(self, own: Owned) -> None:
        """Extends the committed horizon ahead of intake."""
        ahead = self.settings.horizon
        if own.serving and own.position + ahead // 2 > own.wanted:
            own.wanted = own.position + ahead
            self._commits.ask((own,), _nothing)

    def _begin(self, item: Item, record: InputRecord) -> None:
        headers = record.headers
        if headers is None:
            self._bury(item, record)
            return
        if self._must_not_run(item):
            self._end_waiting(item)
            return
        key = (headers.call_id, headers.attempt)
        other = self._by_key.get(key)
        if other is not None:
            self._bind(item, other, key)
            return
        if (headers.due_ms or item.own.used) and self._not_due(item, headers):
            return
        if record.poison:
            item.dispatched = True
            reason = Failure("RecordError", record.poison, "", "INVALID_ARGUMENT")
            self._give_up(self._new_run(item, key), reason)
            return
        if item.suspect or item.local:
            if item.local or self._count(item) >= 1:
                self._apart.append(item)
                return
            self._count_first(self._new_run(item, key), item, shared=True)
            return
        item.dispatched = True
        run = self._new_run(item, key)
        run.slot = True
        self._busy += 1
        if self.settings.streams and (headers.attempt > 1 or item.offset < item.own.bound):
            # A frozen former owner may still have streamed what came after this assignment.
            self._fence(run, dead=False)
        else:
            self._start(run)

    def _bind(self, item: Item, other: Run, key: RunKey) -> None:
        """A second record of a call and attempt running here is done with that run, unless it is lower."""
        self.counters["duplicates_absorbed"] += 1
        own = item.own
        if other.token[:4] < (key[1], own.epoch, own.partition.topic, own.partition.partition):
            self._blocked.setdefault(key, []).append(item)
            return
        item.run = other
        item.dispatched = True
        other.items.append(item)

    def _count(self, item: Item) -> int:
        headers = item.record.headers
        carried = headers.may_have_run if headers is not None else None
        return max(item.own.counts.get(item.offset, 0), carried or 0)

    def _dispatch_apart(self, item: Item) -> bool:
        """Begins a record that must not run beside others; False when it has to wait longer."""
        own, headers = item.own, item.record.headers
        if item.run is not None or headers is None or item.offset not in own.items:
            return True
        if depth_of(item) in self._parking.full and not is_keyed(item):
            return False
        if not own.serving or item.offset >= own.horizon:
            return False
        if own.full and not own.fills_a_gap(item.offset):
            return False
        if self._must_not_run(item):
            self._end_waiting(item)
            return True
        if not item.local and any(
            run.isolated and not run.items[0].local for run in self._runs.values() if run.items
        ):
            return False
        key = (headers.call_id, headers.attempt)
        other = self._by_key.get(key)
        if other is not None:
            self._bind(item, other, key)
            return True
        run = self._new_run(item, key)
        run.isolated = True
        self._isolated += 1
        self._count_first(run, item, shared=False)
        return True

    def _count_first(self, run: Run, item: Item, *, shared: bool) -> None:
        """A suspect's delivery is counted, and the count committed, before it is dispatched."""
        self.counters["suspects"] += 1
        own, count = item.own, self._count(item)
        if shared:
            run.slot = True
            self._busy += 1
        item.dispatched = True
        own.counts[item.offset] = count + 1
        item.raised = True
        run.delivery = count + 1
        dead = count >= self.settings.max_attempts

        def counted(acknowledged: bool) -> None:
            if acknowledged and run.alive:
                self._fence(run, dead=dead)

        self._commits.ask((own,), counted)


def _bytes_of(items: Iterable[Item]) -> int:
    return sum(len(item.record.value or b"") for item in items)


def _nothing(_acknowledged: bool) -> None:
    """Nobody waits for this commit."""

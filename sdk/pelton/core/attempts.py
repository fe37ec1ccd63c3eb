"""The life of a run: from its start in an executor to the acknowledgement of its last record."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pelton.core.call import Failure, ResultKind
from pelton.core.cancelling import CANCEL_GRACE_MS, Cancellations, Doomed, cancelled_failure
from pelton.core.decisions import Action, Interrupt, ReadResults, Start, Unpark
from pelton.core.outbox import Outbox
from pelton.core.ownership import Commits
from pelton.core.parking import Parking
from pelton.core.run import Item, Run, RunKey, RunState
from pelton.core.spec import FunctionSpec

STARTED_AFTER_MS: Final = 250
"""`started` is written for attempts still running after this time: short calls need no record to say so."""

MAX_CHUNK_BYTES: Final = 768 * 1024
"""Chunks that wait together share a record up to this size."""


WINDOW: Final = 4096
"""Records that wait in memory."""

KEYED_WINDOW: Final = 65_536
"""The same with key order: a key for which many calls wait must not hide the other keys of its partition."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine needs to know.

    Attributes:
        worker: name of the instance, written on outcomes.
        streams: whether the function yields chunks.
        max_attempts: attempts granted on retriable failures, from 1.
        timeout_ms: limit of one attempt, 0 for none.
        isolated: executors of their own at the same time for records that died with others.
        window: records waiting in memory, over all partitions.
        window_bytes: bytes of bodies waiting in memory, over all partitions.
        horizon: how far the committed horizon is extended ahead of intake: one commit for so many records.
        commit_age_ms: finished records are committed after this time at the latest.
        commit_count: or after so many.
        trim_ms: how often what is committed is deleted from the log.
        retry_initial_ms, retry_max_ms: bounds of the delay before the next attempt in process.
        commit_retry_ms: pause after a refused or unanswered commit.
        parked_per_depth: runs of one depth that may wait for calls they made; more are not started.
        ordered: calls with one key start in the order of the log, each after the end of the one before it.
    """

    worker: str
    streams: bool = False
    max_attempts: int = 3
    timeout_ms: int = 0
    isolated: int = 2
    window: int = WINDOW
    window_bytes: int = 16 * 1024 * 1024
    horizon: int = 4096
    commit_age_ms: int = 100
    commit_count: int = 2000
    trim_ms: int = 60_000
    retry_initial_ms: int = 100
    retry_max_ms: int = 1000
    commit_retry_ms: int = 50
    parked_per_depth: int = 256
    ordered: bool = False

    @classmethod
    def of(cls, spec: FunctionSpec, worker: str) -> EngineSettings:
        """The settings for a function in the instance of this name."""
        ordered = spec.ordering == "key"
        return cls(
            worker=worker,
            streams=spec.kind.streams,
            max_attempts=spec.max_attempts,
            timeout_ms=spec.timeout_ms,
            ordered=ordered,
            window=KEYED_WINDOW if ordered else WINDOW,
        )


class Attempts:
    """What happens to runs once they exist; the engine adds which records become runs, and when.

    Attributes:
        counters: how often what happened, by name, for tests and metrics.
    """

    def __init__(
        self,
        settings: EngineSettings,
        dice: Callable[[], float] = lambda: 0.5,
        cancellations: Cancellations | None = None,
    ) -> None:
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self._dice = dice
        self._actions: list[Action] = []
        self._outbox = Outbox(self._actions)
        self._commits = Commits(self._actions, settings.commit_retry_ms)
        self._runs: dict[int, Run] = {}
        self._by_key: dict[RunKey, Run] = {}
        self._blocked: dict[RunKey, list[Item]] = {}
        self._apart: deque[Item] = deque()
        self._backoff: list[tuple[int, int, Run]] = []
        # Ids, not runs: a run that is over must not be kept alive until its time would have come.
        self._young: deque[tuple[int, int]] = deque()
        self._timed: deque[tuple[int, int]] = deque()
        self._lingering: dict[int, Run] = {}
        self._parking = Parking(settings.parked_per_depth)
        self._cancellations = Cancellations() if cancellations is None else cancellations
        self._doomed = Doomed(self._cancellations)
        self._cancelling: deque[tuple[int, int]] = deque()
        self._next_run = 0
        self._busy = 0
        self._done = 0
        self._isolated = 0
        self._draining = False
        self._now = 0

    def _proceed(self, run: Run) -> None:
        then, run.then = run.then, None
        if then is not None:
            then(run, run.last_offset)

    def _after_acks(self, run: Run, then: Callable[[Run, int], None]) -> None:
        run.then = then
        ready = self._outbox.flow(run)
        if ready is not None:
            self._proceed(ready)

    def fence_read(self, now_ms: int, run_id: int, chunk_seen: bool, outcome_seen: bool) -> None:
        """What lies before the `reset` of a stream, folded: final for every reader."""
        self._now = now_ms
        run = self._runs.get(run_id)
        if run is None or not run.alive or run.state is not RunState.FENCING:
            return
        if outcome_seen:
            self._free(run)
            self._finish(run)
        elif chunk_seen:
            message = "the stream broke in the middle: what ran it was lost after its first chunk"
            self._give_up(run, Failure("StreamBroken", message, "", "UNAVAILABLE", attempt=run.attempt))
        else:
            self._start(run)

    def _fence(self, run: Run, *, dead: bool) -> None:
        """`started` or `reset` with the new token is acknowledged before anything else of this execution."""
        run.state = RunState.FENCING
        streams = self.settings.streams
        self._outbox.result(
            run, ResultKind.RESET if streams else ResultKind.STARTED, worker=self.settings.worker
        )

        def fenced(run: Run, offset: int) -> None:
            if dead:
                reason = f"delivered {run.delivery - 1} times, and each time what ran it was lost"
                self._give_up(run, Failure("CallUnavailable", reason, "", "UNAVAILABLE", attempt=run.attempt))
            elif streams:
                self._actions.append(ReadResults(run.id, run.key[0], offset))
            else:
                self._start(run)

        self._after_acks(run, fenced)

    def _start(self, run: Run) -> None:
        if run.cancelled:
            self._end_cancelled(run, None)
            return
        headers = run.items[0].record.headers
        run.state = RunState.RUNNING
        if not run.isolated:
            self._count_time(run)
        self._actions.append(
            Start(
                run.id,
                run.isolated,
                run.key[0],
                run.attempt,
                run.delivery,
                run.token,
                run.items[0].record.value or b"",
                headers.deadline_ms if headers is not None else 0,
            )
        )

    def begun(self, now_ms: int, run_id: int) -> None:
        """An isolated attempt reached its executor: its time counts from now, not from that one's start."""
        self._now = now_ms
        run = self._runs.get(run_id)
        if run is not None and run.isolated and run.state is RunState.RUNNING:
            self._count_time(run)

    def _count_time(self, run: Run) -> None:
        run.began_ms = self._now
        self._young.append((self._now, run.id))
        if self.settings.timeout_ms:
            self._timed.append((self._now, run.id))

    def chunks(self, now_ms: int, run_id: int, items: Sequence[bytes]) -> None:
        """Chunks an attempt yielded, in order."""
        self._now = now_ms
        run = self._running(run_id)
        if run is None:
            return
        batch: list[bytes] = []
        size = 0
        for item in items:
            if batch and size + len(item) > MAX_CHUNK_BYTES:
                self._write_chunks(run, batch)
                batch, size = [], 0
            batch.append(item)
            size += len(item)
        if batch:
            self._write_chunks(run, batch)

    def _write_chunks(self, run: Run, batch: list[bytes]) -> None:
        self._outbox.result(run, ResultKind.CHUNK, tuple(batch))
        run.sequence += len(batch)

    def finished(
        self, now_ms: int, run_id: int, value: bytes | None, failure: Failure | None, submitted_ms: int = 0
    ) -> None:
        """An attempt ended with a value, or with the failure of user code."""
        self._now = now_ms
        self._gone(run_id)
        run = self._running(run_id)
        if run is None:
            return
        run.submitted_ms = submitted_ms
        self._free(run)
        if failure is not None:
            self._failed(run, replace(failure, attempt=run.attempt))
        else:
            self._close(run, (value,) if value is not None else (), None)

    def poisoned(self, now_ms: int, run_id: int, reason: str) -> None:
        """The body of a record cannot be read."""
        self._now = now_ms
        self._gone(run_id)
        run = self._running(run_id)
        if run is not None:
            self._free(run)
            self._give_up(run, Failure("RecordError", reason, "", "INVALID_ARGUMENT"))

    def executor_died(
        self, now_ms: int, run_ids: Sequence[int], reason: str, *, memory: bool = False
    ) -> None:
        """An executor ended with these runs in it: an attempt if it was alone, else a delivery of each.

        Args:
            now_ms: monotonic milliseconds.
            run_ids: all runs that were in it.
            reason: one sentence for people.
            memory: it took more memory than it may: a run that was alone in it would do so again.
        """
        self._now = now_ms
        hit = [
            run for run in map(self._runs.get, run_ids) if run is not None and run.state is RunState.RUNNING
        ]
        alone = len(run_ids) == 1
        for run_id in run_ids:
            self._gone(run_id)
        for run in hit:
            self._free(run)
            if run.cancelled:
                self._end_cancelled(run, None)
            elif alone:
                kind, code = (
                    ("OutOfMemory", "RESOURCE_EXHAUSTED") if memory else ("ExecutorLost", "UNAVAILABLE")
                )
                self._failed(run, Failure(kind, reason, "", code, True))
            else:
                self.counters["deliveries_lost"] += 1
                self._kill(run)
                self._rerun(run.items)

    def _running(self, run_id: int) -> Run | None:
        run = self._runs.get(run_id)
        if run is None or not run.alive or run.state is not RunState.RUNNING:
            self.counters["dropped_completions"] += 1
            return None
        return run

    def _gone(self, run_id: int) -> None:
        """An attempt left its executor; if it was interrupted before, its place is free now."""
        if self._lingering:
            stand_in = self._lingering.pop(run_id, None)
            if stand_in is not None:
                self._free(stand_in)

    def _failed(self, run: Run, failure: Failure) -> None:
        attempts = self._used(run.items[0]) + 1
        if run.cancelled or failure.code != "UNAVAILABLE" or attempts >= self.settings.max_attempts:
            self._give_up(run, failure)
            return
        self.counters["retries"] += 1
        for item in run.items:
            item.own.used[item.offset] = attempts
            item.local = True
        run.state = RunState.BACKOFF
        run.isolated = False
        settings = self.settings
        delay = min(settings.retry_max_ms, settings.retry_initial_ms << (attempts - 1))
        due = self._now + delay // 2 + int(delay / 2 * self._dice())

        def counted(acknowledged: bool) -> None:
            if acknowledged and run.alive:
                heapq.heappush(self._backoff, (max(due, self._now), run.id, run))

        self._commits.ask({item.own for item in run.items}, counted)

    def _again(self, run: Run) -> None:
        """The next attempt in process: same attempt in the header, run raised."""
        item = run.items[0]
        run.token = item.own.token(run.key[1])
        run.partition = item.own.partition
        run.attempt = self._used(item) + 1
        run.sequence = 0
        run.wrote = False
        run.isolated = True
        self._isolated += 1
        if self.settings.streams:
            self._after_acks(run, lambda run, _offset: self._fence(run, dead=False))
        else:
            self._start(run)

    def _end_overdue(self) -> None:
        limit = self.settings.timeout_ms
        while self._timed and self._timed[0][0] + limit <= self._now:
            began, run_id = self._timed.popleft()
            run = self._runs.get(run_id)
            if run is None or run.state is not RunState.RUNNING or run.began_ms != began:
                continue
            self.counters["timeouts"] += 1
            text = f"ran longer than its timeout of {limit / 1000:g} s"
            self._interrupt(run, text, forced=True)
            self._give_up(run, Failure("Timeout", text, "", "DEADLINE_EXCEEDED", True, run.attempt))

    def _interrupt(self, run: Run, reason: str, *, forced: bool) -> None:
        """Asks for the end of an attempt; it keeps its place until the executor says it is gone."""
        self._actions.append(Interrupt(run.id, reason, forced))
        stand_in = Run(run.id, run.key, run.items[0], run.token) if run.items else None
        if stand_in is not None:
            stand_in.slot, stand_in.isolated = run.slot, run.isolated
            run.slot = run.isolated = False
            self._lingering[run.id] = stand_in

    def _start_young(self) -> None:
        """Says `started` for attempts that run longer than most."""
        while self._young and self._young[0][0] + STARTED_AFTER_MS <= self._now:
            began, run_id = self._young.popleft()
            run = self._runs.get(run_id)
            if run is None or run.state is not RunState.RUNNING or run.began_ms != began:
                continue
            if not run.wrote:
                self._outbox.result(run, ResultKind.STARTED, worker=self.settings.worker)

    def _end_backoff(self) -> None:
        while self._backoff and self._backoff[0][0] <= self._now and not self._draining:
            run = heapq.heappop(self._backoff)[2]
            if run.alive and run.state is RunState.BACKOFF:
                self._again(run)

    def _give_up(self, run: Run, reason: Failure) -> None:
        """A dead letter, acknowledged before the outcome is written; a cancelled call needs none."""
        if run.cancelled:
            self._end_cancelled(run, reason)
            return
        self.counters["dead_letters"] += 1
        self._free(run)
        run.state = RunState.CLOSING
        self._outbox.dead_letter(run, reason)
        self._after_acks(run, lambda run, _offset: self._close(run, (), reason))

    def _refuse_lane(self, item: Item) -> None:
        """A call that would wait for a call it is part of, and that one for it, ends."""
        headers = item.record.headers
        if headers is not None:
            item.dispatched = True
            text = (
                "a call with the same key is one that this call is part of: it would wait for itself; give "
                "nested calls of a function with key order another key, or none"
            )
            reason = Failure("KeyHeld", text, "", "FAILED_PRECONDITION")
            self._give_up(self._new_run(item, (headers.call_id, headers.attempt)), reason)

    def _close(self, run: Run, items: tuple[bytes, ...], failure: Failure | None) -> None:
        run.state = RunState.CLOSING
        self._outbox.result(
            run,
            ResultKind.OUTCOME,
            items,
            failure,
            self.settings.worker,
        )
        run.then = self._finished_run

    def _finished_run(self, run: Run, _offset: int) -> None:
        self._finish(run)

    def _finish(self, run: Run) -> None:
        for item in run.items:
            item.own.finish(item)
            item.run = None  # no cycle is left for the garbage collector
        self._done += 1
        run.state = RunState.DONE
        self._kill(run)

    def _kill(self, run: Run) -> None:
        self._free(run)
        run.alive = False
        self._runs.pop(run.id, None)
        if self._by_key.get(run.key) is run:
            del self._by_key[run.key]
        if self._blocked:
            for item in self._blocked.pop(run.key, ()):
                item.own.wait(item)

    def _rerun(self, items: Sequence[Item]) -> None:
        for item in items:
            item.run = None
            item.local = True
            self._apart.append(item)

    def cancelled(self, now_ms: int) -> None:
        """Requests to cancel were added: what they concern ends."""
        self._now = now_ms
        for run in list(self._runs.values()):
            if not run.cancelled and run.state is not RunState.CLOSING:
                run.cancelled = self._cancellations.why(run.key[0], run.ancestry)
                if run.cancelled:
                    self._cancel(run)

    def _cancel(self, run: Run) -> None:
        """Its call is cancelled; one that is being prepared ends when it would start."""
        self.counters["cancelled_runs"] += 1
        if run.state is RunState.BACKOFF:
            self._end_cancelled(run, None)
        elif run.state is RunState.RUNNING:
            text = f"its call was cancelled: {run.cancelled}"
            # What waits for calls it made may need more time to come back than to end.
            self._actions.append(Interrupt(run.id, text, not run.parked, True))
            if run.parked:
                self._cancelling.append((self._now + CANCEL_GRACE_MS, run.id))

    def _end_stuck(self) -> None:
        """Cancelled attempts that still wait for calls they made, and did not come back, end by force."""
        while self._cancelling and self._cancelling[0][0] <= self._now:
            run = self._runs.get(self._cancelling.popleft()[1])
            if run is not None and run.parked and not self._parking.returns(run):
                self._actions.append(Interrupt(run.id, "its call was cancelled", True, True))

    def _end_cancelled(self, run: Run, end: Failure | None) -> None:
        """The outcome of a cancelled call.

        Args:
            run: its run.
            end: how its attempt ended; None if none ran or its executor was lost.
        """
        self.counters["cancelled_calls"] += 1
        self._free(run)
        if run.state is not RunState.RUNNING:
            run.attempt = self._used(run.items[0])
        self._close(run, (), cancelled_failure(run, end))

    def parked(self, now_ms: int, run_id: int) -> None:
        """An attempt waits for calls it made, and gives its place to others: to those calls, first of all."""
        self._now = now_ms
        run = self._runs.get(run_id)
        if run is None or not run.alive or run.state is not RunState.RUNNING or run.parked:
            return
        run.apart = run.isolated
        self._free(run)
        self._parking.enter(run)

    def unparked(self, now_ms: int, run_id: int) -> None:
        """It wants to go on; `Unpark` says when it may, at once if nothing it does counts any more."""
        self._now = now_ms
        run = self._runs.get(run_id)
        if run is None or not run.parked:
            self._actions.append(Unpark(run_id))
        else:
            self._parking.ask(run)

    def _free(self, run: Run) -> None:
        if run.parked:
            self._parking.leave(run)
        elif run.slot:
            run.slot = False
            self._busy -= 1
        elif run.isolated:
            run.isolated = False
            self._isolated -= 1

    def _used(self, item: Item) -> int:
        headers = item.record.headers
        if headers is None:
            return 0
        return max(headers.attempt - 1, item.own.used.get(item.offset, 0), headers.used)

    def _new_run(self, item: Item, key: RunKey) -> Run:
        self._next_run += 1
        run = Run(self._next_run, key, item, item.own.token(key[1]))
        item.run = run
        self._runs[run.id] = run
        self._by_key[key] = run
        run.attempt = self._used(item) + 1
        headers = item.record.headers
        if headers is not None and headers.ancestry:
            run.ancestry = headers.ancestry
        run.cancelled = self._doomed.why(item)
        return run

"""The runs of an engine: what all that happens to them needs, from making one to acknowledging its end."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pelton.core.call import Failure, ResultKind
from pelton.core.cancelling import Cancellations, Doomed, cancelled_failure
from pelton.core.decisions import Action, InputRecord, Interrupt, ReadResults, SendDeadLetter, Start
from pelton.core.expiring import not_begun
from pelton.core.outbox import Outbox
from pelton.core.ownership import Commits
from pelton.core.parking import Parking
from pelton.core.retry import (
    NO_POLICY,
    RETRIES_PER_SECOND,
    RETRY_BURST,
    RetrySpec,
)
from pelton.core.run import Item, Run, RunKey, RunState
from pelton.core.spec import FunctionSpec

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
        retry: how attempts follow each other.
        on_stream_failure: "fail", or "restart": a stream that broke off runs again from its beginning.
        retries_per_second, retry_burst: the retry budget of the instance.
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
    retry: RetrySpec = NO_POLICY
    on_stream_failure: str = "fail"
    retries_per_second: float = RETRIES_PER_SECOND
    retry_burst: int = RETRY_BURST
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
            retry=spec.retry or NO_POLICY,
            on_stream_failure=spec.on_stream_failure,
            ordered=ordered,
            window=KEYED_WINDOW if ordered else WINDOW,
        )


class Runs:
    """The runs of an engine and how they end.

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
        # Ids, not runs: a run that is over must not be kept alive until its time would have come.
        self._young: deque[tuple[int, int]] = deque()
        self._timed: deque[tuple[int, int]] = deque()
        self._lingering: dict[int, Run] = {}
        self._parking = Parking(settings.parked_per_depth)
        self._cancellations = Cancellations() if cancellations is None else cancellations
        self._deadlines: list[tuple[int, int]] = []
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
        if run.deadline_ms and run.deadline_ms < self._now:
            # Preparing it took too long.
            self._give_up(run, not_begun())
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

    def _count_time(self, run: Run) -> None:
        run.began_ms = self._now
        if run.deadline_ms:
            heapq.heappush(self._deadlines, (run.deadline_ms, run.id))
        self._young.append((self._now, run.id))
        if self.settings.timeout_ms:
            self._timed.append((self._now, run.id))

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

    def _bury(self, item: Item, record: InputRecord) -> None:
        """A record without a readable call id has no caller to tell: a dead letter is its end."""
        self.counters["poison"] += 1
        reason = Failure("RecordError", record.poison or "unreadable headers", "", "INVALID_ARGUMENT")
        item.dispatched = True

        def answered(ok: bool, _offset: int) -> None:
            if ok:
                item.own.finish(item)
                self._done += 1
            elif item.own.alive:
                self._outbox.apart(SendDeadLetter(0, item.own.partition, record, reason), answered)

        self._outbox.apart(SendDeadLetter(0, item.own.partition, record, reason), answered)

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

    def _interrupt(self, run: Run, reason: str, *, forced: bool) -> None:
        """Asks for the end of an attempt; it keeps its place until the executor says it is gone."""
        self._actions.append(Interrupt(run.id, reason, forced))
        stand_in = Run(run.id, run.key, run.items[0], run.token) if run.items else None
        if stand_in is not None:
            stand_in.slot, stand_in.isolated = run.slot, run.isolated
            run.slot = run.isolated = False
            self._lingering[run.id] = stand_in

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
        if headers is not None:
            run.deadline_ms = headers.deadline_ms
        return run

"""The life of a run: from its start in an executor to the acknowledgement of its last record."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

from pelton.core.call import Failure, ResultKind
from pelton.core.cancelling import CANCEL_GRACE_MS
from pelton.core.decisions import Interrupt, Unpark
from pelton.core.expiring import not_ended
from pelton.core.retrying import Retrying
from pelton.core.run import Item, Run, RunState

STARTED_AFTER_MS: Final = 250
"""`started` is written for attempts still running after this time: short calls need no record to say so."""

MAX_CHUNK_BYTES: Final = 768 * 1024
"""Chunks that wait together share a record up to this size."""


class Attempts(Retrying):
    """What happens to runs once they exist; the engine adds which records become runs, and when."""

    def fence_read(self, now_ms: int, run_id: int, chunk_seen: bool, outcome_seen: bool) -> None:
        """What lies before the `reset` of a stream, folded: final for every reader."""
        self._now = now_ms
        run = self._runs.get(run_id)
        if run is None or not run.alive or run.state is not RunState.FENCING:
            return
        if outcome_seen:
            self._free(run)
            self._finish(run)
        elif chunk_seen and self.settings.on_stream_failure == "fail":
            message = "the stream broke in the middle: what ran it was lost after its first chunk"
            self._give_up(run, Failure("StreamBroken", message, "", "UNAVAILABLE", attempt=run.attempt))
        else:
            self._start(run)

    def begun(self, now_ms: int, run_id: int) -> None:
        """An isolated attempt reached its executor: its time counts from now, not from that one's start."""
        self._now = now_ms
        run = self._runs.get(run_id)
        if run is not None and run.isolated and run.state is RunState.RUNNING:
            self._count_time(run)

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
            self._failed(run, failure, retriable=failure.retriable)
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
                self._lost(run, Failure(kind, reason, "", code, True), apart=True)
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
            self._lost(run, Failure("Timeout", text, "", "DEADLINE_EXCEEDED", True))

    def _end_past_deadline(self) -> None:
        """Ends attempts whose calls had to be over by now; no other follows."""
        while self._deadlines and self._deadlines[0][0] <= self._now:
            run = self._runs.get(heapq.heappop(self._deadlines)[1])
            if run is None or run.state is not RunState.RUNNING:
                continue
            self.counters["deadlines"] += 1
            failure = not_ended(run.attempt)
            self._interrupt(run, failure.message, forced=True)
            self._give_up(run, failure)

    def _start_young(self) -> None:
        """Says `started` for attempts that run longer than most."""
        while self._young and self._young[0][0] + STARTED_AFTER_MS <= self._now:
            began, run_id = self._young.popleft()
            run = self._runs.get(run_id)
            if run is None or run.state is not RunState.RUNNING or run.began_ms != began:
                continue
            if not run.wrote:
                self._outbox.result(run, ResultKind.STARTED, worker=self.settings.worker)

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

"""Attempts that follow failed ones: in place, in the topic of retries, or as timers."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pelton.core.call import Failure, InputHeaders, InputPartition, InputTopic, ResultKind
from pelton.core.cancelling import Cancellations
from pelton.core.decisions import SendInput, SendTimer
from pelton.core.delayed import Delayed
from pelton.core.lanes import is_keyed
from pelton.core.retry import (
    IN_PLACE_MS,
    IN_PROCESS_MS,
    IN_TOPIC_MS,
    Again,
    RetryBudget,
    decide,
    delay_ms,
)
from pelton.core.run import Item, Run, RunState
from pelton.core.runs import EngineSettings, Runs
from pelton.core.spec import RETRIES_PARTITIONS

_MOVED_AT_ONCE: Final = 256
"""So many records at the low end of a full partition become timers together."""


class Retrying(Runs):
    """Gives failed calls their next attempt, and keeps what is not due yet."""

    def __init__(
        self,
        settings: EngineSettings,
        dice: Callable[[], float] = lambda: 0.5,
        cancellations: Cancellations | None = None,
    ) -> None:
        super().__init__(settings, dice, cancellations)
        self._backoff: list[tuple[int, int, Run]] = []
        self._due: deque[Run] = deque()
        self._delayed = Delayed()
        self._budget = RetryBudget(settings.retries_per_second, settings.retry_burst)

    @property
    def next_due_ms(self) -> int:
        """When something that waits for its time is due, broker time; 0 when nothing does."""
        waiting = [self._delayed.next_ms, self._backoff[0][0] if self._backoff else 0]
        return min(filter(None, waiting), default=0)

    def _lost(self, run: Run, failure: Failure, *, apart: bool = False) -> None:
        """What ran an attempt was lost, or its time was up: the policy says whether there is another."""
        self._failed(run, failure, retriable=failure.code in self.settings.retry.codes, apart=apart)

    def _failed(self, run: Run, failure: Failure, *, retriable: bool, apart: bool = False) -> None:
        """An attempt failed: there is another one, or the call is given up.

        Args:
            run: its run.
            failure: why.
            retriable: whether trying again is what its function asks for.
            apart: the next attempt needs an executor of its own.
        """
        failure = replace(failure, attempt=run.attempt)
        again = self._another(run, failure) if retriable else None
        if again is None:
            self._give_up(run, failure)
            return
        self.counters["retries"] += 1
        run.failures += (failure,)
        wait = again.due_ms - self._now
        if wait <= IN_PROCESS_MS or self._in_place(run.items[0]):
            self._wait_here(run, again, apart=apart)
        else:
            self._send_on(run, again, as_timer=wait > IN_TOPIC_MS, apart=apart)

    def _another(self, run: Run, failure: Failure) -> Again | None:
        headers = run.items[0].record.headers
        final = self.settings.streams and self.settings.on_stream_failure == "fail" and run.sequence
        if run.cancelled or final:
            return None
        return decide(
            self.settings.retry,
            self._budget,
            replace(failure, retriable=True),
            used=self._used(run.items[0]) + 1,
            max_attempts=self.settings.max_attempts,
            at_ms=self._now,
            deadline_ms=0 if headers is None else headers.deadline_ms,
            longest_ms=IN_PLACE_MS if self._in_place(run.items[0]) else 0,
            dice=self._dice(),
        )

    def _in_place(self, item: Item) -> bool:
        """Whether a call stays where it is: others with its key wait for its end."""
        return self.settings.ordered and is_keyed(item)

    def _wait_here(self, run: Run, again: Again, *, apart: bool) -> None:
        """The next attempt waits in process; that this one was used is committed before."""
        for item in run.items:
            item.own.used[item.offset] = again.used
            item.local = item.local or apart
        run.state = RunState.BACKOFF
        run.due_ms = again.due_ms

        def counted(acknowledged: bool) -> None:
            if acknowledged and run.alive:
                heapq.heappush(self._backoff, (run.due_ms, run.id, run))

        self._commits.ask({item.own for item in run.items}, counted)

    def _send_on(self, run: Run, again: Again, *, as_timer: bool, apart: bool) -> None:
        """The next attempt waits in a topic: `moved` is acknowledged, then the retry, then this is done."""
        item = run.items[0]
        record, headers = item.record, item.record.headers
        if headers is None:
            return
        run.state = RunState.CLOSING
        target = retry_place(run.key[0])
        # What killed an executor runs beside nobody: it goes on as a record that may do so again.
        count = max(item.own.counts.get(item.offset, 0), headers.may_have_run or 0, int(apart))
        retry = headers._replace(
            attempt=again.used + 1,
            due_ms=again.due_ms,
            may_have_run=count or None,
            used=again.used if count else 0,
        )
        action: SendInput | SendTimer
        if as_timer:
            action = SendTimer(0, target, record.key, record.value or b"", retry, run.failures)
        else:
            action = SendInput(0, target, record.key, record.value or b"", retry, run.failures)
        where = "timers" if as_timer else f"retries/{target.partition}"
        self._outbox.result(run, ResultKind.MOVED, moved_to=where)

        def moved(run: Run, _offset: int) -> None:
            self._outbox.pass_on(run, action)
            run.then = self._finished_run

        self._after_acks(run, moved)

    def _end_backoff(self) -> None:
        """Attempts that waited in process and are due get a place as soon as there is one."""
        while self._backoff and self._backoff[0][0] <= self._now and not self._draining:
            run = heapq.heappop(self._backoff)[2]
            if run.alive and run.state is RunState.BACKOFF:
                self._due.append(run)

    def _not_due(self, item: Item, headers: InputHeaders) -> bool:
        """Keeps a record that is not due, or hands it to the timers when there are too many; else False.

        An owner before this one may have let an attempt wait in process. Until when, only that one knew: it
        waits again, from when this assignment began.
        """
        own, due_ms = item.own, headers.due_ms
        if item.offset in own.used:
            waited_ms = delay_ms(self.settings.retry, own.used[item.offset], 1.0)
            due_ms = max(due_ms, own.since_ms + min(waited_ms, IN_PLACE_MS))
        if due_ms <= self._now:
            return False
        if self._delayed.push(due_ms, item, keep=self._in_place(item)):
            return True
        self._to_timer(item, headers._replace(due_ms=due_ms))
        if item.own.full and not self.settings.ordered:
            # What is lowest in the log holds up the commit of all that is finished above it.
            for due_ms, lower in self._delayed.take_lowest(item.own, _MOVED_AT_ONCE):
                routing = lower.record.headers
                if routing is not None:
                    self._to_timer(lower, routing._replace(due_ms=due_ms))
        return True

    def _to_timer(self, item: Item, headers: InputHeaders) -> None:
        """A record that is not due leaves its partition: `moved`, the timer, then it is done."""
        own, record = item.own, item.record
        self.counters["timers"] += 1
        if item.suspect:
            count = max(own.counts.get(item.offset, 0), headers.may_have_run or 0)
            headers = headers._replace(may_have_run=count, used=self._used(item))
        timer = SendTimer(0, retry_place(headers.call_id), record.key, record.value or b"", headers)

        def back(ok: bool) -> bool:
            if not ok and own.alive and item.offset in own.items:
                own.wait(item)
            return ok and own.alive

        def moved(ok: bool, _offset: int) -> None:
            if back(ok):
                self._outbox.apart(timer, kept)

        def kept(ok: bool, _offset: int) -> None:
            if back(ok):
                own.finish(item)
                self._done += 1

        self._outbox.moved(headers.call_id, own.token(headers.attempt), "timers", moved)

    def _start_due(self, slots: int) -> None:
        """Starts attempts that are due: those that need an executor of their own, others in free slots."""
        for _ in range(len(self._due)):
            run = self._due.popleft()
            if not run.alive or run.state is not RunState.BACKOFF:
                continue
            if any(item.own.leaving for item in run.items):
                # It is handed over as it is.
                continue
            if run.items[0].local:
                run.isolated = True
                self._isolated += 1
            elif slots > self._busy:
                run.slot = True
                self._busy += 1
            else:
                self._due.append(run)
                continue
            self._again(run)

    def _again(self, run: Run) -> None:
        """The next attempt in process: same attempt in the header, run raised.

        It has a new id: what the one before it left in an executor must not be taken for it.
        """
        item = run.items[0]
        self._runs.pop(run.id, None)
        self._next_run += 1
        run.id = self._next_run
        self._runs[run.id] = run
        run.token = item.own.token(run.key[1])
        run.partition = item.own.partition
        run.attempt = self._used(item) + 1
        run.sequence = 0
        run.wrote = False
        if self.settings.streams:
            self._after_acks(run, lambda run, _offset: self._fence(run, dead=False))
        else:
            self._start(run)


def retry_place(call_id: bytes) -> InputPartition:
    """The partition of the topic of retries in which a call waits."""
    return InputPartition(InputTopic.RETRIES, call_id[-1] % RETRIES_PARTITIONS)

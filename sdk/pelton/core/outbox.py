"""Records on their way to Kafka: order kept within a run, also when some of them expire."""

from __future__ import annotations

from collections.abc import Callable

from pelton.core.call import CallId, Failure, InputHeaders, InputPartition, Result, ResultKind, Token
from pelton.core.decisions import (
    Action,
    Credit,
    InputRecord,
    SendDeadLetter,
    SendInput,
    SendResult,
    SendTimer,
)
from pelton.core.run import Entry, Run


class Outbox:
    """Sends records for runs and takes their delivery reports.

    After an expiry nothing more is sent for that run until all its records are reported; then its records are
    sent again in order from the first unacknowledged one on, and acknowledgements given behind it count for
    nothing: a record that was acknowledged behind a gap would be read before what fills the gap.
    """

    def __init__(self, actions: list[Action]) -> None:
        self._actions = actions
        self._entries: dict[int, Entry] = {}
        self._next_id = 0
        self.expiries = 0

    def __len__(self) -> int:
        return len(self._entries)

    def result(
        self,
        run: Run,
        kind: ResultKind,
        items: tuple[bytes, ...] = (),
        failure: Failure | None = None,
        worker: str = "",
        moved_to: str = "",
    ) -> None:
        """Sends one record of the run's call with the run's token."""
        ends = kind is ResultKind.OUTCOME
        result = Result(
            run.key[0],
            run.token,
            kind,
            run.sequence,
            items,
            None,
            failure,
            run.submitted_ms if ends else 0,
            run.attempt if ends else 0,
            worker,
            moved_to,
        )
        run.wrote = True
        entry = Entry(result, run, len(items) if kind is ResultKind.CHUNK else 0)
        if run.ancestry and kind is not ResultKind.CHUNK:
            entry.ancestry = run.ancestry
        self._append(run, entry)

    def dead_letter(self, run: Run, reason: Failure) -> None:
        """Sends the dead letter of the run's call."""
        item = run.items[0]
        self._append(
            run, Entry(SendDeadLetter(0, item.own.partition, item.record, reason, run.failures), run)
        )

    def pass_on(self, run: Run, action: SendInput | SendTimer) -> None:
        """Sends what the run's call goes on with."""
        self._append(run, Entry(action, run))

    def apart(
        self,
        action: Result | SendDeadLetter | SendInput | SendTimer,
        answer: Callable[[bool, int], None],
    ) -> None:
        """Sends a record outside of a run's order; `answer(acknowledged, offset)`."""
        self._put(Entry(action, None, answer=answer))

    def moved(self, call_id: CallId, token: Token, target: str, answer: Callable[[bool, int], None]) -> None:
        """Sends `moved`: from now on the call's live record is elsewhere."""
        self.apart(Result(call_id, token, ResultKind.MOVED, moved_to=target), answer)

    def copy(
        self,
        target: InputPartition,
        record: InputRecord,
        headers: InputHeaders,
        answer: Callable[[bool, int], None],
    ) -> None:
        """Sends a copy of an input record with other headers."""
        self.apart(SendInput(0, target, record.key, record.value or b"", headers), answer)

    def reported(self, send_id: int, ok: bool, offset: int) -> Run | None:
        """Takes a delivery report; returns the run whose last word this was, for `then` to be called."""
        entry = self._entries.pop(send_id, None)
        if entry is None:
            return None
        entry.out = False
        if not ok:
            self.expiries += 1
        if entry.answer is not None:
            entry.answer(ok, offset)
            return None
        run = entry.run
        if run is None or not run.alive:
            return None
        if ok:
            entry.acked = True
            entry.offset = offset
        else:
            run.expired = True
        return self.flow(run)

    def flow(self, run: Run) -> Run | None:
        """Goes on with a run's records; returns it when all are acknowledged and something waits for that."""
        out = run.out
        if run.expired:
            for entry in out:
                if entry.out:
                    return None
            run.expired = False
            behind = False
            for entry in out:
                behind = behind or not entry.acked
                if behind:
                    entry.acked = False
                    self._put(entry)
        credit = 0
        while out and out[0].acked:
            entry = out.popleft()
            run.last_offset = entry.offset
            credit += entry.chunks
        if credit:
            self._actions.append(Credit(run.id, credit))
        return run if not out and run.then is not None else None

    def _append(self, run: Run, entry: Entry) -> None:
        run.out.append(entry)
        if not run.expired:
            self._put(entry)

    def _put(self, entry: Entry) -> None:
        self._next_id += 1
        entry.out = True
        self._entries[self._next_id] = entry
        action = entry.action
        if isinstance(action, Result):
            self._actions.append(SendResult(self._next_id, action, entry.ancestry))
        else:
            self._actions.append(action._replace(send_id=self._next_id))

"""What both kinds of slots share: the loaded function, the runs in progress, and how their ends are told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from pelton.core.call import Failure
from pelton.errors import PayloadUnavailable, RecordError
from pelton.protocol.frames import FromExecutor
from pelton.runtime.calling import Arguments, Outcome, Target, interrupted, read_arguments
from pelton.runtime.failures import failure_of
from pelton_platform.executor.capture import Capture
from pelton_platform.executor.outbox import Outbox, Record
from pelton_platform.executor.run import Run

_OUTCOME: Final = int(FromExecutor.OUTCOME)
_POISON: Final = int(FromExecutor.POISON)
_CHUNKS: Final = int(FromExecutor.CHUNKS)
_MAX_REASON: Final = 1000


class Slots(Protocol):
    """Runs attempts, so many at a time. Only `serve` and what it starts runs user code."""

    def begin(self, runs: Iterable[Run]) -> None:
        """Queues runs; called on the reading thread."""

    def credited(self, run: Run) -> None:
        """A blocked run may have room again; called on the reading thread."""

    def interrupt(self, run: Run) -> None:
        """Nobody wants this run any more; called on the reading thread."""

    def lend(self) -> None:
        """A run waits for calls it made: one more may run."""

    def reclaim(self) -> None:
        """It goes on: one less may begin."""

    def stop(self) -> None:
        """`serve` returns once nothing runs; called on the reading thread."""

    def serve(self, ending: Callable[[], None]) -> None:
        """Runs attempts on the calling (main) thread, and on others as needed, until stopped; then ends."""


class Desk:
    """Holds the runs in progress and turns their ends into records.

    Attributes:
        target: the user's function.
        outbox: where records leave.
        capture: what user code prints.
        runs: runs that have not ended, by id.
        forked: this process is a child that user code forked; it must not speak for the executor.
    """

    def __init__(self, target: Target, outbox: Outbox, capture: Capture) -> None:
        self.target = target
        self.outbox = outbox
        self.capture = capture
        self.runs: dict[int, Run] = {}
        self.forked = False

    def read(self, run: Run) -> Arguments | None:
        """Reads the body of a run; None when it cannot be read, which ends the run."""
        try:
            arguments = read_arguments(self.target, run.call_id, run.value)
            run.ancestry, run.trace_parent = arguments.ancestry, arguments.trace_parent
            return arguments
        except RecordError as error:
            reason = str(error).encode("utf-8", "backslashreplace").decode()[:_MAX_REASON]
            self._end(run, [_POISON, run.run_id, reason])
        except PayloadUnavailable as error:
            self.finish(run, (None, self.target.rule.failure(error, "UNAVAILABLE")), 0)
        except BaseException as error:
            # A signal handler of user code, an exception thrown in, no memory: the call must end.
            self.finish(run, (None, failure_of(error, code="INTERNAL")), 0)
        finally:
            run.value = b""
        return None

    def send_chunk(self, run: Run, chunk: bytes) -> None:
        """Sends a chunk for which the run has room."""
        run.sent(len(chunk))
        self.outbox.post([_CHUNKS, run.run_id, [chunk]])
        self.outbox.nudge()

    def finish(self, run: Run, outcome: Outcome, submitted_ms: int) -> None:
        """Ends a run; the record leaves with the next flush."""
        if self.forked:
            # A child that returned from the user's function: what follows is the parent's to do.
            os._exit(0)
        value, failure = outcome
        if failure is None:
            self._end(run, [_OUTCOME, run.run_id, value, None, submitted_ms])
            return
        if run.interrupted and failure.type.endswith("CancelledError"):
            failure = interrupted()
        self._end(run, [_OUTCOME, run.run_id, None, failure_record(failure), submitted_ms])

    def _end(self, run: Run, record: Record) -> None:
        self.runs.pop(run.run_id, None)
        if run.place is not None:
            run.place.end()
        self.outbox.post(record)


def failure_record(failure: Failure) -> list[object]:
    """A failure as it stands in frames."""
    return [
        failure.type,
        failure.message,
        failure.traceback,
        failure.code,
        failure.retriable,
        failure.after_ms,
    ]

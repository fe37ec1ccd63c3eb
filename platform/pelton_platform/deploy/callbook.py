"""What became of calls, read from the topics themselves: waiting, running, finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pelton.core.call import CallId, Result, ResultKind, call_time_ms, reply_partition
from pelton.core.fold import Fold
from pelton.core.offsets import CommitMeta, decode_metadata
from pelton.core.spec import RESULTS_PARTITIONS, FunctionSpec
from pelton.errors import RecordError
from pelton.protocol import codec, headers
from pelton.protocol.topics import Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.ranges import RangeReader
from pelton.transport.log import LogRecord, Place
from pelton_platform.deploy.backlog import input_places

WAITING = "waiting"
RUNNING = "running"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"

ATTACH_MARGIN_MS = 60_000
"""Clocks of callers may differ from the broker's by less than this."""

_READ_S = 30.0


@dataclass(slots=True)
class CallEntry:
    """What is known of one call.

    Attributes:
        call_id: Its id.
        function: Its function.
        state: `waiting`, `running`, `succeeded`, `failed` or `cancelled`.
        submitted_ms: When its id was minted, broker milliseconds.
        attempt: Number of the attempt that waits or runs; attempts used for a finished call.
        place: Where it waits, `topic/partition/offset`; "" when it is in no input topic.
        chunks: Payloads of its chunks, as far as they were read.
        outcome: The record that ended it; None while it is open.
        ended_ms: When that was written, broker milliseconds; 0 while it is open.
        worker: The instance that ran or runs it, "" when that is not known.
        ancestry: The calls above it, the root first; empty for a root call.
    """

    call_id: CallId
    function: str
    state: str
    submitted_ms: int
    attempt: int = 1
    place: str = ""
    chunks: list[bytes] = field(default_factory=list)
    outcome: Result | None = None
    ended_ms: int = 0
    worker: str = ""
    ancestry: tuple[CallId, ...] = ()


class CallBook:
    """Reads calls; close it after use.

    Raises:
        TransportError: Every method, when Kafka cannot be reached.
    """

    def __init__(self, config: ConnectionConfig) -> None:
        self._topics = Topics(config.namespace)
        self._admin = Admin(config)
        self._ranges = RangeReader(config)

    def close(self) -> None:
        """End the connections."""
        self._ranges.close()
        self._admin.close()

    def open_calls(
        self, spec: FunctionSpec, *, most: int | None = None, since_ms: int | None = None
    ) -> Iterator[CallEntry]:
        """Yield the calls of a function that have no durable end in its input topics.

        Args:
            spec: The function.
            most: Of each partition read only so many records from either end; None reads all.
            since_ms: Pass over what was appended before this broker time; None passes over nothing.
        """
        places = input_places(self._topics, spec)
        commits = self._admin.committed(self._topics.group(spec.name), places)
        marks = self._admin.watermarks(places)
        spans: dict[Place, tuple[int, int]] = {}
        metas: dict[Place, CommitMeta | None] = {}
        for place in places:
            offset, text = commits.get(place, (0, ""))
            metas[place] = decode_metadata(text)
            spans[place] = (max(offset, marks[place][0]), marks[place][1])
        if since_ms is not None:
            begins = self._ranges.ask(places, since_ms, _READ_S)
            # -1 says that nothing was appended since.
            spans = {
                place: (max(start, begins[place]) if begins[place] >= 0 else end, end)
                for place, (start, end) in spans.items()
            }
        for record in self._read_ends(spans, most):
            if _is_finished(record, metas[record.topic, record.partition]):
                continue
            try:
                routing = headers.decode_input(record.headers)
            except RecordError:
                continue  # poison: it will be a dead letter, and has no call to show
            yield CallEntry(
                routing.call_id,
                spec.name,
                WAITING,
                call_time_ms(routing.call_id),
                routing.attempt,
                f"{record.topic}/{record.partition}/{record.offset}",
                ancestry=headers.decode_ancestry(record.headers),
            )

    def results(self, spec: FunctionSpec, since_ms: int, most: int) -> dict[CallId, CallEntry]:
        """Return the calls of a function of which something was written lately.

        Args:
            spec: The function.
            since_ms: Broker time from which on results are read.
            most: Of each partition read only so many of the last records.
        """
        places = [(self._topics.results(spec.name), number) for number in range(RESULTS_PARTITIONS)]
        return self._fold(spec, places, since_ms, None, most)

    def find(self, specs: Iterable[FunctionSpec], call_id: CallId) -> CallEntry | None:
        """Return what is known of one call, whichever of these functions it is of; None when nothing is."""
        for spec in specs:
            place = (self._topics.results(spec.name), reply_partition(call_id) % RESULTS_PARTITIONS)
            since_ms = max(0, call_time_ms(call_id) - ATTACH_MARGIN_MS)
            found = self._fold(spec, [place], since_ms, call_id, None).get(call_id)
            if found is not None and found.outcome is not None:
                return found
            for entry in self.open_calls(spec, since_ms=since_ms):
                if entry.call_id == call_id:
                    return _joined(entry, found)
            if found is not None:
                return found
        return None

    def family(self, specs: Iterable[FunctionSpec], entry: CallEntry) -> list[CallEntry]:
        """Return the calls that have the same root as this one, itself among them, oldest first."""
        root = entry.ancestry[0] if entry.ancestry else entry.call_id
        since_ms = max(0, call_time_ms(root) - ATTACH_MARGIN_MS)

        def belongs(record: LogRecord) -> bool:
            return root in (
                headers.decode_result_id(record.headers),
                *headers.decode_ancestry(record.headers),
            )

        found = {entry.call_id: entry}
        for spec in specs:
            places = [(self._topics.results(spec.name), number) for number in range(RESULTS_PARTITIONS)]
            seen = self._fold(spec, places, since_ms, None, None, belongs)
            waiting = [
                each
                for each in self.open_calls(spec, since_ms=since_ms)
                if root in (each.call_id, *each.ancestry)
            ]
            for each in overview(waiting, seen):
                found.setdefault(each.call_id, each)
        return sorted(found.values(), key=lambda each: (each.submitted_ms, each.call_id))

    def _fold(
        self,
        spec: FunctionSpec,
        places: list[Place],
        since_ms: int,
        only: CallId | None,
        most: int | None,
        wanted: Callable[[LogRecord], bool] | None = None,
    ) -> dict[CallId, CallEntry]:
        ends = self._admin.ends(places)
        starts = self._ranges.ask(places, since_ms, _READ_S)
        spans = {place: (starts[place], ends[place]) for place in places if starts[place] >= 0}
        if most is not None:
            spans = {place: (max(start, end - most), end) for place, (start, end) in spans.items()}
        folds: dict[CallId, Fold] = {}
        entries: dict[CallId, CallEntry] = {}
        for record in self._read(spans):
            call_id = headers.decode_result_id(record.headers)
            if call_id is None or (only is not None and call_id != only):
                continue
            if wanted is not None and not wanted(record):
                continue
            try:
                result = codec.decode_result(record.value)
            except RecordError:
                continue  # every reader passes over it alike
            entry = entries.get(call_id)
            if entry is None:
                entry = CallEntry(call_id, spec.name, RUNNING, call_time_ms(call_id))
                entries[call_id], folds[call_id] = entry, _fold_from(result, whole=only is not None)
            entry.ancestry = headers.decode_ancestry(record.headers) or entry.ancestry
            _take(entry, folds[call_id], result, record.appended_ms, keep=only is not None)
        return entries

    def _read_ends(self, spans: Mapping[Place, tuple[int, int]], most: int | None) -> Iterator[LogRecord]:
        """Read the spans, of long ones both ends only: the oldest calls run, the newest wait."""
        if most is None:
            yield from self._read(spans)
            return
        yield from self._read(
            {place: (start, min(end, start + most)) for place, (start, end) in spans.items()}
        )
        rest = {place: (max(start + most, end - most), end) for place, (start, end) in spans.items()}
        yield from self._read({place: (start, end) for place, (start, end) in rest.items() if start < end})

    def _read(self, spans: Mapping[Place, tuple[int, int]]) -> Iterator[LogRecord]:
        for batch in self._ranges.read(spans, _READ_S):
            yield from batch


def state_of(outcome: Result) -> str:
    """How a call ended, in a word."""
    failure = outcome.failure
    if failure is None:
        return SUCCEEDED
    return CANCELLED if failure.code == "CANCELLED" else FAILED


def overview(waiting: Iterable[CallEntry], seen: Mapping[CallId, CallEntry]) -> list[CallEntry]:
    """Join what waits in the input topics with what the results say: each call once, newest first."""
    joined = dict(seen)
    for entry in waiting:
        known = joined.get(entry.call_id)
        if known is None or known.outcome is None:
            joined[entry.call_id] = _joined(entry, known)
    return sorted(joined.values(), key=lambda entry: (entry.submitted_ms, entry.call_id), reverse=True)


def _fold_from(result: Result, *, whole: bool) -> Fold:
    """A fold that begins with this record, whatever came before it, unless the whole history is read."""
    fold = Fold()
    if not whole:
        fold.token, fold.next = result.token, result.first
    return fold


def _joined(waiting: CallEntry, seen: CallEntry | None) -> CallEntry:
    """A call that is in an input topic and of which the results say something."""
    if seen is not None:
        waiting.state, waiting.worker = seen.state, seen.worker
        waiting.chunks = seen.chunks
    return waiting


def _take(entry: CallEntry, fold: Fold, result: Result, appended_ms: int, *, keep: bool) -> None:
    before = fold.outcome
    chunks = fold.feed(result)
    if keep:
        if result.kind is ResultKind.RESET:
            entry.chunks.clear()
        entry.chunks += chunks
    entry.worker = result.worker or entry.worker
    if fold.outcome is not None and before is None:
        entry.outcome, entry.ended_ms = fold.outcome, appended_ms
        entry.state = state_of(fold.outcome)
        entry.attempt = fold.outcome.attempts
    elif not fold.started:
        entry.state = WAITING
    elif fold.outcome is None:
        entry.state = RUNNING


def _is_finished(record: LogRecord, meta: CommitMeta | None) -> bool:
    if meta is None:
        return False
    return any(first <= record.offset < first + length for first, length in meta.finished)

"""Recomputes from the raw topics and the ledgers what is true, and says where the system broke its word."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

from pelton.client.failures import error_of
from pelton.core.call import CallId, DeadLetter, Failure, Result, ResultKind, call_id_text
from pelton.core.fold import Fold
from pelton.core.offsets import CommitMeta
from pelton.protocol.codec import decode_result
from pelton.protocol.payload import decode
from pelton.transport.log import Place
from support.chaos_ledgers import Execution, Seen, Sent
from support.chaos_watch import Glance, Watch
from support.chaos_world import Hit, World

WOKEN_NS: Final = 6_000_000_000
"""How long an owner that woke may begin what it had taken in: it hears that it is out within a session."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken.

    Attributes:
        promise: which, in a word: "lost", "disagreement", "stream", "value", "dead letter", "commit",
            "executions", "deliveries", "unknown call".
        about: a call or a place.
        text: what is wrong.
    """

    promise: str
    about: str
    text: str


@dataclass(slots=True)
class Truth:
    """What the raw results of one call say.

    Attributes:
        fold: the fold of its records.
        chunks: chunks every reader sees, decoded.
        outcomes: place and offset of every outcome record, effective or not.
        records: token and kind of all its records in log order, for messages.
    """

    fold: Fold = field(default_factory=Fold)
    chunks: list[Any] = field(default_factory=list)
    outcomes: list[tuple[Place, int]] = field(default_factory=list)
    records: list[str] = field(default_factory=list)

    def feed(self, result: Result, place: Place, offset: int) -> None:
        """Takes the next record."""
        self.chunks.extend(_frozen(decode(chunk)) for chunk in self.fold.feed(result))
        if result.kind is ResultKind.OUTCOME:
            self.outcomes.append((place, offset))
        self.records.append(f"{result.kind.name}{tuple(result.token)}+{result.first}")

    @property
    def failure(self) -> Failure | None:
        """The failure it ended with."""
        return None if self.fold.outcome is None else self.fold.outcome.failure

    def seen(self, call_id: str) -> Seen:
        """What a reader must have seen."""
        failure, outcome = self.failure, self.fold.outcome
        assert outcome is not None
        if failure is not None:
            return Seen(tuple(self.chunks), None, type(error_of(failure, call_id)).__name__)
        value = decode(outcome.items[0]) if outcome.items else None
        return Seen(tuple(self.chunks), _frozen(value), "")


@dataclass(slots=True)
class Verdict:
    """What the checker found.

    Attributes:
        violations: promises broken.
        figures: what was counted.
        notes: what a figure should be read with.
    """

    violations: list[Violation] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def broken(self) -> set[str]:
        """The promises that were broken, in a word each."""
        return {violation.promise for violation in self.violations}

    def __str__(self) -> str:
        counts = Counter(violation.promise for violation in self.violations)
        lines = [f"{name}: {value:g}" for name, value in self.figures.items()]
        lines += self.notes
        lines += [f"BROKEN {promise}: {count}" for promise, count in counts.items()]
        lines += [f"  {each.promise} {each.about}: {each.text}" for each in self.violations[:20]]
        return "\n".join(lines)


class Checker:
    """One checker for every run under fault.

    Args:
        world: what ran; all of it has ended or stands still.
        sent: the caller's ledger.
        readers: what each reader saw, by its name and call.
        watch: what was seen of the log on the way; None when nobody watched.
    """

    def __init__(
        self,
        world: World,
        sent: Sequence[Sent],
        readers: Mapping[str, Mapping[str, Seen]],
        watch: Watch | None = None,
    ) -> None:
        self._world = world
        self._sent = sent
        self._readers = readers
        self._watch = watch
        self._verdict = Verdict()
        self._truth: dict[str, Truth] = defaultdict(Truth)
        self._letters: dict[str, list[DeadLetter]] = defaultdict(list)

    def check(self) -> Verdict:
        """Reads everything and judges it."""
        self._world.ledger.poll()
        self._read()
        for call in self._sent:
            self._check_call(call)
        for name, seen in self._readers.items():
            self._check_reader(name, seen)
        self._check_ends()
        if self._watch is not None:
            self._check_commits(self._watch)
        self._check_executions()
        self._measure_takeover()
        return self._verdict

    # ---- reading ----

    def _read(self) -> None:
        world = self._world
        for function in world.specs:
            for record in world.read(world.topics.results(function)):
                result = decode_result(record.value)
                place = (record.topic, record.partition)
                self._truth[call_id_text(result.call_id)].feed(result, place, record.offset)
            for letter in world.dead_letters(function):
                if letter.call_id is not None:
                    self._letters[call_id_text(letter.call_id)].append(letter)
        known = {call.call_id for call in self._sent}
        for call_id in self._truth.keys() - known:
            self._break("unknown call", call_id, "results of a call that nobody made")

    # ---- calls ----

    def _check_call(self, call: Sent) -> None:
        truth = self._truth.get(call.call_id)
        if truth is None or truth.fold.outcome is None:
            if call.accepted == "yes":
                records = [] if truth is None else truth.records
                self._break("lost", call.call_id, f"accepted, and no outcome; its records: {records}")
            return
        if call.accepted == "no":
            self._break("unknown call", call.call_id, "certainly not sent, and it has an outcome")
        failure = truth.failure
        if failure is not None:
            self._check_failure(call, failure)
        elif call.boom:
            self._break("value", call.call_id, "its code raises, and it has a value")
        if call.function == "flow":
            self._check_stream(call, truth)
        elif failure is None:
            value = truth.seen(call.call_id).value
            executions = {each.id for each in self._world.ledger.by_call[call.call_id]}
            if not (isinstance(value, tuple) and value[0] == call.number and value[1] in executions):
                self._break("value", call.call_id, f"call {call.number} got {value!r}")

    def _check_failure(self, call: Sent, failure: Failure) -> None:
        letters = self._letters.get(call.call_id, [])
        if not any(letter.reason.message == failure.message for letter in letters):
            found = [letter.reason.message for letter in letters]
            self._break("dead letter", call.call_id, f"failed with {failure}, dead letters: {found}")
        expected = failure.code == ("UNKNOWN" if call.boom else "UNAVAILABLE")
        # A call whose code raises may also have been lost with what ran it.
        if not expected and not (call.boom and failure.code == "UNAVAILABLE"):
            self._break("value", call.call_id, f"failed for no reason: {failure}")

    def _check_stream(self, call: Sent, truth: Truth) -> None:
        chunks = truth.chunks
        if [chunk[:2] for chunk in chunks] != [(call.number, index) for index in range(len(chunks))]:
            self._break("stream", call.call_id, f"chunks twice, missing or out of order: {chunks}")
        made_by = {chunk[2] for chunk in chunks}
        if len(made_by) > 1:
            self._break("stream", call.call_id, f"chunks of {len(made_by)} executions: {chunks}")
        if truth.failure is None and len(chunks) != call.chunks:
            self._break("stream", call.call_id, f"ended well after {len(chunks)} of {call.chunks} chunks")
        for execution in made_by:
            known = self._world.ledger.executions.get(execution)
            if known is None or known.call_id != call.call_id or len(known.chunks) < len(chunks):
                self._break("stream", call.call_id, f"chunks that {execution} never made: {chunks}")

    def _check_reader(self, name: str, seen: Mapping[str, Seen]) -> None:
        for call_id, mine in seen.items():
            truth = self._truth.get(call_id)
            if truth is None or truth.fold.outcome is None:
                self._break("disagreement", call_id, f"{name} saw {mine}, the log has no outcome")
                continue
            theirs = truth.seen(call_id)
            # The value of a stream is None, and a future of it makes a list of its chunks.
            if replace(theirs, value=None) != replace(mine, value=None) or mine.value != theirs.value:
                self._break("disagreement", call_id, f"{name} saw {mine}, the log says {theirs}")
        if name == "caller":
            for call in self._sent:
                if call.accepted == "yes" and call.call_id not in seen:
                    self._break("lost", call.call_id, "its caller never heard of its end")

    # ---- commits ----

    def _check_ends(self) -> None:
        """In the end every input record is committed as finished, and nothing beyond the log."""
        world = self._world
        for function in world.specs:
            committed = world.committed(function)
            for partition, place in world.places(function).items():
                end = world.admin.ends([place])[place]
                offset = committed[partition][0] if partition in committed else -1
                if offset != end:
                    self._break(
                        "commit", f"{place[0]}/{place[1]}", f"committed {offset}, the log ends at {end}"
                    )

    def _check_commits(self, watch: Watch) -> None:
        """No commit passes a record without an end, and none goes back."""
        last: dict[Place, int] = {}
        for glance in watch.glances:
            for place, (offset, _) in glance.committed.items():
                where = f"{place[0]}/{place[1]}"
                if offset < last.get(place, 0):
                    self._break("commit", where, f"went back from {last[place]} to {offset}")
                if offset > glance.inputs[place]:
                    self._break("commit", where, f"{offset} is beyond the end {glance.inputs[place]}")
                last[place] = offset
        self._verdict.figures["looks at commits"] = len(watch.glances)
        places: dict[CallId, list[tuple[Place, int]]] = defaultdict(list)
        for place in watch.inputs:
            for offset, call_id in watch.calls(place).items():
                places[call_id].append((place, offset))
        waiting = {place: dict(sorted(watch.calls(place).items())) for place in watch.inputs}
        for glance in watch.glances:
            self._check_glance(glance, places, waiting)

    def _check_glance(
        self,
        glance: Glance,
        places: Mapping[CallId, list[tuple[Place, int]]],
        waiting: Mapping[Place, dict[int, CallId]],
    ) -> None:
        """Each record finished by then has its end in the log by then, or a record that stands for it.

        Records whose end was found are taken out of `waiting`.
        """
        finished = {place: _Finished(*found) for place, found in glance.committed.items()}
        for place, mine in finished.items():
            for offset, call_id in list(waiting[place].items()):
                if offset >= mine.end:
                    break
                if offset not in mine:
                    continue
                ended = any(at < glance.results[where] for where, at in self._outcomes(call_id))
                # The copy made by a revoke stands for its original as long as it is not finished itself.
                copied = any(
                    at not in finished[where] and at < glance.inputs[where]
                    for where, at in places[call_id]
                    if (where, at) != (place, offset) and where in finished
                )
                if ended or not copied:
                    del waiting[place][offset]
                if not ended and not copied:
                    text = f"committed as finished, and call {call_id_text(call_id)} had no outcome yet"
                    self._break("commit", f"{place[0]}/{place[1]}@{offset}", text)

    def _outcomes(self, call_id: CallId) -> list[tuple[Place, int]]:
        truth = self._truth.get(call_id_text(call_id))
        return [] if truth is None else truth.outcomes

    # ---- executions ----

    def _check_executions(self) -> None:
        world, figures = self._world, self._verdict.figures
        ledger, counters = world.ledger, world.counters()
        executions = sum(len(found) for found in ledger.by_call.values())
        # A call whose acknowledgement never came may have been accepted.
        calls = len([call for call in self._sent if call.call_id and call.accepted != "no"])
        in_flight = sum(len(hit.in_flight) for hit in world.hits if not hit.kind.startswith("broker"))
        bound = calls + in_flight + counters["suspects"] + counters["copies"]
        figures["calls"] = calls
        figures["streams"] = len([call for call in self._sent if call.function == "flow"])
        figures["not accepted"] = len([call for call in self._sent if call.accepted != "yes"])
        figures["executions"] = executions
        figures["executions allowed"] = bound
        figures["in flight when hit"] = in_flight
        for name in ("suspects", "copies", "refused_commits", "dropped_completions", "dropped_runs"):
            figures[name] = counters[name]
        figures["failed as lost"] = len(
            [truth for truth in self._truth.values() if truth.failure and truth.failure.code == "UNAVAILABLE"]
        )
        figures["executions again"] = executions - len([each for each in ledger.by_call.values() if each])
        again = _Again(world.hits)
        unexplained = again.unexplained(ledger.by_call)
        figures["again by a woken owner"] = again.woken
        figures["again without a fault"] = len(unexplained)
        self._verdict.notes += [f"again without a fault: {text}" for text in unexplained]
        for kind in sorted({hit.kind for hit in world.hits}):
            figures[f"hits: {kind}"] = len([hit for hit in world.hits if hit.kind == kind])
        if executions > bound:
            self._break("executions", "all", f"{executions} executions, {bound} allowed")
        for call_id, found in ledger.by_call.items():
            most = 2 * world.specs[found[0].function].max_attempts + 1
            if len(found) > most:
                text = f"executed {len(found)} times: {[each.instance for each in found]}"
                self._break("deliveries", call_id, text)

    def _measure_takeover(self) -> None:
        """How long calls in flight on a killed instance took to run again.

        Apart are those whose earlier delivery had been counted, which run one after the other, and those that
        met a second fault before they ran again.
        """
        times: dict[str, list[float]] = {"takeover": [], "takeover, counted": [], "takeover, hit again": []}
        kills = [hit for hit in self._world.hits if hit.kind == "instance"]
        for hit in kills:
            others = [other.at_ns for other in self._world.hits if other.kind != "executor"]
            following = min((at for at in others if at > hit.at_ns), default=math.inf)
            for execution in hit.in_flight:
                begun = self._world.ledger.by_call[execution.call_id]
                again = min(
                    (each for each in begun if each.begun_ns > hit.at_ns),
                    key=lambda each: each.begun_ns,
                    default=None,
                )
                if again is not None:
                    counted = "takeover, counted" if again.delivery > 1 else "takeover"
                    kind = counted if again.begun_ns < following else "takeover, hit again"
                    times[kind].append((again.begun_ns - hit.at_ns) / 1e9)
        figures = self._verdict.figures
        for name, found in times.items():
            figures[f"{name}: calls"] = len(found)
            for share in (50, 99):
                if found:
                    figures[f"{name}: p{share} s"] = round(percentile(found, share), 2)

    def _break(self, promise: str, about: str, text: str) -> None:
        self._verdict.violations.append(Violation(promise, about, text))


class _Again:
    """Says which executions were run again though nothing was done to what ran them.

    Args:
        hits: the faults of the run.

    Attributes:
        woken: executions that a woken owner began although another owner had run the call already: what it
            had taken in before it froze, until the group tells it that it is out.
    """

    def __init__(self, hits: Sequence[Hit]) -> None:
        self._pids = {pid for hit in hits if hit.kind == "executor" for pid in hit.pids}
        self._struck = {hit.target for hit in hits if hit.kind in ("instance", "freeze")}
        self._frozen = [hit for hit in hits if hit.kind == "freeze"]
        self._outages = [(hit.at_ns, hit.over_ns) for hit in hits if hit.kind.startswith("broker")]
        self.woken = 0

    def unexplained(self, by_call: Mapping[str, list[Execution]]) -> list[str]:
        """A line for each of them."""
        found = []
        for call_id, executions in by_call.items():
            ordered = sorted(executions, key=lambda one: one.begun_ns)
            for each, following in pairwise(ordered):
                if self._is_struck(each):
                    continue
                if self._is_woken(following):
                    self.woken += 1
                    continue
                found.append(f"{call_id}: {each}, then {following}")
        return found

    def _is_struck(self, each: Execution) -> bool:
        ended = each.ended_ns or each.begun_ns
        near = any(at - 5e9 <= ended and each.begun_ns <= over + 15e9 for at, over in self._outages)
        return each.pid in self._pids or each.instance in self._struck or near

    def _is_woken(self, each: Execution) -> bool:
        return any(
            hit.target == each.instance and hit.at_ns <= each.begun_ns <= hit.over_ns + WOKEN_NS
            for hit in self._frozen
        )


class _Finished:
    """The offsets a commit calls finished.

    Attributes:
        end: none of them is as high as this.
    """

    def __init__(self, committed: int, meta: CommitMeta | None) -> None:
        self._committed = committed
        self._runs = [range(first, first + length) for first, length in (meta.finished if meta else ())]
        self.end = max((run.stop for run in self._runs), default=committed)

    def __contains__(self, offset: object) -> bool:
        assert isinstance(offset, int)
        return offset < self._committed or any(offset in run for run in self._runs)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]


def busy_share(hits: Iterable[Hit]) -> float:
    """Which part of the kills hit something that had calls in flight."""
    kills = [hit for hit in hits if hit.kind in ("executor", "instance", "freeze")]
    return len([hit for hit in kills if hit.in_flight]) / len(kills) if kills else 0.0


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value

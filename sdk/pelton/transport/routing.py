"""How calls find their way: sends, reply partitions, results to their receivers, attaching to any call."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from pelton.core.call import (
    CallId,
    Cancellation,
    Failure,
    InputHeaders,
    Invocation,
    Result,
    ResultKind,
    Token,
    call_id_text,
    call_time_ms,
    reply_partition,
)
from pelton.core.fold import Fold
from pelton.core.spec import RESULTS_PARTITIONS, RETRIES_PARTITIONS, FunctionSpec
from pelton.errors import (
    AcceptanceUnknown,
    DataLoss,
    FunctionNotFound,
    PayloadError,
    RecordError,
    SignatureError,
    SubmitFailed,
    TransportError,
    UnsupportedType,
)
from pelton.protocol.codec import decode_result, encode_cancellation, encode_invocation
from pelton.protocol.headers import decode_result_id, encode_input
from pelton.protocol.pickles import ARGUMENTS, MARK, RESULT, check, is_pickled, sign
from pelton.protocol.signing import Keyring
from pelton.protocol.topics import RESULT_TTL_MS, Control, TopicKind, Topics
from pelton.transport.log import KafkaFailure, Log, LogRecord, Place
from pelton.transport.partitioning import Spread, partition_of
from pelton.transport.ports import AttachState, Directory, OnAccepted, OnResults

CLOCK_SLACK_MS: Final = 60_000
"""Attaching looks so long before the time in the call id: the clock that minted it may have been ahead."""

STRETCH_CHUNKS: Final = 5_000
"""A receiver that goes on after a pause gets about so many chunks at a time."""

STRETCH_BYTES: Final = 8 * 1024 * 1024
"""The same, in bytes of encoded chunks."""

# Higher than any execution's: a loss is the last word on a call for this reader.
_LAST_TOKEN: Final = Token(0xFFFF_FFFF, 0, 0, 0, 0)
_AFTER_ALL: Final = 1 << 62
_BEGINNINGS: Final = (ResultKind.CHUNK, ResultKind.OUTCOME)
_LOGGER: Final = logging.getLogger("pelton.transport")


class _Receiver:
    """One who wants the results of a call.

    Attributes:
        function: whose call it is.
        on_results: where results go.
        held: keeps results, with offsets, until the past was replayed; None when they go straight through.
        since: offset up to which the past was replayed: the reader may still be behind it. 0 once it is not.
        next: offset behind the last record that was handed over.
    """

    __slots__ = ("function", "held", "next", "on_results", "since")

    def __init__(
        self, function: str, on_results: OnResults, held: list[tuple[int, Result]] | None = None
    ) -> None:
        self.function = function
        self.on_results = on_results
        self.held = held
        self.since = 0
        self.next = 0


class CallRouter:
    """Routes the calls of one process over a log.

    The log delivers what it follows to `take` and what it lost to `lost`, both on its reading thread.

    Args:
        log: where records go and come from.
        directory: what is deployed.
        topics: names in the namespace.
        refresh: reads the directory up to what is acknowledged by now; called before a function counts as
        unknown. dice: spreads the processes over the reply partitions.
        followed_before: reply partitions to follow again before the next send to them.
        keyring: signs arguments with pickled parts and checks results; None where there is no key.
    """

    def __init__(
        self,
        log: Log,
        directory: Directory,
        topics: Topics,
        *,
        refresh: Callable[[], object] = lambda: None,
        dice: random.Random | None = None,
        followed_before: Iterable[Place] = (),
        keyring: Keyring | None = None,
    ) -> None:
        self._log = log
        self._directory = directory
        self._topics = topics
        self._refresh = refresh
        self._keyring = keyring
        self._dice = dice or random.SystemRandom()
        self._lock = threading.Lock()
        self._following = threading.Lock()
        self._calls: dict[CallId, tuple[_Receiver, ...]] = {}
        self._paused: dict[CallId, tuple[_Receiver, ...]] = {}
        self._reply: dict[str, int] = {}
        self._followed: set[Place] = set()
        self._broken: set[Place] = set(followed_before)
        self._invocations: dict[str, str] = {}
        self._spreads: dict[str, Spread] = {}

    @property
    def followed(self) -> frozenset[Place]:
        """Reply partitions that are read, or were until they broke."""
        return frozenset(self._followed | self._broken)

    def prepare(self, function: str) -> int:
        """As `ports.Transport.prepare`."""
        partition = self._reply.get(function)
        if partition is not None and not self._broken:
            return partition
        self._spec(function)
        topic = self._topics.results(function)
        with self._following:
            partition = self._reply.get(function)
            if partition is None:
                partition = self._dice.randrange(RESULTS_PARTITIONS)
            self._follow((topic, partition))
            self._reply[function] = partition
        return partition

    def submit(
        self, invocation: Invocation, spec: FunctionSpec, on_accepted: OnAccepted, on_results: OnResults
    ) -> None:
        """As `ports.Transport.submit`."""
        call_id = invocation.call_id
        function = spec.name
        if is_pickled(invocation.arguments):
            invocation = replace(invocation, arguments=self._signed(function, invocation))
        if self._broken:
            self._mend(self._topics.results(function), reply_partition(call_id))
        topic = self._invocations.get(function)
        if topic is None:
            topic = self._invocations[function] = self._topics.invocations(function)
        value = encode_invocation(invocation)
        ancestry = b"".join(invocation.ancestry) if invocation.ancestry else b""
        headers = encode_input(
            InputHeaders(call_id, function, 1, None, 0, 0, invocation.deadline_ms or 0, b"", ancestry)
        )
        key = invocation.ordering_key or invocation.idempotency_key
        self._calls[call_id] = (_Receiver(function, on_results),)
        if key is None:
            spread = self._spreads.get(function)
            if spread is None or spread.partitions != spec.partitions:
                spread = self._spreads[function] = Spread(spec.partitions, self._dice)
            partition = spread.next(len(self._calls))
        else:
            # By what the spec says, not by what the topic has: a key keeps its partition for ever.
            partition = partition_of(key.encode(), spec.partitions)
        try:
            self._log.append(
                topic,
                value,
                key=call_id if key is None else key.encode(),
                partition=partition,
                headers=headers,
                on_report=partial(self._reported, call_id, topic, on_accepted),
            )
        except BaseException:
            self.forget(call_id)
            raise

    def cancel(self, call_id: CallId, reason: str, on_accepted: OnAccepted) -> None:
        """As `ports.Transport.cancel`."""
        topic = self._topics.control(Control.CANCELLATIONS)

        def reported(failure: KafkaFailure | None, partition: int, offset: int, appended_ms: int) -> None:
            on_accepted(None if failure is None else _cancel_error(failure, call_id))

        self._log.append(
            topic,
            encode_cancellation(Cancellation(call_id, self._log.now_ms(), reason)),
            key=call_id,
            partition=None,
            headers=[],
            on_report=reported,
        )

    def forget(self, call_id: CallId, on_results: OnResults | None = None) -> None:
        """As `ports.Transport.forget`."""
        if on_results is None:
            self._calls.pop(call_id, None)
            if self._paused:
                self._paused.pop(call_id, None)
            return
        with self._lock:
            _take_out(self._calls, call_id, lambda receiver: receiver.on_results == on_results)
            _take_out(self._paused, call_id, lambda receiver: receiver.on_results == on_results)

    def pause(self, call_id: CallId, on_results: OnResults) -> None:
        """As `ports.Transport.pause`."""
        with self._lock:
            paused = _take_out(self._calls, call_id, lambda receiver: receiver.on_results == on_results)
            if paused:
                self._paused[call_id] = (*self._paused.get(call_id, ()), *paused)

    def resume(self, call_id: CallId, on_results: OnResults, timeout_s: float) -> bool:
        """As `ports.Transport.resume`."""
        with self._lock:
            found = _take_out(self._paused, call_id, lambda receiver: receiver.on_results == on_results)
        if not found:
            return True
        (receiver,) = found
        try:
            caught_up = self._go_on(call_id, receiver, time.monotonic() + timeout_s)
        except BaseException:
            self._keep_paused(call_id, receiver)
            raise
        if not caught_up:
            self._keep_paused(call_id, receiver)
        return caught_up

    def attach(self, function: str, call_id: CallId, on_results: OnResults, timeout_s: float) -> AttachState:
        """As `ports.Transport.attach`."""
        spec = self._spec(function)
        partition = reply_partition(call_id)
        if partition >= RESULTS_PARTITIONS:
            return AttachState.UNKNOWN
        receiver = _Receiver(function, on_results, held=[])
        with self._lock:
            self._calls[call_id] = (*self._calls.get(call_id, ()), receiver)
        state = AttachState.UNKNOWN
        try:
            place = (self._topics.results(function), partition)
            state = self._catch_up(spec, call_id, place, receiver, time.monotonic() + timeout_s)
        finally:
            if state in (AttachState.UNKNOWN, AttachState.EXPIRED):
                self._remove(call_id, receiver)
        return state

    # --- the reading and the reporting thread ---

    def take(self, records: Sequence[LogRecord]) -> None:
        """Hands records of reply partitions to whom they concern, those of one call together."""
        calls = self._calls
        batches: dict[CallId, tuple[list[int], list[Result]]] = {}
        for record in records:
            call_id = decode_result_id(record.headers)
            if call_id is None or call_id not in calls:
                continue
            result = self._read_result(record, call_id)
            if result is None:
                continue
            batch = batches.get(call_id)
            if batch is None:
                batches[call_id] = ([record.offset], [result])
            else:
                batch[0].append(record.offset)
                batch[1].append(result)
        for call_id, (offsets, results) in batches.items():
            for receiver in calls.get(call_id, ()):
                self._hand_over(receiver, offsets, results)

    def lost(self, topic: str, partition: int, offset: int, reason: str) -> None:
        """Ends every call whose results would have come by this partition with DATA_LOSS."""
        kind, function = self._topics.parse(topic)
        if kind is not TopicKind.RESULTS:
            return
        with self._lock:
            self._followed.discard((topic, partition))
            self._broken.add((topic, partition))
            concerned = [
                (call_id, receiver)
                for call_id, receivers in self._calls.items()
                for receiver in receivers
                if receiver.function == function and reply_partition(call_id) == partition
            ]
        _LOGGER.error(
            "results in %s/%s were lost at offset %s (%s): %s open calls end with DATA_LOSS",
            *(topic, partition, offset, reason, len(concerned)),
        )
        message = f"results in {topic}/{partition} were lost at offset {offset}: {reason}"
        for call_id, receiver in concerned:
            failure = Failure("pelton.errors.DataLoss", message, code="DATA_LOSS")
            end = Result(call_id, _LAST_TOKEN, ResultKind.OUTCOME, failure=failure)
            self._hand_over(receiver, [_AFTER_ALL], [end])

    def _hand_over(self, receiver: _Receiver, offsets: list[int], results: list[Result]) -> None:
        if receiver.held is not None:
            with self._lock:
                if receiver.held is not None:
                    receiver.held.extend(zip(offsets, results, strict=True))
                    return
        receiver.next = max(receiver.next, offsets[-1] + 1)
        if receiver.since:
            fresh = [result for at, result in zip(offsets, results, strict=True) if at >= receiver.since]
            if not fresh:
                return
            results, receiver.since = fresh, 0
        try:
            receiver.on_results(results)
        except Exception:
            _LOGGER.exception("results of call %s could not be handled", call_id_text(results[0].call_id))

    def _reported(
        self,
        call_id: CallId,
        topic: str,
        on_accepted: OnAccepted,
        failure: KafkaFailure | None,
        partition: int,
        offset: int,
        appended_ms: int,
    ) -> None:
        if failure is None:
            on_accepted(None)
            return
        if failure.certain:
            self.forget(call_id)
        on_accepted(_submit_error(failure, topic))

    # --- signatures ---

    def _signed(self, function: str, invocation: Invocation) -> bytes:
        if self._keyring is None:
            raise UnsupportedType(
                f"an argument of {function!r} is no plain data and travels as a signed pickle, but there is "
                "no key to sign with: PELTON_KEY_FILE names the key file of the namespace. Nothing was sent"
            )
        return sign(self._keyring, function, invocation.call_id, ARGUMENTS, invocation.arguments)

    def _read_result(self, record: LogRecord, call_id: CallId) -> Result | None:
        """The result in a record; pickled parts in it have a signature that holds."""
        result = _decode(record, call_id)
        if result is None or MARK not in (record.value or b""):
            return result
        function = self._topics.parse(record.topic)[1]
        try:
            for item in filter(is_pickled, result.items):
                if self._keyring is None:
                    text = "the value has pickled parts, and there is no key here to check them with"
                    failure = Failure("SignatureError", text, code="FAILED_PRECONDITION")
                    return Result(call_id, result.token, ResultKind.OUTCOME, result.first, failure=failure)
                check(self._keyring, function, call_id, RESULT, item)
        except (SignatureError, PayloadError) as error:
            _LOGGER.error("%s/%s@%s is ignored: %s", *record[:3], error)
            return None
        return result

    def _results_of(self, batch: Sequence[LogRecord], call_id: CallId) -> list[Result]:
        """The results of one call among records of many."""
        mine = (
            self._read_result(record, call_id)
            for record in batch
            if decode_result_id(record.headers) == call_id
        )
        return [result for result in mine if result is not None]

    # --- reply partitions ---

    def _spec(self, function: str) -> FunctionSpec:
        spec = self._directory.function(function)
        if spec is None:
            # It may have been deployed a moment ago.
            self._refresh()
            spec = self._directory.function(function)
        if spec is None:
            raise FunctionNotFound(
                f"function {function!r} is not deployed in namespace {self._topics.namespace!r}; "
                "`pelton functions` lists what is"
            )
        return spec

    def _follow(self, place: Place) -> None:
        """Reads a reply partition from its end now on; called with the lock of following held."""
        if place in self._followed:
            return
        # The number is asked for before anything is sent: a reply can only come behind it.
        end = self._log.ends([place])[place]
        self._log.follow(*place, end)
        with self._lock:
            self._followed.add(place)
            self._broken.discard(place)

    def _mend(self, topic: str, partition: int) -> None:
        """Follows a partition again that was lost, before another call relies on it."""
        if (topic, partition) in self._broken:
            with self._following:
                self._follow((topic, partition))

    # --- attaching ---

    def _remove(self, call_id: CallId, receiver: _Receiver) -> None:
        with self._lock:
            _take_out(self._calls, call_id, lambda known: known is receiver)

    # --- going on after a pause ---

    def _keep_paused(self, call_id: CallId, receiver: _Receiver) -> None:
        with self._lock:
            _take_out(self._calls, call_id, lambda known: known is receiver)
            receiver.held = None
            if receiver not in self._paused.get(call_id, ()):
                self._paused[call_id] = (*self._paused.get(call_id, ()), receiver)

    def _go_on(self, call_id: CallId, receiver: _Receiver, deadline: float) -> bool:
        """Hands over the next stretch; once that reaches the end, later results go straight through."""
        place = (self._topics.results(receiver.function), reply_partition(call_id))
        with self._following:
            self._follow(place)
        if not self._hand_stretch(call_id, receiver, place, self._log.ends([place])[place], deadline):
            return False
        with self._lock:
            receiver.held = []
            self._calls[call_id] = (*self._calls.get(call_id, ()), receiver)
        # As for attaching: registered before the end is asked for, so that nothing falls in between.
        receiver.since = end = self._log.ends([place])[place]
        if not self._hand_stretch(call_id, receiver, place, end, deadline):
            return False
        fold = Fold()
        while self._release(receiver, fold, end, go_live=True):
            pass
        return True

    def _hand_stretch(
        self, call_id: CallId, receiver: _Receiver, place: Place, end: int, deadline: float
    ) -> bool:
        """Hands over what lies before an end; False when that was enough for now and there is more."""
        size = count = 0
        for batch in self._read({place: (receiver.next, end)}, deadline):
            mine = self._results_of(batch, call_id)
            receiver.next = batch[-1].offset + 1
            if mine:
                receiver.on_results(mine)
                count += sum(len(result.items) for result in mine)
                size += sum(len(item) for result in mine for item in result.items)
            if count >= STRETCH_CHUNKS or size >= STRETCH_BYTES:
                return receiver.next >= end
        receiver.next = max(receiver.next, end)
        return True

    def _catch_up(
        self, spec: FunctionSpec, call_id: CallId, place: Place, receiver: _Receiver, deadline: float
    ) -> AttachState:
        """Replays the past up to an end offset asked for now; what came behind it meanwhile was held back.

        The receiver is registered before the end is asked for: what lies at or behind the end is appended
        later still, so it is held or delivered; what lies before it is in the past. Nothing is missed or
        seen twice.
        """
        with self._following:
            self._follow(place)
        receiver.since = end = self._log.ends([place])[place]
        since_ms = max(0, call_time_ms(call_id) - CLOCK_SLACK_MS)
        found = self._log.offsets_for_time([place], since_ms)[place]
        start = end if found < 0 else found
        fold = Fold()
        seen = 0
        for batch in self._read({place: (start, end)}, deadline):
            past = self._results_of(batch, call_id)
            seen += self._replay(receiver, fold, past, first=seen == 0)
        receiver.next = end
        seen += self._release(receiver, fold, end)
        if not seen:
            waiting = self._waits(spec, call_id, since_ms, deadline)
            # It may have begun, moved or ended while its input was looked for.
            seen += self._release(receiver, fold, end)
            if not seen and not waiting:
                age_ms = self._log.now_ms() - call_time_ms(call_id)
                return AttachState.EXPIRED if age_ms > RESULT_TTL_MS else AttachState.UNKNOWN
        while self._release(receiver, fold, end, go_live=True):
            pass
        return AttachState.FINISHED if fold.ended else AttachState.PENDING

    def _replay(self, receiver: _Receiver, fold: Fold, past: list[Result], *, first: bool) -> int:
        if past:
            if first and past[0].kind in _BEGINNINGS and past[0].first > 0:
                raise DataLoss(
                    f"the first records of call {call_id_text(past[0].call_id)} are no longer in the log"
                )
            for result in past:
                fold.feed(result)
            receiver.on_results(past)
        return len(past)

    def _release(self, receiver: _Receiver, fold: Fold, end: int, *, go_live: bool = False) -> int:
        """Hands over what was held; with `go_live` and nothing held, later results go straight through."""
        with self._lock:
            held, receiver.held = receiver.held or [], []
            if go_live and not held:
                receiver.held = None
        fresh = [result for offset, result in held if offset >= end]
        if held:
            receiver.next = max(receiver.next, held[-1][0] + 1)
        for result in fresh:
            fold.feed(result)
        if fresh:
            receiver.on_results(fresh)
        return len(held) if go_live else len(fresh)

    def _waits(self, spec: FunctionSpec, call_id: CallId, since_ms: int, deadline: float) -> bool:
        """Whether a record of the call is in one of the function's input partitions."""
        invocations, retries = self._topics.invocations(spec.name), self._topics.retries(spec.name)
        places = [(invocations, number) for number in range(spec.partitions)]
        places += [(retries, number) for number in range(RETRIES_PARTITIONS)]
        ends = self._log.ends(places)
        starts = self._log.offsets_for_time(places, since_ms)
        ranges = {place: (starts[place], ends[place]) for place in places if starts[place] >= 0}
        for batch in self._read(ranges, deadline):
            if any(decode_result_id(record.headers) == call_id for record in batch):
                return True
        return False

    def _read(
        self, ranges: Mapping[Place, tuple[int, int]], deadline: float
    ) -> Iterable[Sequence[LogRecord]]:
        wanted = {place: span for place, span in ranges.items() if span[0] < span[1]}
        if not wanted:
            return ()
        return self._log.read_ranges(wanted, max(0.1, deadline - time.monotonic()))


def _take_out(
    table: dict[CallId, tuple[_Receiver, ...]], call_id: CallId, chosen: Callable[[_Receiver], bool]
) -> tuple[_Receiver, ...]:
    """Takes receivers of a call out of a table; returns them. Needs the lock."""
    known = table.get(call_id, ())
    taken = tuple(receiver for receiver in known if chosen(receiver))
    if len(taken) < len(known):
        table[call_id] = tuple(receiver for receiver in known if not chosen(receiver))
    elif known:
        del table[call_id]
    return taken


def _decode(record: LogRecord, call_id: CallId) -> Result | None:
    """The result in a record; one that cannot be read, or is another call's, is told and passed over."""
    try:
        result = decode_result(record.value)
    except RecordError as error:
        _LOGGER.error("%s/%s@%s cannot be read: %s", *record[:3], error)
        return None
    if result.call_id != call_id:
        _LOGGER.error("%s/%s@%s has the id of another call in its body", *record[:3])
        return None
    return result


def _cancel_error(failure: KafkaFailure, call_id: CallId) -> TransportError:
    """Why a call may not be cancelled."""
    what = f"the cancellation of call {call_id_text(call_id)}"
    if failure.certain:
        return SubmitFailed(f"Kafka refused {what}: {failure}")
    return AcceptanceUnknown(f"Kafka did not acknowledge {what}: {failure}. Cancelling again does no harm.")


def _submit_error(failure: KafkaFailure, topic: str) -> TransportError:
    """What a call ends with when its record was not acknowledged."""
    if failure.certain:
        return SubmitFailed(f"Kafka refused the record for {topic}: {failure}")
    return AcceptanceUnknown(
        f"Kafka did not acknowledge the record for {topic}: {failure}; it may be in the log all the same. "
        "Attach to the call id to find out; sending again may run the call twice."
    )

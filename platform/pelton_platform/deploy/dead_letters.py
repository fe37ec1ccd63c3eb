"""The dead letters of functions: reading them, judging what became of their calls, sending calls again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from pelton.client.connection import Connection
from pelton.core.call import CallId, DeadLetter, Failure, Invocation, call_time_ms, mint_call_id
from pelton.core.spec import RESULTS_PARTITIONS, FunctionSpec
from pelton.errors import PayloadError, RecordError, SignatureError
from pelton.protocol import pickles
from pelton.protocol.codec import decode_dead_letter, decode_invocation
from pelton.protocol.headers import NO_CALL, decode_settled, encode_settled
from pelton.protocol.signing import Keyring
from pelton.protocol.topics import Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.kafka.ranges import RangeReader
from pelton.transport.log import KafkaFailure
from pelton_platform.deploy.callbook import CallBook

DEAD = "dead"
SUPERSEDED = "superseded"
REPLAYED = "replayed"
PURGED = "purged"

_READ_S: Final = 60.0
_ANSWER_S: Final = 30.0
_MOST_RESULTS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Found:
    """One dead letter.

    Attributes:
        offset: Where it lies in the topic of its function.
        letter: What it says.
        state: `dead`, `superseded` (its call has another outcome), `replayed` or `purged`.
        replayed_as: The call that was sent instead of it; None for none.
    """

    offset: int
    letter: DeadLetter
    state: str = DEAD
    replayed_as: CallId | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters are meant; None means any.

    Attributes:
        since_ms, until_ms: When the call was given up, broker time.
        type: Last part or whole of the name of the exception type.
        code: gRPC status name.
        calls: Ids of calls.
    """

    since_ms: int | None = None
    until_ms: int | None = None
    type: str | None = None
    code: str | None = None
    calls: frozenset[CallId] | None = None

    def fits(self, letter: DeadLetter) -> bool:
        """Whether a dead letter is meant."""
        reason, at_ms = letter.reason, letter.given_up_ms
        return (
            (self.since_ms is None or at_ms >= self.since_ms)
            and (self.until_ms is None or at_ms < self.until_ms)
            and (self.type is None or self.type in (reason.type, reason.type.rpartition(".")[2]))
            and (self.code is None or self.code == reason.code)
            and (self.calls is None or letter.call_id in self.calls)
        )


class DeadLetterBox:
    """The dead letters of a namespace; close it after use.

    Raises:
        TransportError: Every method, when Kafka cannot be reached.
    """

    def __init__(self, config: ConnectionConfig) -> None:
        self._config = config
        self._topics = Topics(config.namespace)
        self._admin = Admin(config)
        self._ranges = RangeReader(config)
        self._book = CallBook(config)

    def close(self) -> None:
        """End the connections."""
        self._book.close()
        self._ranges.close()
        self._admin.close()

    def letters(self, spec: FunctionSpec, wanted: Wanted = Wanted()) -> list[Found]:
        """Return the dead letters of a function, oldest first, with what became of their calls."""
        place = (self._topics.dead_letters(spec.name), 0)
        found: dict[int, Found] = {}
        for batch in self._ranges.read({place: self._admin.watermarks([place])[place]}, _READ_S):
            for record in batch:
                settled = decode_settled(record.headers)
                if settled is not None:
                    call_id, offset = settled
                    if offset in found:
                        state = PURGED if call_id == NO_CALL else REPLAYED
                        other = None if call_id == NO_CALL else call_id
                        found[offset] = replace(found[offset], state=state, replayed_as=other)
                    continue
                try:
                    found[record.offset] = Found(record.offset, decode_dead_letter(record.value))
                except RecordError:
                    continue  # nothing that Pelton wrote
        chosen = [each for each in found.values() if wanted.fits(each.letter)]
        return self._judged(spec, chosen)

    def replay(
        self,
        spec: FunctionSpec,
        found: Iterable[Found],
        connection: Connection,
        keyring: Keyring,
        told: Callable[[Found, CallId | None, str], None],
    ) -> None:
        """Send the calls of dead letters again, each under a new id, with its ancestry.

        Args:
            spec: The function.
            found: Dead letters that are `dead`; others are passed over.
            connection: Sends the calls.
            keyring: Signs pickled arguments anew.
            told: Gets each dead letter with the id of the new call, or None and why there is none.
        """
        producer = RecordProducer(self._config)
        try:
            for each in found:
                if each.state != DEAD:
                    told(each, None, _why_not(each))
                    continue
                try:
                    invocation = _again(spec, each.letter, keyring, connection.transport.now_ms())
                except (RecordError, PayloadError, SignatureError) as error:
                    told(each, None, str(error))
                    continue
                error_text = _submitted(connection, invocation, spec)
                if error_text:
                    told(each, None, error_text)
                    continue
                self._settle(producer, spec, each, invocation.call_id)
                told(each, invocation.call_id, "")
        finally:
            producer.close(_ANSWER_S)

    def purge(self, spec: FunctionSpec, found: Iterable[Found]) -> int:
        """Forget dead letters; what lies before the first one that is kept is deleted from the log."""
        producer = RecordProducer(self._config)
        purged = 0
        try:
            for each in found:
                if each.state != PURGED:
                    self._settle(producer, spec, each, NO_CALL)
                    purged += 1
        finally:
            producer.close(_ANSWER_S)
        place = (self._topics.dead_letters(spec.name), 0)
        start, end = self._admin.watermarks([place])[place]
        kept = [each.offset for each in self.letters(spec) if each.state in (DEAD, SUPERSEDED)]
        below = min(kept, default=end)
        if below > start:
            self._admin.delete_records({place: below})
        return purged

    def _judged(self, spec: FunctionSpec, found: list[Found]) -> list[Found]:
        """Those whose call has another outcome than the one they tell are superseded."""
        times = [call_time_ms(each.letter.call_id) for each in found if each.letter.call_id is not None]
        if not times:
            return found
        ends = self._book.results(spec, max(0, min(times) - 60_000), _MOST_RESULTS)
        judged = []
        for each in found:
            entry = None if each.letter.call_id is None else ends.get(each.letter.call_id)
            outcome = None if entry is None else entry.outcome
            if each.state == DEAD and outcome is not None and not _tells(each.letter, outcome.failure):
                each = replace(each, state=SUPERSEDED)
            judged.append(each)
        return judged

    def _settle(self, producer: RecordProducer, spec: FunctionSpec, found: Found, call_id: CallId) -> None:
        """Write what became of a dead letter behind it."""
        answered = threading.Event()
        trouble: list[KafkaFailure] = []

        def report(failure: KafkaFailure | None, _partition: int, _offset: int, _at_ms: int) -> None:
            if failure is not None:
                trouble.append(failure)
            answered.set()

        producer.send(
            self._topics.dead_letters(spec.name),
            None,
            key=found.letter.call_id,
            partition=0,
            headers=encode_settled(call_id, found.offset),
            on_report=report,
        )
        if not answered.wait(_ANSWER_S) or trouble:
            raise RecordError(
                f"what became of the dead letter at {found.offset} was not noted: "
                f"{trouble[0] if trouble else 'Kafka did not answer'}"
            )


def plain(found: Found) -> Mapping[str, object]:
    """Return a dead letter as JSON can hold it; bodies are Base64."""
    from base64 import b64encode

    from pelton.core.call import call_id_text

    def text(data: bytes | None) -> str | None:
        return None if data is None else b64encode(data).decode()

    def failure(each: Failure) -> dict[str, object]:
        return {
            "type": each.type,
            "message": each.message,
            "code": each.code,
            "attempt": each.attempt,
            "traceback": each.traceback,
        }

    letter = found.letter
    return {
        "call_id": None if letter.call_id is None else call_id_text(letter.call_id),
        "function": letter.function,
        "state": found.state,
        "replayed_as": None if found.replayed_as is None else call_id_text(found.replayed_as),
        "offset": found.offset,
        "given_up_ms": letter.given_up_ms,
        "reason": failure(letter.reason),
        "history": [failure(each) for each in letter.history],
        "origin": f"{letter.topic}/{letter.partition}/{letter.offset}",
        "key": text(letter.key),
        "value": text(letter.value),
        "headers": [[name, text(value)] for name, value in letter.headers],
        "truncated": letter.truncated,
    }


def _tells(letter: DeadLetter, failure: Failure | None) -> bool:
    """Whether an outcome is the one that a dead letter tells."""
    reason = letter.reason
    return failure is not None and (failure.type, failure.code) == (reason.type, reason.code)


def _why_not(found: Found) -> str:
    if found.state == SUPERSEDED:
        return "its call has another outcome by now"
    return f"it was {found.state} already"


def _again(spec: FunctionSpec, letter: DeadLetter, keyring: Keyring, at_ms: int) -> Invocation:
    """The call of a dead letter under a new id."""
    if letter.truncated:
        raise RecordError("its record was cut, and cannot be sent again")
    if letter.call_id is None:
        raise RecordError("its record names no call")
    invocation = decode_invocation(letter.value)
    if invocation.call_id != letter.call_id or invocation.function != spec.name:
        raise RecordError("its record belongs to another call or function")
    arguments = invocation.arguments
    if pickles.is_pickled(arguments):
        pickles.check(keyring, spec.name, letter.call_id, pickles.ARGUMENTS, arguments)
        arguments = pickles.wrap(pickles.content(arguments))
    partition = int.from_bytes(os.urandom(1), "big") % RESULTS_PARTITIONS
    return replace(
        invocation,
        call_id=mint_call_id(at_ms, partition, os.urandom(8)),
        arguments=arguments,
        deadline_ms=None,
        submitted_ms=at_ms,
    )


def _submitted(connection: Connection, invocation: Invocation, spec: FunctionSpec) -> str:
    """Send a call and wait for Kafka's answer; "" when it was accepted, else why not."""
    answered = threading.Event()
    refused: list[Exception] = []

    def accepted(error: Exception | None) -> None:
        if error is not None:
            refused.append(error)
        answered.set()

    connection.transport.submit(invocation, spec, accepted, _nobody)
    connection.transport.forget(invocation.call_id)
    if not answered.wait(_ANSWER_S):
        return f"Kafka did not answer within {_ANSWER_S:g} s"
    return str(refused[0]) if refused else ""


def _nobody(*_: object) -> None:
    """Nobody here reads the results of the new call."""

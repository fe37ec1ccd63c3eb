"""One member of the consumer group of a function: its poll thread, its rebalances, its commits.

Everything said to the Kafka client is said by the poll thread. confluent-kafka lets no other thread into a
consumer while a rebalance callback runs: a commit, a pause, even `assignment()` from elsewhere waits until
the callback returned. So other threads leave requests. The poll thread carries them out between polls, and
inside a rebalance callback while it waits for partitions to be released. Nothing slow ever runs on it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pelton.core.call import InputPartition, InputTopic
from pelton.core.decisions import CommitOutcome, InputRecord
from pelton.core.spec import RETRIES_PARTITIONS
from pelton.errors import TransportError
from pelton.protocol.topics import Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.failures import UNSETTLED
from pelton.transport.kafka.intake import Intake
from pelton.transport.kafka.outage import Outage
from pelton.transport.kafka.ranges import EARLIEST, LATEST, ask_offsets
from pelton.transport.kafka.settings import FETCH_WAIT_MS, ClientLog, Settings, connection_settings

_log = logging.getLogger(__name__)

OnCommitted = Callable[[CommitOutcome], None]
"""Told once how a commit ended, on the poll thread."""

_BATCH: Final = 500
_BUSY_POLL_S: Final = 0.02
"""How long a poll waits while calls are open: requests of other threads wait at most this long."""
_IDLE_POLL_S: Final = 0.2
"""How long it waits when nothing is open. Longer waits make confluent-kafka poll in slices by itself."""
_OFFSETS_TIMEOUT_S: Final = 5.0
_OFFSETS_PATIENCE_S: Final = 60.0
"""An assignment whose committed offsets cannot be read for so long is an error of the process."""

_REFUSED: Final = frozenset((KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS))
_LOST: Final = frozenset(
    (
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._FENCED,
        KafkaError._FATAL,
        KafkaError._DESTROY,
        KafkaError._STATE,
    )
)
_OUT_OF_RANGE: Final = frozenset((KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE))
_TOPIC_GONE: Final = frozenset((KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION))


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """Times and bounds of a member.

    Attributes:
        session_ms: the broker takes the partitions of a member it has not heard of for so long.
        heartbeat_ms: how often it is heard of.
        revoke_budget_s: a revoke callback returns after so long whatever is still open.
        max_poll_ms: longest time between two polls; generous, since nothing slow runs on the poll thread.
        prefetch_kib: bytes the client fetches ahead, all partitions together.
        prefetch_records: records it fetches ahead of each partition.
    """

    session_ms: int = 6000
    heartbeat_ms: int = 1500
    revoke_budget_s: float = 5.0
    max_poll_ms: int = 300_000
    prefetch_kib: int = 8 * 1024
    prefetch_records: int = 2000


@dataclass(frozen=True, slots=True)
class Assigned:
    """A partition that came, with all that is needed to decide where to go on.

    Attributes:
        partition: which one.
        committed: committed offset and its metadata; None when nothing is committed.
        log_start, log_end: first offset in the log, and the next one to be written.
    """

    partition: InputPartition
    committed: tuple[int, str] | None
    log_start: int
    log_end: int


class GroupListener(Protocol):
    """Who decides; called on the poll thread, must not block and must not call back but through requests."""

    def assigned(self, partitions: Sequence[Assigned]) -> Mapping[InputPartition, int]:
        """Partitions came; returns the offset to fetch from. One without, or below 0, is not taken from."""

    def revoked(self, partitions: Sequence[InputPartition]) -> None:
        """Partitions are to go: answer with `GroupConsumer.release` for each, at once or later."""

    def lost(self, partitions: Sequence[InputPartition]) -> None:
        """Partitions are gone already, maybe with another owner: nothing may be committed for them."""

    def records(self, batch: Mapping[InputPartition, list[InputRecord]]) -> None:
        """Records came."""

    def stuck(self, partition: InputPartition | None, reason: str) -> None:
        """A partition (None: a whole topic) cannot be read on: its intake has stopped until somebody acts."""

    def failed(self, error: BaseException) -> None:
        """The member is dead: the process should say why and end."""


def commit_outcome(error: KafkaError | None) -> CommitOutcome:
    """What an answer to an offset commit means for the one who sent it."""
    if error is None:
        return CommitOutcome.OK
    code = error.code()
    if code in _REFUSED:
        return CommitOutcome.REFUSED
    if code in _LOST:
        return CommitOutcome.LOST
    return CommitOutcome.UNKNOWN


class _CommitRequest:
    """One commit on its way."""

    __slots__ = ("offsets", "on_outcome")

    def __init__(self, offsets: Mapping[InputPartition, tuple[int, str]], on_outcome: OnCommitted) -> None:
        self.offsets = offsets
        self.on_outcome = on_outcome


class GroupConsumer:
    """A member of the group of one function.

    All public methods may be called from any thread and never block (but `stop`).

    Args:
        config: the connection.
        function: the function to serve.
        partitions: partitions of its invocations topic.
        intake: reads its records.
        listener: decides; see `GroupListener`.
        settings: times and bounds.

    Attributes:
        busy: set by the listener while calls are open: polls are short then.
        polled_at: monotonic time of the last poll that returned; liveness follows it.
    """

    def __init__(
        self,
        config: ConnectionConfig,
        function: str,
        partitions: int,
        intake: Intake,
        listener: GroupListener,
        settings: GroupSettings = GroupSettings(),
    ) -> None:
        self.function = function
        self._partition_count = partitions
        self._servers = config.bootstrap_servers
        self._outage = Outage(config.bootstrap_servers, f"the consumer of {function}")
        self.busy = False
        self.polled_at = time.monotonic()
        self._listener = listener
        self._intake = intake
        self._settings = settings
        topics = Topics(config.namespace)
        self._names = {topic: topics.input(function, topic) for topic in InputTopic}
        self._inputs = {name: topic for topic, name in self._names.items()}
        self._partitions: dict[tuple[str, int], InputPartition] = {}
        self._config = _member_settings(config, topics.group(function), settings)
        self._requests: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._commits: deque[_CommitRequest] = deque()
        self._in_flight: _CommitRequest | None = None
        self._strays = 0
        self._mine: set[InputPartition] = set()
        self._paused: set[InputPartition] = set()
        self._dead: set[InputPartition] = set()
        self._released: set[InputPartition] = set()
        self._stopping = threading.Event()
        self._consumer: Consumer | None = None
        self._thread = threading.Thread(target=self._run, name=f"poll-{function}", daemon=True)

    def start(self) -> None:
        """Joins the group."""
        self._consumer = Consumer(
            {**self._config, "error_cb": self._on_error, "on_commit": self._on_commit}, logger=ClientLog()
        )
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Gives all partitions back, leaves the group; False when that did not end within `timeout_s`."""
        self._stopping.set()
        self._requests.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def pause(self, partition: InputPartition) -> None:
        """Takes no more records of this partition; a few that are on the way still come."""
        self._requests.put(lambda: self._set_paused(partition, True))

    def resume(self, partition: InputPartition) -> None:
        """Takes records of this partition again."""
        self._requests.put(lambda: self._set_paused(partition, False))

    def commit(self, offsets: Mapping[InputPartition, tuple[int, str]], on_outcome: OnCommitted) -> None:
        """Commits offsets with metadata; one commit is under way at a time, in the order of the requests."""
        request = _CommitRequest(offsets, on_outcome)
        self._requests.put(lambda: self._commits.append(request))

    def release(self, partitions: Sequence[InputPartition]) -> None:
        """Answers `GroupListener.revoked`: these may go."""
        self._requests.put(lambda: self._released.update(partitions))

    # ---- the poll thread ----

    def _run(self) -> None:
        try:
            consumer = self._client()
            consumer.subscribe(
                [self._names[InputTopic.INVOCATIONS]],
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )
            while not self._stopping.is_set():
                self._turn(consumer)
            self._leave(consumer)
        except BaseException as error:
            self._listener.failed(error)

    def _turn(self, consumer: Consumer) -> None:
        """Carries out what was asked, then takes what there is."""
        self._serve_requests()
        self._send_commit()
        short = self.busy or self._in_flight is not None or bool(self._commits)
        message = consumer.poll(_BUSY_POLL_S if short else _IDLE_POLL_S)
        self._outage.look(consumer)
        self.polled_at = time.monotonic()
        if message is None:
            return
        messages = consumer.consume(_BATCH, 0)
        batch: dict[InputPartition, list[InputRecord]] = {}
        self._sort(message, batch)
        for message in messages:
            self._sort(message, batch)
        if batch:
            self._listener.records(batch)

    def _sort(self, message: Message, batch: dict[InputPartition, list[InputRecord]]) -> None:
        """Puts one message into the batch."""
        if message.error() is not None:
            self._on_message_error(message)
            return
        partition = self._partition(message.topic(), message.partition())
        # A batch may hold records of a partition that went while the batch was gathered.
        if partition not in self._mine or partition in self._dead:
            return
        record = self._intake.read(message)
        records = batch.get(partition)
        if records is None:
            batch[partition] = [record]
        else:
            records.append(record)

    def _leave(self, consumer: Consumer) -> None:
        """Hands everything back while still a member, then closes."""
        consumer.unsubscribe()
        deadline = time.monotonic() + self._settings.revoke_budget_s + 3.0
        while self._mine and time.monotonic() < deadline:
            self._serve_requests()
            self._send_commit()
            consumer.poll(_BUSY_POLL_S)
        consumer.close()
        self._serve_requests()
        self._drop_commits(set())

    def _serve_requests(self) -> None:
        requests = self._requests
        while not requests.empty():
            try:
                request = requests.get_nowait()
            except Empty:
                return
            if request is not None:
                request()

    def _set_paused(self, partition: InputPartition, paused: bool) -> None:
        if partition not in self._mine or partition in self._dead or paused == (partition in self._paused):
            return
        if paused:
            self._paused.add(partition)
            self._client().pause([self._position(partition)])
        else:
            self._paused.discard(partition)
            self._client().resume([self._position(partition)])

    # ---- rebalances ----

    def _on_assign(self, consumer: Consumer, positions: list[TopicPartition]) -> None:
        """Reads where the partitions stand, asks where to go on, and takes them from there."""
        if not positions:
            return
        positions = self._with_companions(positions)
        found = self._read_offsets(consumer, positions)
        self._mine.update(assigned.partition for assigned in found)
        starts = self._listener.assigned(found)
        taken = []
        for assigned in found:
            start = starts.get(assigned.partition, -1)
            if start < 0:
                self._dead.add(assigned.partition)
            taken.append(self._position(assigned.partition, assigned.log_start if start < 0 else start))
        consumer.incremental_assign(taken)
        # Not taken from, and paused ones: a pause does not outlive an assignment by itself.
        if held := self._dead | self._paused:
            consumer.pause([self._position(partition) for partition in held & self._mine])
        self._serve_requests()
        self._commit_all_now()

    def _read_offsets(self, consumer: Consumer, positions: list[TopicPartition]) -> list[Assigned]:
        """Committed offsets with metadata, and the bounds of the log; asked for until there is an answer."""
        deadline = time.monotonic() + _OFFSETS_PATIENCE_S
        while True:
            try:
                return self._ask_offsets(consumer, positions)
            except (KafkaException, TransportError) as trouble:
                if time.monotonic() > deadline or self._stopping.is_set():
                    raise
                _log.warning("offsets of %s cannot be read yet: %s", self.function, trouble)
                self._stopping.wait(0.2)
                self.polled_at = time.monotonic()

    def _ask_offsets(self, consumer: Consumer, positions: list[TopicPartition]) -> list[Assigned]:
        known = consumer.committed(positions, timeout=_OFFSETS_TIMEOUT_S)
        if error := next((each.error for each in known if each.error is not None), None):
            raise KafkaException(error)
        places = [(each.topic, each.partition) for each in known]
        starts = ask_offsets(consumer, places, EARLIEST, _OFFSETS_TIMEOUT_S, self._servers)
        ends = ask_offsets(consumer, places, LATEST, _OFFSETS_TIMEOUT_S, self._servers)
        found = []
        for each, place in zip(known, places, strict=True):
            committed = None if each.offset < 0 else (each.offset, each.metadata or "")
            found.append(Assigned(self._partition(*place), committed, starts[place], ends[place]))
        return found

    def _on_revoke(self, consumer: Consumer, positions: list[TopicPartition]) -> None:
        """Waits until the listener lets the partitions go, carrying out its commits meanwhile."""
        positions = self._with_companions(positions)
        going = {self._partition(position.topic, position.partition) for position in positions}
        waited = going - self._dead
        self._released -= going
        self._give_up_in_flight()
        if waited:
            self._listener.revoked(sorted(waited))
        deadline = time.monotonic() + self._settings.revoke_budget_s + 0.5
        self._serve_requests()
        self._commit_all_now()
        while not waited <= self._released:
            left = deadline - time.monotonic()
            if left <= 0:
                _log.error("partitions of %s were not released in time: %s", self.function, sorted(waited))
                self._listener.lost(sorted(waited - self._released))
                break
            try:
                request = self._requests.get(timeout=left)
            except Empty:
                continue
            if request is not None:
                request()
            self._serve_requests()
            self._commit_all_now()
        self._forget(going)
        consumer.incremental_unassign(positions)

    def _on_lost(self, consumer: Consumer, positions: list[TopicPartition]) -> None:
        positions = self._with_companions(positions)
        gone = {self._partition(position.topic, position.partition) for position in positions}
        told = gone - self._dead
        self._give_up_in_flight()
        self._serve_requests()
        self._forget(gone)
        if told:
            self._listener.lost(sorted(told))
        self._serve_requests()
        consumer.incremental_unassign(positions)

    def _with_companions(self, positions: list[TopicPartition]) -> list[TopicPartition]:
        """Partitions of the invocations topic that came or go, and those of the retries topic bound to them.

        The group shares out the invocations topic alone; the owner of its partition `i` owns the partitions
        `r` of the retries topic with `r mod count = i`. Shared out by the group too, they would count like
        invocations do, and the cooperative assignor would leave instances with retries only: idle.
        """
        name = self._names[InputTopic.RETRIES]
        companions = [
            TopicPartition(name, number)
            for position in positions
            for number in range(position.partition, RETRIES_PARTITIONS, self._partition_count)
        ]
        return [*positions, *companions]

    def _forget(self, gone: set[InputPartition]) -> None:
        """Nothing is committed, paused or taken for these any more."""
        self._mine -= gone
        self._paused -= gone
        self._drop_commits(self._mine)
        self._dead -= gone

    # ---- commits ----

    def _send_commit(self) -> None:
        """Sends the next commit; its answer comes with a later poll."""
        if self._in_flight is not None or not self._commits:
            return
        request = self._commits.popleft()
        if not self._is_mine(request):
            return
        self._in_flight = request
        try:
            self._client().commit(offsets=self._offsets(request), asynchronous=True)
        except KafkaException as error:
            self._in_flight = None
            self._answer(request, error.args[0])

    def _on_commit(self, error: KafkaError | None, positions: list[TopicPartition]) -> None:
        """The answer to the one commit that is under way."""
        if self._strays:
            self._strays -= 1
            return
        request, self._in_flight = self._in_flight, None
        if request is None:
            return
        self._answer(request, error or next((each.error for each in positions if each.error), None))
        self._serve_requests()
        self._send_commit()

    def _give_up_in_flight(self) -> None:
        """A rebalance callback cannot wait for the answer of an earlier commit: it comes with a later poll.

        The one who asked repeats it inside of the callback. Both go to the same broker on one connection, so
        the repeated one is applied last.
        """
        if self._in_flight is not None:
            request, self._in_flight = self._in_flight, None
            self._strays += 1
            request.on_outcome(CommitOutcome.UNKNOWN)

    def _commit_all_now(self) -> None:
        """Carries out all commits that were asked for, each with its answer, inside a rebalance callback."""
        while self._commits:
            request = self._commits.popleft()
            if not self._is_mine(request):
                continue
            error: KafkaError | None = None
            try:
                done = self._client().commit(offsets=self._offsets(request), asynchronous=False)
                error = next((each.error for each in done or () if each.error), None)
            except KafkaException as exception:
                error = exception.args[0]
            self._answer(request, error)
            self._serve_requests()

    def _is_mine(self, request: _CommitRequest) -> bool:
        """Answers a commit that names a partition which went meanwhile.

        The broker would take it, and set the offset of the new owner back.
        """
        held = self._mine.intersection(request.offsets)
        if len(held) == len(request.offsets):
            return True
        request.on_outcome(CommitOutcome.REFUSED if held else CommitOutcome.LOST)
        return False

    def _drop_commits(self, held: set[InputPartition]) -> None:
        """Answers waiting commits that name partitions not held."""
        waiting = list(self._commits)
        self._commits.clear()
        for request in waiting:
            if held.issuperset(request.offsets) or self._is_mine(request):
                self._commits.append(request)

    def _answer(self, request: _CommitRequest, error: KafkaError | None) -> None:
        outcome = commit_outcome(error)
        if outcome is not CommitOutcome.OK:
            _log.warning("commit for %s: %s (%s)", self.function, outcome.value, error)
        request.on_outcome(outcome)

    def _offsets(self, request: _CommitRequest) -> list[TopicPartition]:
        return [
            TopicPartition(self._names[partition.topic], partition.partition, offset, metadata)
            for partition, (offset, metadata) in request.offsets.items()
        ]

    # ---- errors and names ----

    def _on_message_error(self, message: Message) -> None:
        """An error that the client puts into the stream of records."""
        error = message.error()
        if error is None:
            return
        code = error.code()
        topic, number = message.topic(), message.partition()
        if code in _OUT_OF_RANGE and topic is not None and number is not None and number >= 0:
            self._stop_intake(self._partition(topic, number), error.str())
        elif code in _TOPIC_GONE:
            self._listener.stuck(None, f"{topic or self.function}: {error.str()}")
        elif error.fatal():
            raise KafkaException(error)
        else:
            self._complain(error)

    def _stop_intake(self, partition: InputPartition, reason: str) -> None:
        if partition in self._dead or partition not in self._mine:
            return
        self._dead.add(partition)
        self._client().pause([self._position(partition)])
        self._listener.stuck(partition, reason)

    def _on_error(self, error: KafkaError) -> None:
        """An error of the client as a whole; it goes on by itself unless it is fatal."""
        if error.fatal():
            raise KafkaException(error)
        if not self._outage.told(error):
            self._complain(error)

    def _complain(self, error: KafkaError) -> None:
        """Says what is wrong, unless it follows from an outage that was told, or may be over in a moment."""
        minor = self._outage.lost or error.code() in UNSETTLED
        _log.log(
            logging.DEBUG if minor else logging.WARNING, "consumer of %s: %s", self.function, error.str()
        )

    def _client(self) -> Consumer:
        if self._consumer is None:
            raise RuntimeError("the consumer has not been started")
        return self._consumer

    def _position(self, partition: InputPartition, offset: int | None = None) -> TopicPartition:
        name = self._names[partition.topic]
        return (
            TopicPartition(name, partition.partition)
            if offset is None
            else TopicPartition(name, partition.partition, offset)
        )

    def _partition(self, topic: str | None, number: int | None) -> InputPartition:
        key = (topic or "", -1 if number is None else number)
        partition = self._partitions.get(key)
        if partition is None:
            partition = self._partitions[key] = InputPartition(self._inputs[key[0]], key[1])
        return partition


def _member_settings(config: ConnectionConfig, group: str, settings: GroupSettings) -> Settings:
    """Settings of the client; each that is not a default has its reason."""
    return {
        **connection_settings(config),
        "group.id": group,
        "group.protocol": "classic",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": settings.session_ms,
        "heartbeat.interval.ms": settings.heartbeat_ms,
        "max.poll.interval.ms": settings.max_poll_ms,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",  # a cut log is an alarm, never a silent skip
        "isolation.level": "read_uncommitted",
        "fetch.wait.max.ms": FETCH_WAIT_MS,
        "fetch.queue.backoff.ms": 10,  # the default of a second stalls a small prefetch
        "fetch.error.backoff.ms": 50,
        "fetch.max.bytes": settings.prefetch_kib * 1024,
        "queued.max.messages.kbytes": settings.prefetch_kib,
        "queued.min.messages": settings.prefetch_records,
        "topic.metadata.refresh.interval.ms": 30_000,  # a topic cut or deleted is noticed within this
    }

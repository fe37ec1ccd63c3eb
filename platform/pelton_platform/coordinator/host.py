"""One function in one instance: its group member, its engine, its executors, and one lock that orders events.

Whoever brings an event (the poll thread with records, the executors' thread with frames, the producer's
thread with reports, the process with the time) takes the lock, feeds the engine a batch, carries its actions
out in order and lets go. Nothing that is done under the lock waits for another thread.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pelton.core.call import DeadLetter, InputPartition, Timer
from pelton.core.decisions import (
    Alarm,
    Commit,
    CommitOutcome,
    Credit,
    InputRecord,
    Interrupt,
    Pause,
    ReadCancellations,
    ReadResults,
    Released,
    Resume,
    SendDeadLetter,
    SendInput,
    SendResult,
    SendTimer,
    Start,
    Trim,
    Unpark,
)
from pelton.core.engine import Engine
from pelton.core.runs import EngineSettings
from pelton.core.spec import FunctionKind, FunctionSpec, LogRecord
from pelton.errors import PeltonError, TransportError
from pelton.protocol.codec import encode_dead_letter, encode_result, encode_timer
from pelton.protocol.frames import FromExecutor
from pelton.protocol.headers import encode_input
from pelton.protocol.headers import encode_result as result_headers
from pelton.protocol.history import read_history, with_history
from pelton.protocol.pickles import MARK, is_pickled
from pelton.protocol.signing import Keyring
from pelton.protocol.topics import Control, Topics, timer_key
from pelton.transport.config import ConnectionConfig
from pelton.transport.exchange import clear_exchange
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.group import Assigned, GroupConsumer, GroupSettings
from pelton.transport.kafka.intake import Intake
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.kafka.ranges import RangeReader
from pelton.transport.log import KafkaFailure
from pelton_platform.coordinator import times
from pelton_platform.coordinator.cancellations import CancellationReader
from pelton_platform.coordinator.counters import Counters
from pelton_platform.coordinator.executors import ExecutorExit, ExecutorPool, ExecutorSettings
from pelton_platform.coordinator.fences import Seen, read_before, results_partition
from pelton_platform.coordinator.hearing import failure_of, is_sound
from pelton_platform.coordinator.output import OutputLog
from pelton_platform.coordinator.pickles import Pickles
from pelton_platform.coordinator.placement import Placement
from pelton_platform.coordinator.relay import KINDS, Client, Relay
from pelton_platform.coordinator.trimming import Trimmer
from pelton_platform.coordinator.turn import Turn

INTERRUPT_GRACE_S: Final = {
    FunctionKind.SYNC: 0.5,  # nothing in a thread can be told to stop
    FunctionKind.GENERATOR: 0.5,
    FunctionKind.ASYNC: 2.0,
    FunctionKind.ASYNC_GENERATOR: 2.0,
}
"""Time an attempt gets to yield after its timeout before its executor is replaced."""

_FENCE_PAUSE_S: Final = 0.5
_CHUNKS: Final = int(FromExecutor.CHUNKS)
_OUTCOME: Final = int(FromExecutor.OUTCOME)
_POISON: Final = int(FromExecutor.POISON)
_PARK: Final = int(FromExecutor.PARK)
_UNPARK: Final = int(FromExecutor.UNPARK)
_LOG: Final = int(FromExecutor.LOG)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """What the hosts of a process share.

    Attributes:
        config: the connection.
        producer: sends what calls write.
        clock: broker time.
        ranges: reads stretches of the log.
        trimmer: deletes what is finished.
        output: takes output of user code.
        counters: how often what happened.
        helpers: threads that may block.
        relay: does for executors what they call.
        cancellations: reads which calls are cancelled.
        keyring: signs and checks pickles.
        failed: told when a host cannot go on; the process then ends.
    """

    config: ConnectionConfig
    producer: RecordProducer
    clock: BrokerClock
    ranges: RangeReader
    trimmer: Trimmer
    output: OutputLog
    counters: Counters
    helpers: Executor
    relay: Relay
    cancellations: CancellationReader
    keyring: Keyring
    failed: Callable[[str, BaseException], None]


class FunctionHost:
    """Serves one function; see the module's docstring.

    Args:
        spec: the function.
        executors: what its executors run.
        services: shared in the process.
    """

    def __init__(self, spec: FunctionSpec, executors: ExecutorSettings, services: Services) -> None:
        self._redact = executors.redact
        self.spec = spec
        self.slots = executors.slots
        self._container, self._instance = executors.container, executors.instance
        self._exchange = executors.exchange
        self._services = services
        self._now_ms = services.clock.now_ms
        self._send_record = services.producer.send
        self._topics = Topics(services.config.namespace)
        self._results = self._topics.results(spec.name)
        self._letters = self._topics.dead_letters(spec.name)
        self._timers = self._topics.control(Control.TIMERS)
        self._turn = Turn(self)
        self._engine = Engine(
            EngineSettings.of(spec, executors.instance),
            random.random,
            services.cancellations.known,
        )
        self._pool = ExecutorPool(executors, self._on_records, self._on_ready, self._on_exit)
        self._pickles = Pickles(services.keyring, spec.name)
        self._placement = Placement(self._pool, INTERRUPT_GRACE_S[spec.kind])
        self._consumer = GroupConsumer(
            services.config,
            spec.name,
            spec.partitions,
            Intake(spec.name),
            self,
            GroupSettings(
                session_ms=times.SESSION_TIMEOUT_MS,
                heartbeat_ms=times.HEARTBEAT_MS,
                revoke_budget_s=times.REVOKE_BUDGET_S,
                max_poll_ms=times.MAX_POLL_MS,
            ),
        )
        self.reported: deque[tuple[int, int]] = deque()
        """Send id and offset, -1 for a failure; whoever has or lets go of the turn takes them in."""
        self._late_failures: deque[tuple[int, int]] = deque()
        self._closing = threading.Event()
        self._trouble: dict[str, str] = {}
        self._carriers: dict[type[Any], Callable[[Any], None]] = {
            SendResult: self._send_result,
            SendDeadLetter: self._send_dead_letter,
            SendInput: self._send_input,
            SendTimer: self._send_timer,
            Commit: self._send_commit,
            Start: self._place,
            Interrupt: self._interrupt,
            Credit: self._placement.credit,
            ReadResults: self._read_results,
            ReadCancellations: self._read_cancellations,
            Pause: lambda action: self._consumer.pause(action.partition),
            Resume: lambda action: self._consumer.resume(action.partition),
            Released: lambda action: self._consumer.release(action.partitions),
            Trim: lambda action: services.trimmer.trim(spec.name, action.offsets),
            Alarm: self._alarm,
            Unpark: self._placement.unpark,
        }
        self._clients: dict[int, Client] = {}
        services.counters.source(lambda: self._engine.counters)
        services.cancellations.listen(self._on_cancellations)

    # ---- life ----

    def start(self) -> None:
        """Starts the executor and joins the group."""
        with self._turn:
            self._placement.open()
        self._consumer.start()

    def tick(self) -> None:
        """Tells the engine the time."""
        with self._turn:
            now = self._now_ms()
            self._engine.tick(now)
            self._placement.retire(now)
            while self._late_failures and self._late_failures[0][0] <= now:
                self._engine.reported(now, self._late_failures.popleft()[1], False, -1)
            self._carry_out()
            self._consumer.busy = not self._engine.idle

    def drain(self) -> None:
        """Starts nothing more."""
        with self._turn:
            self._engine.drain(self._now_ms())
            self._carry_out()

    def leave(self, timeout_s: float) -> bool:
        """Hands everything back and leaves the group; False when that took too long. Blocks."""
        return self._consumer.stop(timeout_s)

    def close(self, grace_s: float) -> None:
        """Ends the executors. Blocks."""
        self._closing.set()
        with self._turn:
            self._placement.close()
        self._pool.close(grace_s)

    def set_clock(self, offset_ms: int) -> None:
        """Tells the executors broker time minus this machine's clock."""
        self._pool.set_clock(offset_ms)

    # ---- what others may see ----

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits for Kafka."""
        with self._turn:
            return self._engine.idle

    @property
    def busy(self) -> bool:
        """Whether the engine should be told the time often: something is open, or will be due soon."""
        due_ms = self._engine.next_due_ms
        return self._consumer.busy or bool(due_ms and due_ms - self._now_ms() < times.SOON_MS)

    @property
    def polled_at(self) -> float:
        """Monotonic time of the last poll."""
        return self._consumer.polled_at

    @property
    def running(self) -> int:
        """Attempts in executors."""
        return self._engine.running

    @property
    def ready(self) -> bool:
        """Whether the shared executor takes attempts."""
        return self._placement.ready

    @property
    def pids(self) -> list[int]:
        """Pids of executors."""
        return list(self._pool.pids().values())

    @property
    def trouble(self) -> str:
        """What an operator should know, "" when all is well."""
        return "; ".join(self._trouble.values())

    @property
    def broken(self) -> bool:
        """Whether user code could not be loaded the last time."""
        return "load" in self._trouble

    # ---- the group's events, on the poll thread ----

    def assigned(self, partitions: Sequence[Assigned]) -> Mapping[InputPartition, int]:
        """See `GroupListener`."""
        with self._turn:
            now, engine = self._now_ms(), self._engine
            starts = {
                each.partition: engine.assigned(
                    now, each.partition, each.committed, each.log_start, each.log_end
                )
                for each in partitions
            }
            self._consumer.busy = True
            self._carry_out()
        return starts

    def revoked(self, partitions: Sequence[InputPartition]) -> None:
        """See `GroupListener`."""
        with self._turn:
            self._engine.revoke(self._now_ms(), partitions)
            self._consumer.busy = True
            self._carry_out()

    def lost(self, partitions: Sequence[InputPartition]) -> None:
        """See `GroupListener`."""
        self._services.counters.add("partitions_lost", len(partitions))
        with self._turn:
            self._engine.lost(self._now_ms(), partitions)
            self._carry_out()

    def records(self, batch: Mapping[InputPartition, list[InputRecord]]) -> None:
        """See `GroupListener`."""
        with self._turn:
            now, engine = self._now_ms(), self._engine
            for partition, records in batch.items():
                engine.records(now, partition, records)
            self._consumer.busy = True
            self._carry_out()

    def stuck(self, partition: InputPartition | None, reason: str) -> None:
        """See `GroupListener`."""
        self._services.counters.add("stuck_partitions")
        where = (
            self.spec.name if partition is None else f"{partition.topic.name.lower()}/{partition.partition}"
        )
        self._trouble[f"stuck {where}"] = f"{where} cannot be read on: {reason}"
        _log.error("intake of %s of %s stopped: %s", where, self.spec.name, reason)

    def failed(self, error: BaseException) -> None:
        """See `GroupListener`."""
        self._services.failed(self.spec.name, error)

    # ---- executors' events, on the pool's thread ----

    def _on_ready(self, executor_id: int, pid: int) -> None:
        with self._turn:
            now = self._now_ms()
            begun = self._placement.became_ready(executor_id)
            if begun is not None:
                self._engine.begun(now, begun)
            self._trouble.pop("load", None)
            self._engine.capacity(now, self.slots if self._placement.ready else 0)
            self._carry_out()

    def _on_exit(self, end: ExecutorExit) -> None:
        if not end.asked:
            self._services.counters.add("executors_lost")
            _log.warning("executor %s of %s is gone: %s", end.pid, self.spec.name, end.reason)
        if end.broken is not None or not (end.ready or end.asked):
            said = end.reason if end.broken is None else f"{end.broken.type}: {end.broken.message}"
            self._trouble["load"] = f"{self.spec.name} cannot be loaded: {said}"
        with self._turn:
            now = self._now_ms()
            lost = self._placement.exited(end.executor_id)
            self._engine.capacity(now, self.slots if self._placement.ready else 0)
            if lost:
                self._engine.executor_died(now, lost, end.reason, memory=end.out_of_memory)
            self._carry_out()
        if self._exchange is not None and end.pid:
            clear_exchange(self._exchange, end.pid)
        client = self._clients.pop(end.executor_id, None)
        if client is not None:
            self._services.relay.gone(client)

    def _on_records(self, executor_id: int, records: list[list[Any]]) -> None:
        lines: list[LogRecord] = []
        with self._turn:
            now, engine, placement = self._now_ms(), self._engine, self._placement
            redact = self._redact
            for record in records:
                kind = record[0]
                if kind == _LOG and is_sound(record):
                    lines.append(self._line(executor_id, record))
                elif not is_sound(record):
                    self._pool.kill(executor_id, "it wrote rubbish to its channel")
                elif kind in KINDS:
                    self._services.relay.take(self._client(executor_id), record)
                elif not placement.holds(executor_id, record[1]):
                    self._services.counters.add("dropped_completions")
                elif kind == _OUTCOME:
                    placement.over(record[1])
                    engine.finished(now, record[1], record[2], failure_of(record[3], redact), record[4])
                elif kind == _CHUNKS:
                    engine.chunks(now, record[1], record[2])
                elif kind == _PARK:
                    engine.parked(now, record[1])
                elif kind == _UNPARK:
                    engine.unparked(now, record[1])
                elif kind == _POISON:
                    placement.over(record[1])
                    engine.poisoned(now, record[1], redact(record[2]))
            self._carry_out()
        if lines:
            self._services.output.write(lines)

    def _client(self, executor_id: int) -> Client:
        """The executor as the relay knows it; on the pool's thread."""
        client = self._clients.get(executor_id)
        if client is None:
            client = self._clients[executor_id] = Client(partial(self._pool.send, executor_id))
        return client

    def _line(self, executor_id: int, record: Sequence[Any]) -> LogRecord:
        _, call_id, attempt, source, level, logger, text, fields, at_ms, dropped = record
        return LogRecord(
            at_ms=at_ms,
            function=self.spec.name,
            container=self._container,
            instance=self._instance,
            pid=self._pool.pids().get(executor_id, 0),
            call_id=call_id,
            attempt=attempt,
            source=source,
            text=text,
            level=level,
            logger=logger,
            fields=tuple((str(name), str(value)) for name, value in fields),
            dropped=dropped,
        )

    # ---- the lock ----

    def _on_report(
        self, send_id: int, failure: KafkaFailure | None, partition: int, offset: int, at_ms: int
    ) -> None:
        """A delivery report, on the producer's thread, which never waits for the lock."""
        self.reported.append((send_id, offset if failure is None else -1))
        self._turn.pass_by()

    def take_reports(self) -> None:
        """Feeds the engine the delivery reports that came; called with the turn held."""
        now, engine, reports = self._now_ms(), self._engine, self.reported
        while reports:
            send_id, offset = reports.popleft()
            if offset >= 0:
                engine.reported(now, send_id, True, offset)
            else:
                self._late_failures.append((now + times.FAILED_SEND_PAUSE_MS, send_id))
        self._carry_out()

    def _carry_out(self) -> None:
        """Does what the engine decided, in order."""
        carriers = self._carriers
        for action in self._engine.take():
            carriers[type(action)](action)
        self._placement.flush()

    # ---- actions ----

    def _send(
        self,
        send_id: int,
        topic: str,
        value: bytes,
        key: bytes | None,
        partition: int | None,
        headers: list[tuple[str, bytes]],
    ) -> None:
        try:
            self._send_record(
                topic,
                value,
                key=key,
                partition=partition,
                headers=headers,
                on_report=partial(self._on_report, send_id),
            )
        except TransportError as error:
            _log.warning("a record for %s was not sent: %s", topic, error)
            self.reported.append((send_id, -1))

    def _place(self, start: Start) -> None:
        """Gives an attempt to an executor, unless its arguments are pickles that nobody signed."""
        reason = self._pickles.refuse(start) if MARK in start.value else ""
        if reason:
            self._engine.poisoned(self._now_ms(), start.run_id, reason)
        else:
            self._placement.place(start)

    def _send_result(self, action: SendResult) -> None:
        send_id, result, ancestry = action
        if result.items and any(map(is_pickled, result.items)):
            result = self._pickles.signed(result)
        call_id = result.call_id
        self._send(
            send_id,
            self._results,
            encode_result(result),
            call_id,
            results_partition(call_id),
            result_headers(call_id, result.token, ancestry),
        )

    def _send_dead_letter(self, action: SendDeadLetter) -> None:
        send_id, origin, record, reason, failures = action
        headers = record.headers
        letter = DeadLetter(
            call_id=None if headers is None else headers.call_id,
            function=self.spec.name,
            reason=reason,
            topic=self._topics.input(self.spec.name, origin.topic),
            partition=origin.partition,
            offset=record.offset,
            given_up_ms=self._now_ms(),
            history=(*(() if headers is None else read_history(headers.history)), *failures),
            key=record.key,
            value=record.value,
            headers=tuple(record.raw_headers),
        )
        key = letter.call_id or record.key
        _log.warning(
            "gave up %s/%d@%d of %s: %s",
            letter.topic,
            letter.partition,
            letter.offset,
            self.spec.name,
            reason.message,
        )
        self._send(send_id, self._letters, encode_dead_letter(letter), key, 0, [])

    def _send_input(self, action: SendInput) -> None:
        send_id, target, key, value, headers, failures = action
        topic = self._topics.input(self.spec.name, target.topic)
        self._send(
            send_id, topic, value, key, target.partition, encode_input(with_history(headers, failures))
        )

    def _send_timer(self, action: SendTimer) -> None:
        send_id, target, key, value, headers, failures = action
        timer = Timer(
            due_ms=headers.due_ms,
            topic=self._topics.input(self.spec.name, target.topic),
            partition=target.partition,
            value=value,
            key=key,
            headers=tuple(encode_input(with_history(headers, failures))),
        )
        key = timer_key(headers.call_id, headers.attempt)
        # The partitioner hashes the key: whoever fires it writes the tombstone to the same partition.
        self._send(send_id, self._timers, encode_timer(timer), key, None, [])

    def _send_commit(self, action: Commit) -> None:
        self._consumer.commit(action.offsets, partial(self._on_committed, action.commit_id))

    def _on_committed(self, commit_id: int, outcome: CommitOutcome) -> None:
        with self._turn:
            self._engine.committed(self._now_ms(), commit_id, outcome)
            self._carry_out()

    def _interrupt(self, action: Interrupt) -> None:
        level = logging.INFO if action.cancelled else logging.WARNING
        _log.log(level, "an attempt of %s is stopped: %s", self.spec.name, action.reason)
        self._placement.interrupt(action)

    def _read_cancellations(self, action: ReadCancellations) -> None:
        self._services.cancellations.read_to_end(partial(self._on_cancellations_read, *action))

    def _on_cancellations_read(self, partition: InputPartition, epoch: int) -> None:
        with self._turn:
            self._engine.cancellations_read(self._now_ms(), partition, epoch)
            self._carry_out()

    def _on_cancellations(self) -> None:
        """There are more requests to cancel."""
        with self._turn:
            self._engine.cancelled(self._now_ms())
            self._carry_out()

    def _read_results(self, action: ReadResults) -> None:
        self._services.helpers.submit(self._read_fence, action)

    def _read_fence(self, action: ReadResults) -> None:
        """On a helper thread: reads until there is an answer."""
        seen: Seen | None = None
        while seen is None and not self._closing.is_set():
            try:
                seen = read_before(self._services.ranges, self._results, action.call_id, action.end_offset)
            except PeltonError as error:
                _log.warning("results of a stream of %s cannot be read yet: %s", self.spec.name, error)
                self._closing.wait(_FENCE_PAUSE_S)
        if seen is None:
            return
        with self._turn:
            self._engine.fence_read(self._now_ms(), action.run_id, seen.chunk, seen.outcome)
            self._carry_out()

    def _alarm(self, action: Alarm) -> None:
        self._services.counters.add("alarms")
        text = ", ".join(f"{name}={value}" for name, value in action.fields.items())
        self._trouble[f"alarm {action.event} {text}"] = f"{action.event} ({text})"
        _log.error("%s: %s (%s)", self.spec.name, action.event, text)

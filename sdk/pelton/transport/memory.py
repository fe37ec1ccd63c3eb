"""A broker in the memory of this process and a transport over it, for tests of what calls functions."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from pelton.core.call import CallId, InputHeaders, Invocation, Result, reply_partition
from pelton.core.spec import ContainerSpec, FunctionSpec
from pelton.errors import DataLoss, TransportError
from pelton.protocol.codec import decode_invocation, encode_result
from pelton.protocol.headers import decode_input
from pelton.protocol.headers import encode_result as encode_result_headers
from pelton.protocol.signing import Keyring, new_key
from pelton.protocol.topics import MAX_RECORD_BYTES, Topics
from pelton.transport.config import DEFAULT_NAMESPACE
from pelton.transport.log import Headers, KafkaFailure, LogRecord, OnBatch, OnLost, OnReport, Place
from pelton.transport.partitioning import partition_of
from pelton.transport.payloads import PayloadStore
from pelton.transport.ports import AttachState, Directory, OnAccepted, OnResults
from pelton.transport.registry import Registry
from pelton.transport.routing import CallRouter

_BATCH: Final = 500
_LOOK_AGAIN_S: Final = 0.5
_UNKNOWN_TOPIC: Final = KafkaFailure(3, "UNKNOWN_TOPIC_OR_PART", "Unknown topic or partition", True)
_TOO_LARGE: Final = KafkaFailure(10, "MSG_SIZE_TOO_LARGE", "Message size too large", True)
_TIMED_OUT: Final = KafkaFailure(-192, "_MSG_TIMED_OUT", "Message timed out", False)
_LOGGER: Final = logging.getLogger("pelton.transport")


class Delivery(NamedTuple):
    """An input record as it reaches a worker.

    Attributes:
        headers: its routing data.
        invocation: its body.
        topic, partition, offset: where it lies.
        append: appends a result of the call, acknowledged when it returns; returns its offset.
    """

    headers: InputHeaders
    invocation: Invocation
    topic: str
    partition: int
    offset: int
    append: Callable[[Result], int]


Worker = Callable[[Delivery], None]
"""What stands in for worker instances: called for each input record in turn, on a thread of the broker."""


class _Partition:
    """Records of one partition; the first of them has the offset `start`."""

    __slots__ = ("records", "start")

    def __init__(self) -> None:
        self.start = 0
        self.records: list[LogRecord] = []

    @property
    def end(self) -> int:
        return self.start + len(self.records)


class MemoryBroker:
    """Topics with partitions, offsets and append times, a registry, and workers; all in this process.

    What Kafka does and this does not: groups and commits, compaction, transactions, replication, access
    control, limits other than the size of a record. Nothing survives the process.

    Args:
        namespace: prefix of all topics.
        now_ms: broker time in milliseconds since the epoch; the wall clock when None.

    Attributes:
        payloads: where large payloads are kept; None, as at first, refuses them.
    """

    def __init__(self, namespace: str = DEFAULT_NAMESPACE, now_ms: Callable[[], int] | None = None) -> None:
        self.topics = Topics(namespace)
        self.keyring = Keyring([new_key()], namespace)
        self.now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self.registry = Registry(self.now_ms)
        self.payloads: PayloadStore | None = None
        self.changed = threading.Condition()
        self._partitions: dict[Place, _Partition] = {}
        self._counts: dict[str, int] = {}
        self._acknowledging = True
        self._closed = False
        for plan in self.topics.control_topic_plans(1):
            self.create_topic(plan.name, plan.partitions)
        self._workers: list[threading.Thread] = []

    # --- what a deployer does ---

    def create_topic(self, topic: str, partitions: int) -> None:
        """Makes a topic; one that exists stays as it is."""
        with self.changed:
            if topic not in self._counts:
                self._counts[topic] = partitions
                for number in range(partitions):
                    self._partitions[topic, number] = _Partition()

    def delete_topic(self, topic: str) -> None:
        """Deletes a topic with all its records."""
        with self.changed:
            for number in range(self._counts.pop(topic, 0)):
                del self._partitions[topic, number]
            self.changed.notify_all()

    def deploy(self, function: FunctionSpec, container: ContainerSpec | None = None) -> None:
        """Makes the topics of a function and puts it, and its container, into the registry."""
        for plan in self.topics.topic_plans_for_function(function, 1):
            self.create_topic(plan.name, plan.partitions)
        if container is not None:
            self.registry.put_container(container.name, container)
        self.registry.put_function(function.name, function)

    # --- what a broker does ---

    def append(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> LogRecord | KafkaFailure:
        """Appends a record at the broker's time; a failure says that it is certainly not in the log."""
        size = len(value or b"") + len(key or b"")
        with self.changed:
            count = self._counts.get(topic, 0)
            if partition is None and count:
                partition = random.randrange(count) if key is None else partition_of(key, count)
            found = self._partitions.get((topic, partition or 0))
            if found is None:
                return _UNKNOWN_TOPIC
            if size > MAX_RECORD_BYTES:
                return _TOO_LARGE
            now_ms = self.now_ms()
            if found.records:  # append times never go back within a partition
                now_ms = max(now_ms, found.records[-1].appended_ms)
            record = LogRecord(topic, partition or 0, found.end, now_ms, key, value, tuple(headers))
            found.records.append(record)
            self.changed.notify_all()
            return record

    def append_result(self, function: str, result: Result) -> int:
        """Appends a result as a worker would; returns its offset.

        Raises:
            TransportError: the function has no topics.
        """
        record = self.append(
            self.topics.results(function),
            encode_result(result),
            key=result.call_id,
            partition=reply_partition(result.call_id),
            headers=encode_result_headers(result.call_id, result.token),
        )
        if isinstance(record, KafkaFailure):
            raise TransportError(f"a result of {function!r} was refused: {record}")
        return record.offset

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Deletes the records below an offset, as trimming and retention do."""
        with self.changed:
            found = self._of((topic, partition))
            gone = min(before, found.end) - found.start
            if gone > 0:
                del found.records[:gone]
                found.start += gone
            self.changed.notify_all()

    def bounds(self, place: Place) -> tuple[int, int]:
        """Offset of the first record still there, and the offset the next one gets.

        Raises:
            TransportError: no such partition.
        """
        with self.changed:
            found = self._of(place)
            return found.start, found.end

    def offset_for_time(self, place: Place, at_ms: int) -> int:
        """Offset of the first record appended at or after a time, -1 for none. Raises as `bounds`."""
        with self.changed:
            found = self._of(place)
            return next((r.offset for r in found.records if r.appended_ms >= at_ms), -1)

    def records(self, place: Place, start: int, limit: int = _BATCH) -> Sequence[LogRecord]:
        """At most `limit` records from an offset on.

        Raises:
            DataLoss: the offset lies outside the log.
            TransportError: no such partition.
        """
        with self.changed:
            found = self._of(place)
            if not found.start <= start <= found.end:
                raise DataLoss(f"offset {start} of {place[0]}/{place[1]} lies outside the log")
            return found.records[start - found.start : start - found.start + limit]

    def freeze(self) -> None:
        """From now on nothing is acknowledged, though it is appended: a broker cut off after the write."""
        with self.changed:
            self._acknowledging = False

    def thaw(self) -> None:
        """Acknowledges again."""
        with self.changed:
            self._acknowledging = True
            self.changed.notify_all()

    @property
    def acknowledging(self) -> bool:
        """Whether appends are acknowledged."""
        return self._acknowledging

    # --- what workers do ---

    def serve(self, function: str, worker: Worker) -> None:
        """Gives each input record of a function, waiting ones too, to a worker; what it raises is logged."""
        thread = threading.Thread(
            target=self._work, args=(function, worker), name=f"pelton-memory-{function}", daemon=True
        )
        self._workers.append(thread)
        thread.start()

    def close(self) -> None:
        """Ends the workers. Idempotent."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        for thread in self._workers:
            if thread is not threading.current_thread():
                thread.join(timeout=5.0)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _work(self, function: str, worker: Worker) -> None:
        positions: dict[Place, int] = {}
        inputs = (self.topics.invocations(function), self.topics.retries(function))
        while not self._closed:
            with self.changed:
                fresh: list[LogRecord] = []
                for topic in inputs:
                    for number in range(self._counts.get(topic, 0)):
                        found = self._partitions[topic, number]
                        position = max(found.start, positions.get((topic, number), 0))
                        fresh.extend(found.records[position - found.start :])
                        positions[topic, number] = found.end
                if not fresh:
                    self.changed.wait(_LOOK_AGAIN_S)
            for record in sorted(fresh, key=lambda record: record.appended_ms):
                if not self._closed:
                    self._deliver(function, worker, record)

    def _deliver(self, function: str, worker: Worker, record: LogRecord) -> None:
        try:
            delivery = Delivery(
                decode_input(record.headers),
                decode_invocation(record.value),
                *(record.topic, record.partition, record.offset),
                lambda result: self.append_result(function, result),
            )
            worker(delivery)
        except Exception:
            _LOGGER.exception("the worker of %s failed on %s/%s@%s", function, *record[:3])

    def _of(self, place: Place) -> _Partition:
        found = self._partitions.get(place)
        if found is None:
            raise TransportError(f"asking for {place[0]}/{place[1]} failed: {_UNKNOWN_TOPIC}")
        return found


class _Append(NamedTuple):
    """An append whose report is due."""

    on_report: OnReport
    outcome: LogRecord | KafkaFailure
    deadline: float


class MemoryLog:
    """Implements `log.Log` for one client of a memory broker, with one thread that reports and reads.

    Args:
        broker: where the records are.
        on_batch: receives the records of what is followed.
        on_lost: told of what cannot be followed any more.
        message_timeout_s: how long an acknowledgement may take before the fate of a record is unknown.
    """

    def __init__(
        self, broker: MemoryBroker, on_batch: OnBatch, on_lost: OnLost, message_timeout_s: float = 30.0
    ) -> None:
        self._broker = broker
        self._on_batch = on_batch
        self._on_lost = on_lost
        self._message_timeout_s = message_timeout_s
        self._positions: dict[Place, int] = {}
        self._appends: deque[_Append] = deque()
        self._reporting = 0
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="pelton-memory-log", daemon=True)
        self._thread.start()

    def now_ms(self) -> int:
        """Broker time in milliseconds since the epoch."""
        return self._broker.now_ms()

    def append(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        partition: int | None,
        headers: Headers,
        on_report: OnReport,
    ) -> None:
        """As `log.Log.append`."""
        if self._closed:
            raise TransportError(f"the connection is closed; the record for {topic} was not sent")
        outcome = self._broker.append(topic, value, key=key, partition=partition, headers=headers)
        deadline = time.monotonic() + self._message_timeout_s
        with self._broker.changed:
            self._appends.append(_Append(on_report, outcome, deadline))
            self._broker.changed.notify_all()

    def starts(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """As `log.Log.starts`."""
        return {place: self._broker.bounds(place)[0] for place in places}

    def ends(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """As `log.Log.ends`."""
        return {place: self._broker.bounds(place)[1] for place in places}

    def offsets_for_time(self, places: Sequence[Place], at_ms: int) -> Mapping[Place, int]:
        """As `log.Log.offsets_for_time`."""
        return {place: self._broker.offset_for_time(place, at_ms) for place in places}

    def follow(self, topic: str, partition: int, offset: int) -> None:
        """As `log.Log.follow`."""
        with self._broker.changed:
            if (topic, partition) in self._positions:
                raise ValueError(f"{topic}/{partition} is followed already")
            self._positions[topic, partition] = offset
            self._broker.changed.notify_all()

    def unfollow(self, topic: str, partition: int) -> None:
        """As `log.Log.unfollow`."""
        with self._broker.changed:
            self._positions.pop((topic, partition), None)

    def read_ranges(
        self, ranges: Mapping[Place, tuple[int, int]], timeout_s: float
    ) -> Iterator[Sequence[LogRecord]]:
        """As `log.Log.read_ranges`."""
        for place, (start, end) in ranges.items():
            while start < end:
                batch = self._broker.records(place, start, min(_BATCH, end - start))
                start += len(batch)
                yield batch

    def close(self, timeout_s: float) -> int:
        """Waits for acknowledgements, then reports the rest as unknown; returns how many those were."""
        with self._broker.changed:
            self._broker.changed.wait_for(
                lambda: not self._appends and not self._reporting, timeout=timeout_s
            )
            left = len(self._appends)
            self._closed = True
            self._broker.changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)
        return left

    # --- the thread ---

    def _serve(self) -> None:
        while True:
            with self._broker.changed:
                closed = self._closed
                reports = self._due_reports()
                self._reporting = len(reports)
                batch, lost = self._next_batch()
                if not reports and not batch and not lost and not closed:
                    self._broker.changed.wait(self._patience_s())
            for on_report, outcome in reports:
                self._report(on_report, outcome)
            if batch:
                self._call(self._on_batch, batch)
            for place, offset in lost:
                self._call(self._on_lost, *place, offset, "Offset out of range")
            with self._broker.changed:
                self._reporting = 0
                self._broker.changed.notify_all() if reports else None
            if closed:
                return

    def _patience_s(self) -> float:
        if not self._appends:
            return _LOOK_AGAIN_S
        return min(_LOOK_AGAIN_S, max(0.0, self._appends[0].deadline - time.monotonic()))

    def _due_reports(self) -> list[tuple[OnReport, LogRecord | KafkaFailure]]:
        """Appends that are acknowledged, refused, out of time, or left over at the end."""
        now = time.monotonic()
        due: list[tuple[OnReport, LogRecord | KafkaFailure]] = []
        while self._appends:
            append = self._appends[0]
            refused = isinstance(append.outcome, KafkaFailure)
            if self._broker.acknowledging or refused:
                due.append((append.on_report, append.outcome))
            elif self._closed or append.deadline <= now:
                due.append((append.on_report, _TIMED_OUT))
            else:
                break
            self._appends.popleft()
        return due

    def _next_batch(self) -> tuple[list[LogRecord], list[tuple[Place, int]]]:
        batch: list[LogRecord] = []
        lost: list[tuple[Place, int]] = []
        for place, position in list(self._positions.items()):
            try:
                records = self._broker.records(place, position)
            except (DataLoss, TransportError):
                lost.append((place, position))
                del self._positions[place]
            else:
                batch.extend(records)
                self._positions[place] = position + len(records)
        return batch, lost

    def _report(self, on_report: OnReport, outcome: LogRecord | KafkaFailure) -> None:
        if isinstance(outcome, KafkaFailure):
            self._call(on_report, outcome, -1, -1, -1)
        else:
            self._call(on_report, None, outcome.partition, outcome.offset, outcome.appended_ms)

    @staticmethod
    def _call(receiver: Callable[..., None], *arguments: object) -> None:
        try:
            receiver(*arguments)
        except Exception:
            _LOGGER.exception("what the log told could not be handled")


class MemoryTransport:
    """Implements `ports.Transport` over a memory broker, with the routing that the Kafka transport has.

    Args:
        broker: shared by all transports of a test.
        message_timeout_s: how long an acknowledgement may take before acceptance is unknown.
    """

    def __init__(self, broker: MemoryBroker, *, message_timeout_s: float = 30.0) -> None:
        self._broker = broker
        self._left: int | None = None
        self._log = MemoryLog(broker, self._take, self._lost, message_timeout_s)
        self._router = CallRouter(self._log, broker.registry, broker.topics, keyring=broker.keyring)

    def _take(self, records: Sequence[LogRecord]) -> None:
        self._router.take(records)

    def _lost(self, topic: str, partition: int, offset: int, reason: str) -> None:
        self._router.lost(topic, partition, offset, reason)

    def now_ms(self) -> int:
        """Broker time in milliseconds since the epoch."""
        return self._broker.now_ms()

    @property
    def directory(self) -> Directory:
        """What is deployed."""
        return self._broker.registry

    @property
    def config(self) -> None:
        """As `ports.Transport.config`."""

    @property
    def payloads(self) -> PayloadStore | None:
        """As `ports.Transport.payloads`: those of the broker."""
        return self._broker.payloads

    def prepare(self, function: str) -> int:
        """As `ports.Transport.prepare`."""
        return self._router.prepare(function)

    def submit(
        self, invocation: Invocation, spec: FunctionSpec, on_accepted: OnAccepted, on_results: OnResults
    ) -> None:
        """As `ports.Transport.submit`."""
        self._router.submit(invocation, spec, on_accepted, on_results)

    def attach(self, function: str, call_id: CallId, on_results: OnResults, timeout_s: float) -> AttachState:
        """As `ports.Transport.attach`."""
        return self._router.attach(function, call_id, on_results, timeout_s)

    def cancel(self, call_id: CallId, reason: str, on_accepted: OnAccepted) -> None:
        """As `ports.Transport.cancel`; workers read the topic themselves."""
        self._router.cancel(call_id, reason, on_accepted)

    def forget(self, call_id: CallId, on_results: OnResults | None = None) -> None:
        """As `ports.Transport.forget`."""
        self._router.forget(call_id, on_results)

    def pause(self, call_id: CallId, on_results: OnResults) -> None:
        """As `ports.Transport.pause`."""
        self._router.pause(call_id, on_results)

    def resume(self, call_id: CallId, on_results: OnResults, timeout_s: float) -> bool:
        """As `ports.Transport.resume`."""
        return self._router.resume(call_id, on_results, timeout_s)

    def close(self, timeout_s: float = 10.0) -> int:
        """As `ports.Transport.close`; a second time it returns the same number."""
        if self._left is None:
            self._left = self._log.close(timeout_s)
        return self._left

"""The caller's way to the platform over Kafka."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pelton.core.call import CallId, Invocation
from pelton.core.spec import FunctionSpec
from pelton.errors import TransportError
from pelton.protocol.topics import Control, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka import lifetime
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.directory import KafkaDirectory
from pelton.transport.kafka.probe import CONNECT_TIMEOUT_S, Probe
from pelton.transport.kafka.producer import MESSAGE_TIMEOUT_MS, RecordProducer
from pelton.transport.kafka.reader import PartitionReader
from pelton.transport.log import Headers, LogRecord, OnReport, Place
from pelton.transport.payloads import ObjectStore, store_of
from pelton.transport.ports import AttachState, Directory, OnAccepted, OnResults
from pelton.transport.routing import CallRouter

_CLOSE_S: Final = 10.0


class KafkaLog:
    """Implements `log.Log` with one producer and one consumer."""

    def __init__(self, producer: RecordProducer, reader: PartitionReader, clock: BrokerClock) -> None:
        self._producer = producer
        self._reader = reader
        self._clock = clock

    def now_ms(self) -> int:
        """Broker time in milliseconds since the epoch."""
        return self._clock.now_ms()

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
        self._producer.send(topic, value, key=key, partition=partition, headers=headers, on_report=on_report)

    def starts(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """As `log.Log.starts`."""
        return self._reader.starts(places)

    def ends(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """As `log.Log.ends`."""
        return self._reader.ends(places)

    def offsets_for_time(self, places: Sequence[Place], at_ms: int) -> Mapping[Place, int]:
        """As `log.Log.offsets_for_time`."""
        return self._reader.offsets_for_time(places, at_ms)

    def follow(self, topic: str, partition: int, offset: int) -> None:
        """As `log.Log.follow`."""
        self._reader.follow(topic, partition, offset)

    def unfollow(self, topic: str, partition: int) -> None:
        """As `log.Log.unfollow`."""
        self._reader.unfollow(topic, partition)

    def read_ranges(
        self, ranges: Mapping[Place, tuple[int, int]], timeout_s: float
    ) -> Iterator[Sequence[LogRecord]]:
        """As `log.Log.read_ranges`."""
        return self._reader.ranges.read(ranges, timeout_s)


class _Link:
    """One connection: the clients, the clock, and the routing over them."""

    def __init__(
        self,
        config: ConnectionConfig,
        clock: BrokerClock,
        directory: KafkaDirectory | None,
        message_timeout_ms: int,
        followed_before: frozenset[Place],
    ) -> None:
        topics = Topics(config.namespace)
        self.producer = RecordProducer(config, message_timeout_ms=message_timeout_ms, clock=clock)
        self.reader: PartitionReader | None = None
        try:
            probe = Probe(self.producer, topics.control(Control.LOGS))
            self.directory = directory or KafkaDirectory(config, clock.now_ms, timeout_s=CONNECT_TIMEOUT_S)
            probe.wait(config.bootstrap_servers)
            # The first one waited for connections to be made and says little about the broker's clock.
            Probe(self.producer, topics.control(Control.LOGS)).wait(config.bootstrap_servers)
            self.reader = PartitionReader(config, self._take, on_lost=self._lost, name="pelton-replies")
            self.router = CallRouter(
                KafkaLog(self.producer, self.reader, clock),
                self.directory,
                topics,
                refresh=self.directory.refresh,
                followed_before=followed_before,
                keyring=self.directory.keyring,
            )
        except BaseException:
            self.producer.close(flush_s=0)
            if self.reader is not None:
                self.reader.close()
            raise

    def _take(self, records: Sequence[LogRecord]) -> None:
        self.router.take(records)

    def _lost(self, topic: str, partition: int, offset: int, reason: str) -> None:
        self.router.lost(topic, partition, offset, reason)

    def close(self, timeout_s: float) -> int:
        left = self.producer.close(flush_s=timeout_s)
        if self.reader is not None:
            self.reader.close()
        return left


class KafkaTransport:
    """Implements `ports.Transport` over Kafka; connects when it is made.

    In a child made by `fork` the first use connects anew; what the parent had open stays the parent's.

    Args:
        config: where the platform is.
        message_timeout_ms: how long Kafka is tried with a call before its acceptance is unknown.

    Raises:
        PlatformNotRunning: the broker answers and has no topics of this namespace.
        SignatureError: the key file cannot be read.
        TransportError: the broker cannot be reached, or takes no records.
    """

    def __init__(self, config: ConnectionConfig, *, message_timeout_ms: int = MESSAGE_TIMEOUT_MS) -> None:
        self._config = config
        self._payloads = store_of(config)
        self._message_timeout_ms = message_timeout_ms
        self._clock = BrokerClock()
        self._opening = threading.Lock()
        self._closed = False
        self._left = 0
        self._followed_before: frozenset[Place] = frozenset()
        self._directory: KafkaDirectory | None = None
        self._link: _Link | None = None
        self._open()
        lifetime.track(self)

    def now_ms(self) -> int:
        """Broker time in milliseconds since the epoch."""
        return self._clock.now_ms()

    @property
    def directory(self) -> Directory:
        """What is deployed."""
        return (self._link or self._open()).directory

    @property
    def config(self) -> ConnectionConfig:
        """As `ports.Transport.config`."""
        return self._config

    @property
    def payloads(self) -> ObjectStore | None:
        """As `ports.Transport.payloads`."""
        return self._payloads

    def prepare(self, function: str) -> int:
        """As `ports.Transport.prepare`."""
        return (self._link or self._open()).router.prepare(function)

    def submit(
        self, invocation: Invocation, spec: FunctionSpec, on_accepted: OnAccepted, on_results: OnResults
    ) -> None:
        """As `ports.Transport.submit`."""
        (self._link or self._open()).router.submit(invocation, spec, on_accepted, on_results)

    def attach(self, function: str, call_id: CallId, on_results: OnResults, timeout_s: float) -> AttachState:
        """As `ports.Transport.attach`."""
        return (self._link or self._open()).router.attach(function, call_id, on_results, timeout_s)

    def cancel(self, call_id: CallId, reason: str, on_accepted: OnAccepted) -> None:
        """As `ports.Transport.cancel`."""
        (self._link or self._open()).router.cancel(call_id, reason, on_accepted)

    def forget(self, call_id: CallId, on_results: OnResults | None = None) -> None:
        """As `ports.Transport.forget`."""
        link = self._link
        if link is not None:
            link.router.forget(call_id, on_results)

    def pause(self, call_id: CallId, on_results: OnResults) -> None:
        """As `ports.Transport.pause`."""
        link = self._link
        if link is not None:
            link.router.pause(call_id, on_results)

    def resume(self, call_id: CallId, on_results: OnResults, timeout_s: float) -> bool:
        """As `ports.Transport.resume`."""
        return (self._link or self._open()).router.resume(call_id, on_results, timeout_s)

    def close(self, timeout_s: float = _CLOSE_S) -> int:
        """As `ports.Transport.close`; a second time it returns the same number."""
        with self._opening:
            link, self._link, self._closed = self._link, None, True
        if link is not None:
            deadline = time.monotonic() + timeout_s
            self._left = link.close(max(0.0, deadline - time.monotonic()))
            link.directory.close()
        lifetime.untrack(self)
        return self._left

    def abandon(self) -> None:
        """In a forked child: the inherited connection is forgotten, the next use makes one of its own."""
        link, self._link = self._link, None
        self._opening = threading.Lock()
        if link is not None:
            self._followed_before = link.router.followed
            self._directory = link.directory

    def _open(self) -> _Link:
        with self._opening:
            if self._closed:
                raise TransportError("the connection is closed; nothing was sent")
            if self._link is None:
                self._link = _Link(
                    self._config,
                    self._clock,
                    self._directory,
                    self._message_timeout_ms,
                    self._followed_before,
                )
                lifetime.track(self)
            return self._link

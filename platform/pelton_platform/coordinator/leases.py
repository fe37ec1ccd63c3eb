"""Limits as an instance holds them: one book for all its functions, and the thread that speaks for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from pelton.core.leases import LeaseBook
from pelton.core.limits import LimitRequest
from pelton.errors import RecordError, TransportError
from pelton.protocol.codec import decode_lease, encode_limit_request
from pelton.protocol.limits import parse_lease_key
from pelton.protocol.topics import CONTROL_PARTITIONS, Control, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.kafka.table import CompactedTables
from pelton.transport.log import KafkaFailure
from pelton.transport.partitioning import partition_of
from pelton_platform.boottime import boot_ms

LOOK_S: Final = 0.1
"""How often requests are repeated and leases renewed, where these are due."""

_AGAIN_S: Final = 0.5
_log = logging.getLogger(__name__)

Told = Callable[[], None]
"""Called when slots or tokens came, or were lost; must not block for long."""


class Leases:
    """The leases of one instance. All methods may be called from any thread, and none of them waits.

    Args:
        config: the connection.
        instance: id of the instance.
        producer: sends requests; what it cannot deliver in time it gives up.
    """

    def __init__(self, config: ConnectionConfig, instance: str, producer: RecordProducer) -> None:
        topics = Topics(config.namespace)
        self._config, self._instance, self._producer = config, instance, producer
        self._requests, self._leases = (
            topics.control(Control.LIMIT_REQUESTS),
            topics.control(Control.LIMITS),
        )
        self._lock = threading.Lock()
        self._book = LeaseBook(instance, _partition_of)
        self._came: list[Told] = []
        self._lost: list[Callable[[list[str]], None]] = []
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pelton-leases", daemon=True)

    def start(self) -> None:
        """Begins to read, ask and renew."""
        self._thread.start()

    def listen(self, came: Told, lost: Callable[[list[str]], None]) -> None:
        """Tells `came` that something may start that could not before, and `lost` which leases ended."""
        self._came.append(came)
        self._lost.append(lost)

    # ---- use ----

    def declare(self, key: str, limit: int, as_of_ms: int, interval_us: int = 0) -> None:
        """See `LeaseBook`, here and below."""
        with self._lock:
            self._book.declare(key, limit, as_of_ms, interval_us)

    def use(self, key: str) -> bool:
        """Takes a slot; False when there is none now."""
        with self._lock:
            return self._book.use(key, boot_ms())

    def done(self, key: str) -> None:
        """Gives back a slot; if others wait for it, at once."""
        with self._lock:
            others_wait = self._book.done(key, boot_ms())
        if others_wait:
            self._wanted.set()

    def token(self, key: str, broker_ms: int) -> int:
        """Takes a token; returns until when its attempt must have begun, or 0."""
        with self._lock:
            return self._book.token(key, broker_ms)

    def want(self, key: str, user: str, count: int) -> None:
        """How many more slots or tokens a user would like now."""
        with self._lock:
            self._book.want(key, user, count)
        if count:
            self._wanted.set()

    @property
    def ends_ms(self) -> int:
        """When the first lease ends that attempts run under, on the clock of `boot_ms`; 0 for none."""
        with self._lock:
            return self._book.ends_ms

    def close(self, timeout_s: float) -> None:
        """Gives all leases back: nothing runs under them any more. Blocks."""
        self._closed.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._lock:
            requests = self._book.release(boot_ms())
        self._send(requests)

    # ---- the thread ----

    def _run(self) -> None:
        table = self._open()
        if table is None:
            return
        try:
            while not self._closed.is_set():
                self._wanted.wait(LOOK_S)
                self._wanted.clear()
                self._look()
        finally:
            table.close()

    def _open(self) -> CompactedTables | None:
        while not self._closed.is_set():
            try:
                return CompactedTables(
                    self._config, [self._leases], self._take, read_committed=True, keep=False
                )
            except TransportError as error:
                _log.warning("leases cannot be read yet: %s", error)
                self._closed.wait(_AGAIN_S)
        return None

    def _look(self) -> None:
        at_ms = boot_ms()
        with self._lock:
            ended = self._book.expired(at_ms)
            requests = self._book.requests(at_ms)
        if ended:
            self._tell_lost(ended)
        self._send(requests)

    def _send(self, requests: list[tuple[int, LimitRequest]]) -> None:
        for partition, request in requests:
            sent_ms = boot_ms()
            try:
                self._producer.send(
                    self._requests,
                    encode_limit_request(request),
                    key=(request.key or self._instance).encode(),
                    partition=partition,
                    on_report=partial(self._reported, sent_ms),
                )
            except TransportError as error:
                _log.warning("a request for a limit was not sent, which is tried again: %s", error)

    def _reported(
        self, sent_ms: int, failure: KafkaFailure | None, partition: int, _offset: int, _at_ms: int
    ) -> None:
        if failure is None:
            with self._lock:
                self._book.acknowledged(partition, sent_ms, boot_ms())

    def _take(self, _topic: str, key: bytes, value: bytes | None) -> None:
        """One lease, on the reading thread."""
        place = parse_lease_key(key)
        if place is None or place[1] != self._instance:
            return
        if value is None:
            with self._lock:
                lost = self._book.deleted(place[0])
            if lost:
                self._tell_lost([place[0]])
            return
        try:
            lease = decode_lease(value)
        except RecordError as error:
            _log.error("ignored a record in %s: %s", self._leases, error)
            return
        with self._lock:
            more = self._book.granted(lease, boot_ms())
        if lease.keep < lease.slots:
            # Others wait: what is free is given back now, not with the next look.
            self._wanted.set()
        if more:
            for came in self._came:
                came()

    def _tell_lost(self, keys: list[str]) -> None:
        _log.warning("leases were lost: %s", ", ".join(keys))
        for lost in self._lost:
            lost(keys)


def _partition_of(key: str) -> int:
    return partition_of(key.encode(), CONTROL_PARTITIONS)

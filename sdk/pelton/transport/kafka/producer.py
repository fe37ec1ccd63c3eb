"""Appending records: a Kafka producer with bounded memory, its reports, its renewal after fatal errors."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from pelton.errors import SubmitFailed, TransportError
from pelton.protocol.topics import Control, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka import lifetime
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.failures import error_of, failure_of
from pelton.transport.kafka.outage import Outage
from pelton.transport.kafka.settings import ClientLog, producer_settings
from pelton.transport.log import Headers, KafkaFailure, OnReport

MAX_UNACKED: Final = 100_000
"""Sends that may wait for their acknowledgement before `send` blocks."""

MAX_UNACKED_BYTES: Final = 64 * 1024 * 1024
"""Bytes that may wait for their acknowledgement before `send` blocks."""

MESSAGE_TIMEOUT_MS: Final = 30_000
"""How long the client tries to append a record of a caller."""

_POLL_S: Final = 0.1
_RECORD_OVERHEAD: Final = 128  # bytes a queued record costs beside its key, value and headers, roughly
_SAMPLE_EVERY_NS: Final = 50_000_000
_SLOW_SAMPLE_NS: Final = (
    5_000_000  # says too little about the broker's clock: the next record is a sample, too
)
_METADATA_ANSWERS: Final = 2  # after the first the client changes its connection, with the second it asks
_PURGE_S: Final = 5.0
_EXIT_FLUSH_S: Final = 10.0
_LOGGER: Final = logging.getLogger("pelton.transport")

ClientFactory = Callable[..., Any]


class RecordProducer:
    """Appends records with acks=all and idempotence, and tells each one's fate exactly once.

    A record is given to the client once: nothing here sends again what may be in the log. All methods may
    be called from any thread. Reports come on one thread of its own.

    Args:
        config: the connection.
        message_timeout_ms: how long the client tries; then the record's fate is unknown.
        max_unacked: sends that may wait for acknowledgement; `send` blocks above.
        max_unacked_bytes: the same in bytes.
        clock: learns from append times when given.
        on_fatal: told the reason each time the client had to be made anew, on the reporting thread.
        make_client: makes the client; tests give their own.
    """

    def __init__(
        self,
        config: ConnectionConfig,
        *,
        message_timeout_ms: int = MESSAGE_TIMEOUT_MS,
        max_unacked: int = MAX_UNACKED,
        max_unacked_bytes: int = MAX_UNACKED_BYTES,
        clock: BrokerClock | None = None,
        on_fatal: Callable[[str], None] | None = None,
        make_client: ClientFactory = Producer,
    ) -> None:
        self._servers = config.bootstrap_servers
        self._settings = producer_settings(config, message_timeout_ms, max_unacked, max_unacked_bytes)
        self._message_timeout_s = message_timeout_ms / 1000
        self._max = max_unacked
        self._max_bytes = max_unacked_bytes
        self._clock = clock
        self._on_fatal = on_fatal
        self._make_client = make_client
        self._room = threading.Condition(threading.Lock())
        self._unacked = 0
        self._unacked_bytes = 0
        self._waiting = 0
        self._settled = 0
        self._settled_bytes = 0
        self._next_sample_ns = 0
        self._refused: deque[tuple[OnReport, int, KafkaFailure]] = deque()
        self._fatal = ""
        self._outage = Outage(config.bootstrap_servers, "a producer")
        self._known_topic = Topics(config.namespace).control(Control.LOGS)
        self._hurry = _METADATA_ANSWERS
        self._client = self._new_client()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="pelton-producer", daemon=True)
        self._thread.start()
        lifetime.track(self)

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers | None = None,
        on_report: OnReport,
    ) -> None:
        """Hands a record to the client; blocks while too much is unacknowledged.

        Args:
            topic: full name.
            value: None for a tombstone.
            key: chooses the partition when `partition` is None; without one it is random.
            partition: the partition, None to choose by key.
            headers: in order.
            on_report: called once on the reporting thread; exceptions it raises are logged.

        Raises:
            SubmitFailed: nothing was acknowledged for as long as the client tries; the record was not sent.
            TransportError: the producer is closed; the record was not sent.
        """
        if self._closed:
            raise TransportError(f"the connection is closed; the record for {topic} was not sent")
        size = (len(value) if value else 0) + (len(key) if key else 0) + _RECORD_OVERHEAD
        with self._room:
            if self._unacked >= self._max or self._unacked_bytes >= self._max_bytes:
                self._wait_for_room(topic)
            self._unacked += 1
            self._unacked_bytes += size
        now_ns = time.monotonic_ns()
        if self._clock is not None and now_ns >= self._next_sample_ns:
            self._next_sample_ns = now_ns + _SAMPLE_EVERY_NS
            report = partial(self._sampled, on_report, size, time.time_ns(), now_ns)
        else:
            report = partial(self._reported, on_report, size)
        client = self._client
        try:
            client.produce(
                topic, value, key, -1 if partition is None else partition, on_delivery=report, headers=headers
            )
        except (BufferError, KafkaException, RuntimeError) as error:
            self._send_again(client, error, (topic, value, key, partition, headers), report, on_report, size)
        except BaseException:
            self._give_back(size)
            raise

    def _send_again(
        self,
        client: Any,
        error: Exception,
        record: tuple[str, bytes | None, bytes | None, int | None, Headers | None],
        report: Callable[[KafkaError | None, Any], None],
        on_report: OnReport,
        size: int,
    ) -> None:
        """The client did not take the record: wait for room or for a new client, or refuse it."""
        topic, value, key, partition, headers = record
        deadline = time.monotonic() + self._message_timeout_s
        while True:
            broken = isinstance(error, RuntimeError)  # closed by the renewal while we held it
            if isinstance(error, KafkaException):
                refusal = error_of(error)
                if not (refusal.fatal() or refusal.code() == KafkaError._FATAL):
                    # Nothing was queued, whatever the reason.
                    failure = replace(failure_of(refusal), certain=True)
                    self._refused.append((on_report, size, failure))
                    return
                broken = True
            with self._room:
                if broken and self._client is client:
                    self._fatal = self._fatal or str(error)
                    self._room.wait(timeout=_POLL_S)
                elif not broken:
                    self._room.wait(timeout=_POLL_S)
            if self._closed or time.monotonic() >= deadline:
                self._give_back(size)
                raise SubmitFailed(f"the Kafka client takes no record for {topic}: {error}") from error
            client = self._client
            target = -1 if partition is None else partition
            try:
                client.produce(topic, value, key, target, on_delivery=report, headers=headers)
            except (BufferError, KafkaException, RuntimeError) as again:
                error = again
            else:
                return

    def _give_back(self, size: int) -> None:
        with self._room:
            self._unacked -= 1
            self._unacked_bytes -= size
            self._room.notify_all()

    def _wait_for_room(self, topic: str) -> None:
        """Called with the lock held and no room; returns with room or raises."""
        self._waiting += 1
        try:
            found = self._room.wait_for(
                lambda: self._closed or (self._unacked < self._max and self._unacked_bytes < self._max_bytes),
                timeout=self._message_timeout_s + 1.0,
            )
        finally:
            self._waiting -= 1
        if self._closed:
            raise TransportError(f"the connection is closed; the record for {topic} was not sent")
        if not found:
            raise SubmitFailed(
                f"Kafka at {self._servers} does not keep up: {self._unacked} records "
                f"({self._unacked_bytes // 1024} KiB) wait for acknowledgement; "
                f"the record for {topic} was not sent"
            )

    @property
    def unacknowledged(self) -> int:
        """Sends whose fate is not known yet."""
        return self._unacked

    def flush(self, timeout_s: float) -> int:
        """Waits until every send so far was reported; returns how many are still open when time is up."""
        with self._room:
            self._waiting += 1
            self._room.wait_for(lambda: self._unacked == 0, timeout=timeout_s)
            self._waiting -= 1
            return self._unacked

    def close(self, flush_s: float = _EXIT_FLUSH_S) -> int:
        """Flushes, reports what is left as unknown, and ends the client. Idempotent.

        Returns:
            Sends that were not acknowledged within `flush_s`.
        """
        left = self.flush(flush_s) if not self._closed else 0
        with self._room:
            self._closed = True
            self._room.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=_PURGE_S * 2)
        lifetime.untrack(self)
        return left

    def abandon(self) -> None:
        """In a forked child: the inherited client is never used and never destroyed."""
        lifetime.keep_for_ever(self._client)
        self._room = threading.Condition(threading.Lock())
        self._closed = True

    # --- the reporting thread ---

    def _reported(self, on_report: OnReport, size: int, error: KafkaError | None, message: Any) -> None:
        self._settled += 1
        self._settled_bytes += size
        try:
            if error is None:
                on_report(None, message.partition(), message.offset(), message.timestamp()[1])
            else:
                if error.fatal():
                    self._fatal = self._fatal or error.str()
                on_report(failure_of(error), -1, -1, -1)
        except Exception:
            _LOGGER.exception("a delivery report could not be handled")

    def _sampled(
        self,
        on_report: OnReport,
        size: int,
        sent_wall_ns: int,
        sent_ns: int,
        error: KafkaError | None,
        message: Any,
    ) -> None:
        if error is None and self._clock is not None:
            round_trip_ns = time.monotonic_ns() - sent_ns
            self._clock.sample(sent_wall_ns, message.timestamp()[1], round_trip_ns)
            if round_trip_ns > _SLOW_SAMPLE_NS:
                self._next_sample_ns = 0
        self._reported(on_report, size, error, message)

    def _serve(self) -> None:
        while not self._closed:
            if self._hurry:
                self._ask_for_id(self._client)
            self._poll(self._client, _POLL_S)
            self._settle()
            if self._fatal:
                self._renew()
            self._outage.look(self._client)
        self._end(self._client)

    def _ask_for_id(self, client: Any) -> None:
        """Asks for metadata: with each answer the client asks for its producer id, if it has none.

        By itself it does so after half a second, since it drops the connection of its first answer for that
        to the same broker under the name that the answer gives. Records wait for the id.
        """
        try:
            client.list_topics(self._known_topic, timeout=_POLL_S)
        except KafkaException as error:
            _LOGGER.debug("a Kafka producer has no metadata yet: %s", error)
        else:
            self._hurry -= 1

    def _settle(self) -> None:
        """Gives back the room of what was reported, and reports what the client refused."""
        while self._refused:
            on_report, size, failure = self._refused.popleft()
            self._settled += 1
            self._settled_bytes += size
            try:
                on_report(failure, -1, -1, -1)
            except Exception:
                _LOGGER.exception("a delivery report could not be handled")
        if self._settled:
            with self._room:
                self._unacked -= self._settled
                self._unacked_bytes -= self._settled_bytes
                if self._waiting:
                    self._room.notify_all()
            self._settled = self._settled_bytes = 0

    def _renew(self) -> None:
        """Replaces a client that will never deliver again; the fate of what it held is unknown."""
        reason, broken = self._fatal, self._client
        _LOGGER.error("the Kafka producer failed for good and is made anew: %s", reason)
        fresh = self._new_client()
        self._hurry = _METADATA_ANSWERS
        with self._room:
            self._client = fresh
            self._fatal = ""
            self._room.notify_all()
        self._end(broken)
        if self._on_fatal is not None:
            try:
                self._on_fatal(reason)
            except Exception:
                _LOGGER.exception("what a fatal error was told to failed")

    def _end(self, client: Any) -> None:
        """Reports all that a client still holds, then destroys it."""
        deadline = time.monotonic() + _PURGE_S
        while len(client) and time.monotonic() < deadline:
            client.purge()
            self._poll(client, 0.01)
            self._settle()
        self._settle()
        try:
            client.close()
        except KafkaException as error:
            _LOGGER.debug("a Kafka producer ended with an error: %s", error)

    def _poll(self, client: Any, timeout_s: float) -> None:
        """Serves reports; a fatal error comes as an exception of the poll that meets it."""
        try:
            client.poll(timeout_s)
        except KafkaException as error:
            met = error_of(error)
            if client is self._client and (met.fatal() or met.code() == KafkaError._FATAL):
                self._fatal = self._fatal or met.str()
            else:
                _LOGGER.debug("Kafka producer: %s", met)

    def _new_client(self) -> Any:
        return self._make_client({**self._settings, "error_cb": self._on_error}, logger=ClientLog())

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = self._fatal or error.str()
        elif not self._outage.told(error):
            _LOGGER.debug("Kafka producer: %s", error)

"""Requests to cancel calls as an instance hears of them: one topic, read for all its functions."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from pelton.core.call import CallId
from pelton.core.cancelling import Cancellations
from pelton.errors import RecordError, TransportError
from pelton.protocol.codec import decode_cancellation
from pelton.protocol.topics import CANCELLATION_TTL_MS, Control, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.table import CompactedTables

_READ_S: Final = 2.0
_AGAIN_S: Final = 0.5
_FORGET_EVERY_S: Final = 3600.0  # and only when nothing has come for so long
_log = logging.getLogger(__name__)

Told = Callable[[], None]
"""Called on the thread of the requests; must not block for long."""


class CancellationReader:
    """Follows the topic on a thread of its own.

    Args:
        config: the connection.
        now_ms: broker time.

    Attributes:
        known: all requests read so far; for the engines of the instance.
    """

    def __init__(self, config: ConnectionConfig, now_ms: Callable[[], int]) -> None:
        self.known = Cancellations(CANCELLATION_TTL_MS)
        self._config = config
        self._now_ms = now_ms
        self._topic = Topics(config.namespace).control(Control.CANCELLATIONS)
        self._changed = threading.Condition()
        self._fresh: dict[CallId, str] = {}
        self._listeners: list[Told] = []
        self._waiting: list[Told] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pelton-cancellations", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def listen(self, listener: Told) -> None:
        """Tells `listener` whenever requests were added to `known`."""
        with self._changed:
            self._listeners.append(listener)

    def read_to_end(self, then: Told) -> None:
        """Calls `then` once all that is in the topic by now was added and told; never blocks."""
        with self._changed:
            self._waiting.append(then)
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Ends it; who still waits is not called. Blocks."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # --- the thread ---

    def _run(self) -> None:
        tables = self._open()
        if tables is None:
            return
        try:
            while not self._closed:
                with self._changed:
                    wanted = self._changed.wait_for(self._has_work, _FORGET_EVERY_S)
                    waiting, self._waiting = self._waiting, []
                if not wanted:
                    self.known.forget(self._now_ms())
                reached = not waiting or self._reach_end(tables)
                self._tell()
                if reached:
                    for then in waiting:
                        then()
                    continue
                with self._changed:
                    self._waiting = waiting + self._waiting
                    if not self._closed:
                        self._changed.wait(_AGAIN_S)
        finally:
            tables.close()

    def _has_work(self) -> bool:
        return bool(self._fresh or self._waiting or self._closed)

    def _open(self) -> CompactedTables | None:
        """The topic, as soon as it can be read; None when there is no need any more."""
        while not self._closed:
            try:
                return CompactedTables(self._config, [self._topic], self._take, keep=False)
            except TransportError as error:
                _log.warning("cancellations cannot be read yet: %s", error)
                with self._changed:
                    if not self._closed:
                        self._changed.wait(_AGAIN_S)
        return None

    def _reach_end(self, tables: CompactedTables) -> bool:
        try:
            return tables.wait_end(_READ_S, refresh=True)
        except TransportError as error:
            _log.warning("cancellations cannot be read to their end, calls wait for that: %s", error)
            return False

    def _tell(self) -> None:
        with self._changed:
            fresh, self._fresh = self._fresh, {}
            listeners = list(self._listeners)
        if fresh:
            self.known.add(fresh)
            for listener in listeners:
                listener()

    def _take(self, topic: str, key: bytes, value: bytes | None) -> None:
        """One record, on the reading thread."""
        try:
            request = decode_cancellation(value)
            if request.call_id != key:
                raise RecordError("a cancellation under the key of another call")
        except RecordError as error:
            if value is not None:
                _log.error("ignored a record in %s: %s", topic, error)
            return
        with self._changed:
            self._fresh[request.call_id] = request.reason
            self._changed.notify_all()

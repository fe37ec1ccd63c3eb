"""The process: a member of the group of limits, granting what instances ask for until it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from pelton.errors import PeltonError
from pelton.protocol.topics import Control, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.probe import ClockProducer
from pelton.transport.kafka.ranges import EARLIEST, LATEST, RangeReader
from pelton.transport.kafka.shared import FencedWriter, SharedConsumer
from pelton_platform import telemetry
from pelton_platform.boottime import boot_ms
from pelton_platform.governor.limits import LimitService

MESSAGE_TIMEOUT_MS: Final = 4_000
POLL_S: Final = 0.1
_ASK_S: Final = 3.0
_PAUSE_S: Final = 1.0
_log = telemetry.get_logger(__name__)


class GovernorService:
    """Owns limits until `stop`.

    Args:
        config: the connection.
    """

    def __init__(self, config: ConnectionConfig) -> None:
        self._config = config
        self._topics = Topics(config.namespace)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Makes `run` return; signal handlers may call it."""
        self._stopping.set()

    def run(self) -> None:
        """Serves until stopped; what fails is begun anew."""
        while not self._stopping.is_set():
            try:
                self._serve()
            except PeltonError as error:
                _log.warning("governor-begins-anew", reason=str(error))
                self._stopping.wait(_PAUSE_S)

    def _serve(self) -> None:
        config, topics = self._config, self._topics
        requests, leases = topics.control(Control.LIMIT_REQUESTS), topics.control(Control.LIMITS)
        group = topics.service_group("limits")
        with ExitStack() as stack:
            timed = ClockProducer(config, MESSAGE_TIMEOUT_MS)
            stack.callback(timed.close)
            committed = RangeReader(config, read_committed=True)
            stack.callback(committed.close)
            written = RangeReader(config)
            stack.callback(written.close)
            writer = FencedWriter(config, group)
            stack.callback(writer.close)

            def write(records: Sequence[tuple[int, bytes, bytes | None]]) -> None:
                writer.write(leases, records, consumer.membership)

            limits = LimitService(
                (requests, leases), committed, _Offsets(written), write, boot_ms, timed.clock.now_ms
            )
            consumer = SharedConsumer(config, requests, group, limits, read_committed=False, from_end=True)
            stack.callback(consumer.close)
            _log.info("governor-serves", topic=requests)
            while not self._stopping.is_set():
                consumer.poll(limits.wait_s(POLL_S))
                limits.serve()
                timed.learn()


class _Offsets:
    """Asks for offsets with a reader that counts records of open transactions."""

    def __init__(self, reader: RangeReader) -> None:
        self._reader = reader

    def starts(self, topic: str, partitions: Sequence[int]) -> Mapping[int, int]:
        """See `Offsets`."""
        return self._ask(topic, partitions, EARLIEST)

    def ends(self, topic: str, partitions: Sequence[int]) -> Mapping[int, int]:
        """See `Offsets`."""
        return self._ask(topic, partitions, LATEST)

    def _ask(self, topic: str, partitions: Sequence[int], at: int) -> Mapping[int, int]:
        found = self._reader.ask([(topic, each) for each in partitions], at, _ASK_S)
        return {place[1]: offset for place, offset in found.items()}


def serve(config: ConnectionConfig, log_level: str) -> None:
    """Runs the service until SIGTERM or SIGINT."""
    telemetry.set_up("governor", level=log_level)
    service = GovernorService(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.run()

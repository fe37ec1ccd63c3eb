"""The process: a member of the group of timers, firing what is due until it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from pelton.errors import PeltonError
from pelton.protocol.topics import Control, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.probe import ClockProducer
from pelton.transport.kafka.ranges import RangeReader
from pelton.transport.kafka.shared import FencedWriter, SharedConsumer
from pelton_platform import telemetry
from pelton_platform.cron.timers import TimerService

MESSAGE_TIMEOUT_MS: Final = 4_000
"""What a frozen owner had not sent dies with its ownership: shorter than a session."""

POLL_S: Final = 0.1
"""How long a look at the topic waits; timers are taken a second before they are due."""

_PAUSE_S: Final = 1.0
_log = telemetry.get_logger(__name__)


class CronService:
    """Owns timers until `stop`.

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
                _log.warning("cron-begins-anew", reason=str(error))
                self._stopping.wait(_PAUSE_S)

    def _serve(self) -> None:
        config, topics = self._config, self._topics
        topic, group = topics.control(Control.TIMERS), topics.service_group("timers")
        with ExitStack() as stack:
            timed = ClockProducer(config, MESSAGE_TIMEOUT_MS)
            stack.callback(timed.close)
            ranges = RangeReader(config)
            stack.callback(ranges.close)
            writer = FencedWriter(config, group)
            stack.callback(writer.close)

            def remove(tombstones: Sequence[tuple[int, bytes, bytes | None]]) -> None:
                if tombstones:
                    writer.write(topic, tombstones, consumer.membership)

            timers = TimerService(topics, topic, ranges, timed.producer, remove, timed.clock.now_ms)
            consumer = SharedConsumer(config, topic, group, timers)
            stack.callback(consumer.close)
            _log.info("cron-serves", topic=topic)
            fired = 0
            while not self._stopping.is_set():
                consumer.poll(0.0 if fired else POLL_S)
                fired = timers.fire()
                timed.learn()


def serve(config: ConnectionConfig, log_level: str) -> None:
    """Runs the service until SIGTERM or SIGINT."""
    telemetry.set_up("cron", level=log_level)
    service = CronService(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.run()

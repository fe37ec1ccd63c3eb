"""What an instance of a plain program says on topics: that it lives, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pelton.core.spec import InstanceStatus, LogRecord
from pelton.errors import TransportError
from pelton.protocol import codec
from pelton.protocol.topics import Control, Topics
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.log import KafkaFailure
from pelton_platform import telemetry
from pelton_platform.deploy.output import Line
from pelton_platform.deploy.port import DRAINING, READY, STARTING
from pelton_platform.deploy.registry import RegistryWriter

_UNREACHED_S = 0.5
_log = telemetry.get_logger(__name__)


class Voice:
    """Writes the status and the lines of one program.

    Args:
        settings: The instance file.
        pid: Pid of the program.
        host: Name of this machine.
    """

    def __init__(self, settings: Mapping[str, Any], pid: int, host: str) -> None:
        telemetry.set_up("program", level=str(settings["log_level"]).upper())
        self._settings = settings
        self._pid = pid
        self._host = host
        config = ConnectionConfig(
            bootstrap_servers=settings["bootstrap_servers"],
            namespace=settings["namespace"],
            security=settings["security"],
            key_file=Path(settings["key_file"]),
        )
        self._clock = BrokerClock()
        self._producer = RecordProducer(config, clock=self._clock)
        self._writer = RegistryWriter(config.namespace, self._producer)
        self._logs = Topics(config.namespace).control(Control.LOGS)
        self._started_ms = self._clock.now_ms()
        self._lost = 0

    def beat(self, *, draining: bool, ready: bool, reason: str) -> None:
        """Write the status."""
        settings = self._settings
        self._writer.write_status(
            InstanceStatus(
                container=settings["container"],
                instance=settings["instance"],
                state=DRAINING if draining else READY if ready else STARTING,
                host=self._host,
                pid=self._pid,
                version=settings["version"],
                started_ms=self._started_ms,
                seen_ms=self._clock.now_ms(),
                reason=reason,
            )
        )

    def say(self, lines: Sequence[Line]) -> None:
        """Write lines; those that Kafka does not take are counted as dropped."""
        for line in lines:
            record = LogRecord(
                at_ms=self._clock.now_ms(),
                function="",
                container=self._settings["container"],
                instance=self._settings["instance"],
                pid=self._pid,
                call_id=None,
                attempt=0,
                source=line.source,
                text=line.text,
                dropped=line.dropped + self._lost,
            )
            self._lost = 0
            try:
                self._producer.send(
                    self._logs,
                    codec.encode_log(record),
                    key=str(self._settings["container"]).encode(),
                    on_report=self._reported,
                )
            except TransportError as error:
                self._lost += 1 + record.dropped
                _log.warning("lines-not-written", reason=str(error))

    def leave(self, timeout_s: float) -> None:
        """Write the tombstone of the status, and wait until everything was acknowledged.

        Where Kafka has acknowledged nothing yet it is not waited for: the program is to be started again.
        """
        self._writer.remove_status(self._settings["container"], self._settings["instance"])
        reached = self._clock.round_trip_ms is not None
        self._producer.close(timeout_s if reached else min(timeout_s, _UNREACHED_S))

    def _reported(self, failure: KafkaFailure | None, *_: int) -> None:
        if failure is not None:
            self._lost += 1

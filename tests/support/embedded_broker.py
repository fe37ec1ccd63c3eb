"""A broker for tests: the real embedded Apache Kafka, which can be killed, frozen and brought back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from pelton_platform import process
from pelton_platform.embedded import EmbeddedKafka, EmbeddedKafkaError, Installation, resolve, training
from pelton_platform.embedded.cache import file_lock
from support.freezing import freeze

QUICK_JAVA: Final = ("-XX:TieredStopAtLevel=1",)
"""Flags for brokers of tests: they live too briefly to earn what Java's second compiler costs."""


class Broker:
    """One embedded broker on one port, whatever happens to its process.

    Attributes:
        kafka: The embedded Kafka itself.
        installation: What it runs from.
    """

    def __init__(self, kafka: EmbeddedKafka, installation: Installation) -> None:
        self.kafka = kafka
        self.installation = installation

    @property
    def bootstrap_servers(self) -> str:
        """Address for clients, the same over every restart."""
        return self.kafka.bootstrap_servers

    @property
    def port(self) -> int:
        """Port for clients, the same over every restart."""
        return self.kafka.port

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self.kafka.log_path

    def kill(self) -> None:
        """End the process with SIGKILL and wait until it is gone; `restart` brings it back."""
        identity = self.kafka.identity
        process.send_signal(identity, signal.SIGKILL)
        assert process.wait_gone(identity, 10.0)

    def freeze(self) -> None:
        """Stop the process with SIGSTOP: connections stay open, nothing is answered from now on."""
        freeze(self.kafka.identity.pid)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        assert process.send_signal(self.kafka.identity, signal.SIGCONT)

    def restart(self, timeout: float = 60) -> None:
        """Start the broker again on the same port and data, after a clean stop if it still runs."""
        if self.kafka.is_running():
            self.thaw()
            process.terminate(self.kafka.identity, 15.0)
        self.kafka.start(timeout)


def installed() -> Installation:
    """Apache Kafka with its class-data archive; without it skip on a laptop and fail in CI.

    Brokers build the archive in the background, at the lowest priority, and give it up when they end. Those
    of tests end soon and leave nothing of the machine idle, so each would begin anew: it is built first.
    """
    try:
        installation = resolve()
        if not installation.archive.exists():
            with file_lock(installation.folder / "tests.lock", lambda: None):
                training.build(installation)
    except EmbeddedKafkaError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no embedded Apache Kafka here: {error}")
    return installation


@contextmanager
def running_broker(folder: Path, config: Mapping[str, str] | None = None) -> Iterator[Broker]:
    """Run a broker with its data in `folder`; without Apache Kafka skip on a laptop and fail in CI."""
    installation = installed()
    with EmbeddedKafka(folder, config=config, installation=installation, java_flags=QUICK_JAVA) as kafka:
        yield Broker(kafka, installation)

"""What the embedded Apache Kafka promises while it runs: durable, loopback only, back after any death."""

from __future__ import annotations

from pelton.transport.kafka.readiness import cluster_ready
from support.embedded_broker import Broker


def test_embedded_broker_answers(broker: Broker) -> None:
    """The session's broker answers a metadata request."""
    assert cluster_ready(broker.bootstrap_servers, 10.0)


def test_embedded_broker_survives_kill_freeze_and_restart(broker: Broker) -> None:
    """After SIGKILL, SIGSTOP and a clean restart it answers again at the same address."""
    address = broker.bootstrap_servers
    broker.kill()
    assert not broker.kafka.is_running()
    broker.restart()
    assert cluster_ready(address, 10.0)
    broker.freeze()
    assert not cluster_ready(address, 0.3)
    broker.thaw()
    assert cluster_ready(address, 10.0)
    pid = broker.kafka.pid
    broker.restart()
    assert broker.kafka.pid != pid
    assert broker.bootstrap_servers == address
    assert cluster_ready(address, 10.0)

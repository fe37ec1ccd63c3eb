"""Attempts that are due later: never before their time, and soon after it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.core.call import InputHeaders, InputTopic, Invocation
from pelton.core.spec import FunctionKind
from pelton.protocol.codec import encode_invocation
from pelton.protocol.headers import encode_input
from pelton.protocol.payload import encode_arguments
from support.embedded_broker import Broker
from support.worker_instance import Platform, new_call, platform_on

SOURCE = """
import time
def when():
    return time.time_ns() // 1_000_000
"""
LATE_MS = 1_000


@pytest.fixture
def platform(broker: Broker, tmp_path: Path) -> Iterator[Platform]:
    """A namespace of its own."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        yield platform


def test_coordinator_due_attempts_are_never_early_and_late_by_little(platform: Platform) -> None:
    """Second attempts that wait among the retries begin in the second after they are due, not before."""
    platform.deploy(SOURCE, {"when": FunctionKind.SYNC})
    platform.start_ready()
    platform.wait("when", platform.call("when"))  # its executor runs
    topic = platform.topics.input("when", InputTopic.RETRIES)
    now = time.time_ns() // 1_000_000
    due = {}
    for wait_ms in (3_000, 500, 1_500, 2_000, 1_000):  # not in the order of the log
        call_id, at = new_call()
        due[call_id] = now + wait_ms
        headers = InputHeaders(call_id, "when", attempt=2, due_ms=due[call_id])
        body = encode_invocation(Invocation(call_id, "when", encode_arguments((), {}), submitted_ms=at))
        platform.send(topic, body, call_id, partition=0, headers=encode_input(headers))
    found = platform.wait_all("when", list(due))
    late = [found[call_id].value - at for call_id, at in due.items()]
    # The clock of the broker is this machine's, and known to within a few milliseconds.
    assert min(late) >= -20
    assert max(late) <= LATE_MS

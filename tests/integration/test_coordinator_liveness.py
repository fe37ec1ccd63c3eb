"""Liveness follows consuming: the deaf go, and those whose user code takes its time stay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.core.spec import FunctionKind
from pelton_platform.coordinator.instance import EXIT_DEAF
from support.embedded_broker import Broker
from support.odd_instances import DEAF_AFTER_S, MAX_POLL_MS
from support.worker_instance import Platform, platform_on, wait_until

SOURCE = '''
import ctypes, os, time
def note(text):
    journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, f"{text} {os.environ['INSTANCE']}\\n".encode())
    os.close(journal)
def work(label):
    note(f"begin {label}")
    return label
def hold(label, seconds):
    """Holds the interpreter lock, so that no thread of its process gets a turn."""
    note(f"begin {label}")
    ctypes.PyDLL(None).sleep(seconds)
    return label
'''


@pytest.fixture
def platform(broker: Broker, tmp_path: Path) -> Iterator[Platform]:
    """A namespace of its own."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        yield platform


def test_coordinator_liveness_a_deaf_instance_says_so_and_ends(platform: Platform, tmp_path: Path) -> None:
    """An instance that runs but polls no more tells the reason, ends with its code, and others take over."""
    platform.deploy(SOURCE, {"work": FunctionKind.SYNC})
    flag = tmp_path / "deaf"
    platform.program = ["support.odd_instances", "deaf", str(flag)]
    deaf = platform.start_ready()
    assert platform.wait("work", platform.call("work", "before")).value == "before"
    flag.touch()
    wait_until(lambda: flag.read_text() != "", 10, "the poll thread stands still")
    ids = platform.submit("work", [(f"w{number}",) for number in range(8)])
    began = time.monotonic()
    assert deaf.child.wait(DEAF_AFTER_S + 5) == EXIT_DEAF
    assert time.monotonic() - began > DEAF_AFTER_S / 2
    status = platform.status(deaf)
    assert status is not None
    assert status.state == "failed"
    assert "work has not polled" in status.reason
    platform.program = ["pelton_platform.coordinator"]
    platform.start()
    found = platform.wait_all("work", ids)
    assert [found[each].value for each in ids] == [f"w{number}" for number in range(8)]
    assert len(platform.ran("begin w")) == 8


def test_coordinator_liveness_long_calls_keep_the_group_stable(platform: Platform) -> None:
    """User code that holds its interpreter for longer than polls may be apart costs no membership."""
    platform.deploy(SOURCE, {"hold": FunctionKind.SYNC}, slots=2)
    platform.program = ["support.odd_instances", "impatient"]
    worker = platform.start_ready()
    owners = platform.owners("hold")
    call_id = platform.call("hold", "long", MAX_POLL_MS // 1000 + 2)
    assert platform.wait("hold", call_id).value == "long"
    assert platform.owners("hold") == owners
    assert len(platform.ran("begin long")) == 1
    assert worker.counters.get("partitions_lost", 0) == 0
    wait_until(lambda: platform.all_done("hold"))

"""The ticket pipeline under load: scaled, killed and redeployed while 200 tickets come in a second."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from support.interpreters import bare_environment
from support.local_platform import LocalPlatform, local_platform, wait_for

pytestmark = pytest.mark.timeout(500)

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
TOPIC, GROUP, CONSUMER, WORKERS = "support-tickets", "ticket-consumer", "ticket-consumer", "ticket-workers"
RATE, PARTITIONS = 200, 6


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """A platform with logins, and the example in a folder that may be changed."""
    folder = tmp_path_factory.mktemp("tickets")
    settings = {
        "TICKETS_DATABASE": str(folder / "tickets.sqlite3"),
        "OMP_NUM_THREADS": "1",
        "PELTON_COOL_DOWN": "2s",
    }
    with local_platform(folder, settings, up=False) as running:
        shutil.copytree(EXAMPLES / "tickets", running.work / "tickets")
        running.run("up", "--detach", "--sasl")
        yield running


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports what the demo counts with."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "tickets_demo"))
    monkeypatch.syspath_prepend(str(EXAMPLES / "tickets"))
    return importlib.import_module


class Feed(threading.Thread):
    """Sends tickets at an even rate until it is told to stop.

    Attributes:
        sent: Ids of those that Kafka has acknowledged.
    """

    def __init__(self, servers: str, tickets: list[Any]) -> None:
        super().__init__(name="feed", daemon=True)
        self.sent: list[str] = []
        self._tickets = tickets
        self._producer = Producer({"bootstrap.servers": servers, "acks": "all", "linger.ms": 5})
        self._over = threading.Event()

    def run(self) -> None:
        """Sends one ticket after the other, each at its time."""
        began = time.monotonic()
        for number, ticket in enumerate(self._tickets):
            body = json.dumps({"id": ticket.id, "text": ticket.text}).encode()

            def report(error: object, _: object, ticket_id: str = ticket.id) -> None:
                assert error is None, error
                self.sent.append(ticket_id)

            self._producer.produce(TOPIC, body, key=ticket.id.encode(), on_delivery=report)
            self._producer.poll(0)
            if self._over.wait(max(0.0, began + number / RATE - time.monotonic())):
                break

    def stop(self) -> list[str]:
        """End it; returns what was sent."""
        self._over.set()
        self.join()
        assert self._producer.flush(30) == 0
        return self.sent


def by_script(platform: LocalPlatform) -> subprocess.CompletedProcess[str]:
    """Deploys the consumer as a script."""
    return subprocess.run(
        [sys.executable, "deploy_consumer.py"],
        cwd=platform.work / "tickets",
        env=bare_environment() | {"PELTON_HOME": str(platform.home.root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )


def kill_one(platform: LocalPlatform, container: str) -> str:
    """SIGKILL for the first process of an instance; returns which."""
    one = wait_for(lambda: platform.ready(container), f"an instance of {container}", 60, platform.logs)[0]
    platform.kill(one["pid"], signal.SIGKILL)
    return str(one["instance"])


def versions(platform: LocalPlatform, container: str) -> set[int]:
    """Versions of the instances that are ready."""
    return {one["version"] for one in platform.ready(container)}


def test_nothing_is_lost_and_nothing_fails(platform: LocalPlatform, parts: Any) -> None:
    """Deployed by script and by command, scaled, killed, both halves redeployed: all of it is done."""
    servers = platform.state().bootstrap_servers
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result(15)
    platform.run("deploy", "tickets/worker.py", timeout=200)
    done = by_script(platform)
    assert done.stdout.strip() == "running", done.stderr
    assert len(platform.ready(CONSUMER)) == 2
    inside = platform.run("exec", CONSUMER, "--", "sh", "-c", "ls /app; echo $KAFKA_USERNAME $TICKETS_GROUP")
    assert inside.stdout.split()[0] == "consumer.py"
    assert inside.stdout.split()[-1] == GROUP
    feed = Feed(servers, parts("source").make_tickets(RATE * 120))
    feed.start()
    database = parts("database").Database(None, platform.env["TICKETS_DATABASE"])
    ledger = parts("ledger").Ledger(database)

    def reached(count: int) -> None:
        wait_for(lambda: ledger.labelled() >= count, f"{count} labels", 120, platform.logs)

    reached(200)
    platform.run("scale", CONSUMER, "4")
    assert len(platform.ready(CONSUMER)) == 4
    reached(500)
    killed = {kill_one(platform, CONSUMER), kill_one(platform, WORKERS)}
    reached(800)
    # Another environment is another version of the consumer, other code one of the workers.
    platform.run("deploy", "tickets/deploy_consumer.py", env={"TICKETS_BATCH": "30"}, timeout=200)
    with (platform.work / "tickets" / "model.py").open("a") as model:
        model.write("\nREVISION = 2\n")
    platform.run("deploy", "tickets/worker.py", timeout=200)
    reached(1_300)
    wait_for(lambda: versions(platform, CONSUMER) == {2}, "the new consumers alone", 60, platform.logs)
    wait_for(lambda: versions(platform, WORKERS) == {2}, "the new workers alone", 60, platform.logs)
    sent = feed.stop()
    assert len(sent) >= 1_300
    reached(len(sent))
    rows = parts("ledger").commits_and_ends
    wait_for(
        lambda: all(committed == end for _, committed, end in rows(servers, GROUP, TOPIC)),
        "the commit of all",
        60,
        lambda: str(rows(servers, GROUP, TOPIC)),
    )
    outcomes = parts("ledger").ended_calls(
        servers, f"{platform.state().namespace}.fn.classify-ticket.results"
    )
    assert set(outcomes.values()) == {"ok"}, "no call has failed"
    assert set(ledger.labels()) == set(sent), "no ticket is lost"
    assert not killed & {one["instance"] for name in (CONSUMER, WORKERS) for one in platform.instances(name)}
    assert os.path.exists(platform.env["TICKETS_DATABASE"])

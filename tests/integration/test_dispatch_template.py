"""The dispatch template as a program on a real broker: bad records, deaths, rebalances."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.core.offsets import decode_metadata
from pelton.core.spec import FunctionKind, ParameterSpec
from pelton.protocol.topics import TopicPlan
from pelton.transport.log import LogRecord
from support.embedded_broker import Broker
from support.worker_instance import Platform, platform_on, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ANY = (ParameterSpec("args", "VAR_POSITIONAL", False),)

SOURCE = """
import json, os, time

def note(text):
    with open(os.environ["JOURNAL"], "a") as journal:
        journal.write(text + "\\n")

def handle(value):
    if value is None:
        note("tombstone")
        return
    if value.get("slow"):
        gate = value["slow"]
        while not os.path.exists(gate):
            time.sleep(0.02)
    time.sleep(value.get("seconds", 0))
    note(f"handled {value['number']}")
    if value.get("bad"):
        raise ValueError(f"bad {value['number']}")

def handle_all(values):
    note("batch " + json.dumps([value["number"] for value in values]))
    for value in values:
        if value.get("bad"):
            raise ValueError(f"bad {value['number']}")
"""


@pytest.fixture(scope="module")
def platform(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One instance that serves what the consumers call."""
    with platform_on(broker.bootstrap_servers, tmp_path_factory.mktemp("dispatch")) as platform:
        functions = {"handle": FunctionKind.SYNC, "handle_all": FunctionKind.SYNC}
        platform.deploy(SOURCE, functions, slots=32, partitions=4, parameters=ANY)
        platform.start_ready()
        yield platform


class Feed:
    """A topic, and the consumers of it.

    Attributes:
        topic: its name.
        group: of the consumers.
        processes: consumers that were started.
    """

    def __init__(self, platform: Platform, folder: Path, partitions: int = 3) -> None:
        self.platform = platform
        self.folder = folder
        self.partitions = partitions
        self.topic = f"feed-{uuid.uuid4().hex[:8]}"
        self.group = f"{self.topic}-group"
        self.processes: list[subprocess.Popen[bytes]] = []
        platform.admin.create_topics([TopicPlan(self.topic, partitions, 1)])

    def start(self, function: str = "handle", **settings: str) -> subprocess.Popen[bytes]:
        """Starts a consumer."""
        log = (self.folder / f"consumer-{len(self.processes)}.log").open("wb")
        env = {
            **os.environ,
            "PELTON_BOOTSTRAP_SERVERS": self.platform.config.bootstrap_servers,
            "PELTON_NAMESPACE": self.platform.namespace,
            "TOPIC": self.topic,
            "FUNCTION": function,
            "GROUP": self.group,
            "RETRY_PAUSE": "0.1",
            **settings,
        }
        command = [sys.executable, "-m", "pelton_templates.dispatch"]
        child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        self.processes.append(child)
        return child

    def send(self, value: bytes | None, partition: int, key: bytes = b"k") -> tuple[int, int]:
        """Appends a record."""
        headers = [("trace", b"t1")]
        return self.platform.send(self.topic, value, key, partition=partition, headers=headers)

    def numbers(self, count: int, start: int = 0, **fields: object) -> list[int]:
        """Appends so many good records, round the partitions."""
        for number in range(start, start + count):
            self.send(json.dumps({"number": number, **fields}).encode(), number % self.partitions)
        return list(range(start, start + count))

    def handled(self) -> list[int]:
        """Numbers in the order in which they were handled."""
        return [int(line.split()[1]) for line in self.platform.ran("handled ")]

    def ends(self) -> dict[tuple[str, int], int]:
        """Ends of the partitions."""
        return self.platform.admin.ends([(self.topic, number) for number in range(self.partitions)])

    def committed(self) -> dict[tuple[str, int], tuple[int, str]]:
        """What the group has committed."""
        places = [(self.topic, number) for number in range(self.partitions)]
        return self.platform.admin.committed(self.group, places)

    def all_committed(self) -> bool:
        """Whether every record is committed as done."""
        ends, committed = self.ends(), self.committed()
        return all(committed.get(place, (0, ""))[0] == end for place, end in ends.items() if end)

    def dead(self) -> list[LogRecord]:
        """The records in the dead-letter topic."""
        name = f"{self.topic}.dead-letters"
        return self.platform.read(name) if name in self.platform.admin.topics() else []

    def said(self) -> str:
        """What the consumers wrote."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("consumer-*.log")))

    def close(self) -> None:
        """Ends all consumers."""
        for child in self.processes:
            if child.poll() is None:
                child.kill()
            child.wait()


@pytest.fixture
def feed(platform: Platform, tmp_path: Path) -> Iterator[Feed]:
    """A topic of its own, and an empty journal."""
    platform.journal.write_text("")
    made = Feed(platform, tmp_path)
    try:
        yield made
    except BaseException:
        print(made.said())
        raise
    finally:
        made.close()


def stop(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM; it ends by itself, in good order."""
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 0


def test_dispatch_handles_good_bad_and_unreadable_records(feed: Feed) -> None:
    """Each good one once; bad ones are tried again, then dead letters, as are bytes that are no JSON."""
    feed.numbers(30)
    feed.send(json.dumps({"number": 1000, "bad": True}).encode(), 0, b"the key")
    feed.send(b"\x80\x81 no text", 1)
    feed.send(None, 2)
    feed.numbers(30, 30)
    child = feed.start(RETRIES="2")
    wait_until(feed.all_committed, 90, "all is committed")
    stop(child)
    handled = feed.handled()
    assert sorted(number for number in handled if number < 1000) == list(range(60))
    assert handled.count(1000) == 3
    assert not feed.platform.ran("tombstone")
    dead = {dict(record.headers)["error-type"]: record for record in feed.dead()}
    assert set(dead) == {b"ValueError", b"UnicodeDecodeError"}
    bad = dict(dead[b"ValueError"].headers)
    assert (dead[b"ValueError"].key, bad["trace"], bad["attempts"]) == (b"the key", b"t1", b"3")
    assert (bad["origin-topic"], bad["origin-partition"]) == (feed.topic.encode(), b"0")
    assert bad["origin-offset"] == b"10"
    assert b"bad 1000" in (bad["error-message"] or b"")
    assert dead[b"UnicodeDecodeError"].value == b"\x80\x81 no text"
    assert "given up 2" in feed.said()


def test_dispatch_a_tombstone_can_be_a_call(feed: Feed) -> None:
    """With TOMBSTONES=call the function gets None."""
    feed.send(None, 0)
    feed.start(TOMBSTONES="call")
    wait_until(lambda: bool(feed.platform.ran("tombstone")), 60, "the tombstone is handled")


def test_dispatch_a_slow_call_holds_up_no_other_and_no_commit_passes_it(feed: Feed, tmp_path: Path) -> None:
    """Those behind it end; the committed offset stays at it and tells what is done behind it."""
    gate = tmp_path / "open"
    feed.send(json.dumps({"number": 0, "slow": str(gate)}).encode(), 0)
    for number in range(1, 20):
        feed.send(json.dumps({"number": number}).encode(), 0)
    child = feed.start()
    wait_until(lambda: len(feed.handled()) == 19, 60, "the others are handled")

    def behind() -> bool:
        offset, text = feed.committed().get((feed.topic, 0), (-1, ""))
        meta = decode_metadata(text)
        return offset == 0 and meta is not None and meta.finished == ((1, 19),)

    wait_until(behind, 30, "what is done behind it is committed")
    # A restart repeats the one that was open, and none of those that were done.
    child.kill()
    child.wait()
    gate.touch()
    again = feed.start()
    wait_until(feed.all_committed, 90, "all is committed")
    stop(again)
    handled = feed.handled()
    assert sorted(set(handled)) == list(range(20))
    assert [number for number in handled if handled.count(number) > 1] in ([], [0, 0])


def test_dispatch_partial_batches_go_by_their_age(feed: Feed) -> None:
    """Three values of a batch of twenty are sent together soon; a bad one takes no neighbour along."""
    for number in range(3):
        feed.send(json.dumps({"number": number, "bad": number == 1}).encode(), 0)
    child = feed.start("handle_all", BATCH="20", BATCH_AGE="1", RETRIES="1")
    wait_until(feed.all_committed, 90, "all is committed")
    stop(child)
    batches = [json.loads(line.removeprefix("batch ")) for line in feed.platform.ran("batch ")]
    assert batches[0] == [0, 1, 2]
    assert sorted(batches[1:]) == [[0], [1], [2]]
    assert [dict(record.headers)["origin-offset"] for record in feed.dead()] == [b"1"]


def test_dispatch_survives_kills_and_rebalances(feed: Feed) -> None:
    """Two consumers, one killed, one asked to stop, one more: every record is handled, commits never lie."""
    numbers = feed.numbers(600, seconds=0.02)
    first, second = feed.start(MAX_OPEN="40"), feed.start(MAX_OPEN="40")
    wait_until(lambda: len(feed.handled()) >= 100, 60, "some are handled")
    first.kill()
    first.wait()
    handled = set(feed.handled())
    for (_, partition), (offset, text) in feed.committed().items():
        meta = decode_metadata(text)
        done = set(range(max(0, offset)))
        for begin, length in meta.finished if meta is not None else ():
            done |= set(range(begin, begin + length))
        # Offset n of partition p holds number n * partitions + p; handling is noted before its end.
        assert {at * feed.partitions + partition for at in done} <= handled
    third = feed.start(MAX_OPEN="40")
    wait_until(lambda: len(set(feed.handled())) >= 300, 90, "half is handled")
    stop(second)
    wait_until(feed.all_committed, 90, "all is committed")
    stop(third)
    assert sorted(set(feed.handled())) == numbers
    # What was open when one was killed, and what had ended since its last commit, a second before.
    assert len(feed.handled()) - len(numbers) < 300
    assert not feed.dead()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"TOPIC": ""}, "TOPIC is not set"),
        ({"BATCH": "0"}, "BATCH='0'"),
        ({"RETRIES": "many"}, "RETRIES='many'"),
        ({"DECODE": "pickle"}, "DECODE='pickle': it is one of json, text, bytes"),
        ({"TOPIC": "not-there"}, "topic 'not-there' is not there"),
    ],
)
def test_dispatch_refuses_wrong_settings_at_once(feed: Feed, settings: dict[str, str], said: str) -> None:
    """Exit code 1 with the name of the setting, before anything is consumed."""
    assert feed.start(**settings).wait(60) == 1
    assert said in feed.said()

"""Calls through a real instance: values, streams, failures, output, dead letters, and what cannot be read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.core.call import InputHeaders, InputPartition, InputTopic, Invocation, ResultKind
from pelton.core.spec import FunctionKind
from pelton.protocol.codec import encode_invocation
from pelton.protocol.headers import encode_input
from pelton.protocol.payload import encode_arguments
from pelton.protocol.topics import TopicPlan
from support.embedded_broker import Broker
from support.worker_instance import Platform, new_call, platform_on, wait_until

pytestmark = pytest.mark.integration

SOURCE = """
import os, time, logging
def note(text):
    with open(os.environ["JOURNAL"], "a") as journal:
        journal.write(text + "\\n")
def add(a, b):
    return a + b
async def later(x):
    import asyncio
    await asyncio.sleep(0.01)
    return x
def count(n):
    for number in range(n):
        yield number
async def acount(n):
    for number in range(n):
        yield number
def fail(message):
    raise ValueError(message)
def talk(x):
    print("printed", x)
    logging.getLogger("mine").warning("logged %s", x)
    return x
def sleepy(seconds):
    note("slept")
    time.sleep(seconds)
"""


@pytest.fixture
def platform(broker: Broker, tmp_path: Path) -> Iterator[Platform]:
    """A namespace of its own."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        yield platform


def test_coordinator_calls_end_with_their_values_and_are_committed(platform: Platform) -> None:
    """Sync and async calls end with values, also falsy ones; then their records are committed as finished."""
    platform.deploy(SOURCE, {"add": FunctionKind.SYNC, "later": FunctionKind.ASYNC})
    worker = platform.start_ready()
    sums = platform.submit("add", [(number, 1) for number in range(50)])
    values: list[object] = [None, 0, "", [], False, {"a": (1, 2)}]
    given = platform.submit("later", [(value,) for value in values])
    found = platform.wait_all("add", sums)
    assert [found[each].value for each in sums] == list(range(1, 51))
    found = platform.wait_all("later", given)
    assert [found[each].value for each in given] == values
    outcome = found[given[0]].outcome
    assert outcome is not None
    assert outcome.worker == worker.name
    assert outcome.attempts == 1
    wait_until(lambda: platform.all_done("add") and platform.all_done("later"))
    status = platform.status(worker)
    assert status is not None
    assert (status.state, status.slots, status.reason) == ("ready", 8, "")
    assert set(status.functions) == {"add", "later"}
    assert len(status.executors) == 2


def test_coordinator_streams_are_exact_also_beyond_their_credit(platform: Platform) -> None:
    """Chunks come once and in order: of empty streams, of one item, of more than a run's credit."""
    platform.deploy(SOURCE, {"count": FunctionKind.GENERATOR, "acount": FunctionKind.ASYNC_GENERATOR})
    platform.start_ready()
    for function in ("count", "acount"):
        for length in (0, 1, 2000):
            history = platform.wait(function, platform.call(function, length))
            assert history.chunks == list(range(length))
            assert history.outcome is not None
            assert history.outcome.first == length


def test_coordinator_failures_of_user_code_are_outcomes_and_dead_letters(platform: Platform) -> None:
    """A user exception is terminal at once: outcome with type and traceback, and a dead letter before it."""
    platform.deploy(SOURCE, {"fail": FunctionKind.SYNC})
    platform.start_ready()
    call_id = platform.call("fail", "no such luck")
    failure = platform.wait("fail", call_id).outcome
    assert failure is not None
    assert failure.failure is not None
    assert failure.failure.message == "no such luck"
    assert failure.failure.type.endswith("ValueError")
    assert "in fail" in failure.failure.traceback
    assert failure.attempts == 1
    (letter,) = platform.dead_letters("fail")
    assert letter.call_id == call_id
    assert letter.reason.message == "no such luck"
    assert letter.value is not None


def test_coordinator_output_of_user_code_bears_call_and_attempt(platform: Platform) -> None:
    """What user code prints and logs is found in the log topic under its call."""
    platform.deploy(SOURCE, {"talk": FunctionKind.SYNC})
    worker = platform.start_ready()
    call_id = platform.call("talk", "hello")
    platform.wait("talk", call_id)
    wait_until(lambda: len([line for line in platform.lines() if line.call_id == call_id]) >= 2)
    lines = {line.source: line for line in platform.lines() if line.call_id == call_id}
    assert lines["stdout"].text == "printed hello"
    assert (lines["log"].text, lines["log"].level, lines["log"].logger) == ("logged hello", "WARNING", "mine")
    assert {line.instance for line in lines.values()} == {worker.name}
    assert {line.attempt for line in lines.values()} == {1}


def test_coordinator_poison_becomes_a_dead_letter_with_its_origin_and_the_partition_goes_on(
    platform: Platform,
) -> None:
    """Every kind of unreadable record is a dead letter naming topic, partition and offset; nothing stalls."""
    platform.deploy(SOURCE, {"add": FunctionKind.SYNC}, partitions=1)
    topic = platform.topics.invocations("add")
    good = encode_invocation(Invocation(new_call()[0], "add", encode_arguments((1, 2), {})))
    bodies: list[tuple[bytes | None, bool, str]] = [
        (None, True, "add"),  # null value
        (good, False, "add"),  # null key
        (b"\xc3\x01" + bytes(8) + good[10:], True, "add"),  # unknown fingerprint
        (good[:5], True, "add"),  # cut off before the fingerprint ends
        (good[:14], True, "add"),  # cut off in the body
        (b"", True, "add"),
        (good, True, "elsewhere"),  # for another function
        (good, True, "add"),  # call id of the body differs from the header
        (encode_invocation(Invocation(new_call()[0], "other", b"")), True, "add"),
    ]
    offsets = []
    ids = []
    for body, keyed, function in bodies:
        call_id, _ = new_call()
        ids.append(call_id)
        headers = encode_input(InputHeaders(call_id, function))
        key = call_id if keyed else None
        offsets.append(platform.send(topic, body, key, partition=0, headers=headers)[1])
    nameless = [("id", new_call()[0]), ("fn", b"\xff\xfe")]
    offsets.append(platform.send(topic, good, b"key", partition=0, headers=nameless)[1])
    offsets.append(platform.send(topic, good, b"key", partition=0)[1])
    platform.start_ready()
    assert platform.wait("add", platform.call("add", 2, 3)).value == 5
    wait_until(lambda: platform.all_done("add"))
    letters = platform.dead_letters("add")
    assert sorted(letter.offset for letter in letters) == offsets
    assert {(letter.topic, letter.partition) for letter in letters} == {(topic, 0)}
    assert all(letter.reason.message for letter in letters)
    for call_id in ids:  # whoever waits for such a call hears of it
        outcome = platform.history("add", call_id).outcome
        assert outcome is not None
        assert outcome.failure is not None
        assert outcome.failure.code == "INVALID_ARGUMENT"


def test_coordinator_a_record_of_ten_megabytes_is_a_dead_letter(platform: Platform) -> None:
    """A record far above every limit, in a topic that took it, is quoted in part and passed."""
    platform.deploy(SOURCE, {"add": FunctionKind.SYNC}, partitions=1)
    topic = platform.topics.invocations("add")
    platform.admin.delete_topics([topic])
    wait_until(lambda: topic not in platform.admin.topics())
    platform.admin.create_topics([TopicPlan(topic, 1, 1, {"max.message.bytes": "20000000"})])
    call_id, _ = new_call()
    body = encode_invocation(Invocation(call_id, "add", encode_arguments((1, 2), {}))) + bytes(10_000_000)
    send_large(platform, topic, body, call_id)
    platform.start_ready()
    assert platform.wait("add", platform.call("add", 2, 3)).value == 5
    wait_until(lambda: len(platform.dead_letters("add")) == 1)
    (letter,) = platform.dead_letters("add")
    assert letter.truncated
    assert letter.value is not None
    assert len(letter.value) == 900 * 1024
    assert "bytes" in letter.reason.message


def send_large(platform: Platform, topic: str, body: bytes, call_id: bytes) -> None:
    """Appends a record larger than the SDK's producer takes."""
    from confluent_kafka import Producer

    producer = Producer(
        {"bootstrap.servers": platform.config.bootstrap_servers, "message.max.bytes": 20_000_000}
    )
    headers: list[tuple[str, str | bytes | None]] = [*encode_input(InputHeaders(call_id, "add"))]
    producer.produce(topic, body, call_id, 0, headers=headers)
    assert producer.flush(20) == 0


def test_coordinator_timeouts_end_the_attempt_and_replace_an_executor_that_does_not_yield(
    platform: Platform,
) -> None:
    """A sync call beyond its timeout ends with DEADLINE_EXCEEDED; a new executor runs later calls."""
    platform.deploy(SOURCE, {"sleepy": FunctionKind.SYNC}, slots=2, timeout_ms=500)
    worker = platform.start_ready()
    status = platform.status(worker)
    assert status is not None
    pids = set(status.executors)
    began = time.monotonic()
    outcome = platform.wait("sleepy", platform.call("sleepy", 60)).outcome
    assert time.monotonic() - began < 5
    assert outcome is not None
    assert outcome.failure is not None
    assert outcome.failure.code == "DEADLINE_EXCEEDED"
    assert platform.wait("sleepy", platform.call("sleepy", 0)).value is None

    def replaced() -> bool:
        after = platform.status(worker)
        return after is not None and bool(after.executors) and not pids & set(after.executors)

    wait_until(replaced)
    assert platform.wait("sleepy", platform.call("sleepy", 0)).value is None


def test_coordinator_missing_dead_letter_topic_loses_nothing_and_does_not_spin(platform: Platform) -> None:
    """Without its dead-letter topic a failed call gets no outcome and no commit, until the topic is back."""
    platform.deploy(SOURCE, {"fail": FunctionKind.SYNC}, partitions=1)
    topic = platform.topics.dead_letters("fail")
    platform.admin.delete_topics([topic])
    wait_until(lambda: topic not in platform.admin.topics())
    worker = platform.start_ready()
    call_id = platform.call("fail", "unlucky")
    wait_until(lambda: worker.counters.get("expiries", 0) >= 2, 40)
    assert platform.history("fail", call_id).outcome is None
    first, seen = time.monotonic(), worker.counters["expiries"]
    time.sleep(2.0)
    assert worker.counters["expiries"] - seen <= 6 * (time.monotonic() - first)
    committed = platform.committed("fail")[InputPartition(InputTopic.INVOCATIONS, 0)]
    assert committed[0] == 0
    platform.admin.create_topics([TopicPlan(topic, 1, 1)])
    assert platform.wait("fail", call_id, 40).outcome is not None
    assert [letter.call_id for letter in platform.dead_letters("fail")] == [call_id]


def test_coordinator_broken_user_code_makes_calls_wait_and_says_why(platform: Platform) -> None:
    """A function that cannot be loaded leaves its calls waiting, and the status tells the reason."""
    platform.deploy("raise RuntimeError('no model here')", {"add": FunctionKind.SYNC})
    worker = platform.start()
    call_id = platform.call("add", 1, 2)

    def told() -> bool:
        status = platform.status(worker)
        return status is not None and status.state == "failed" and "no model here" in status.reason

    wait_until(told)
    assert platform.history("add", call_id).results == []
    bundle = platform.folder / "bundles" / platform.specs["add"].bundle / "worker.py"
    bundle.write_text("def add(a, b):\n    return a + b\n")
    assert platform.wait("add", call_id).value == 3
    platform.wait_ready(worker)


def test_coordinator_committed_offset_below_the_log_stops_the_partition_with_an_alarm(
    platform: Platform,
) -> None:
    """Records that were cut though unfinished are never skipped in silence: intake of the partition stops."""
    platform.deploy(SOURCE, {"add": FunctionKind.SYNC}, partitions=2)
    for _ in range(3):
        platform.call("add", 1, 1, partition=0)
    platform.admin.delete_records({(platform.topics.invocations("add"), 0): 2})
    worker = platform.start()
    assert platform.wait("add", platform.call("add", 2, 3, partition=1)).value == 5

    def told() -> bool:
        status = platform.status(worker)
        return status is not None and "outside of the log" in status.reason

    wait_until(told)
    assert worker.counters["alarms"] == 1
    assert platform.committed("add")[InputPartition(InputTopic.INVOCATIONS, 0)][0] == 0
    assert worker.end() == 0


def test_coordinator_deletes_finished_records_when_it_leaves(platform: Platform) -> None:
    """What is committed as finished is deleted from the log on leaving; waiting calls stay."""
    platform.deploy(SOURCE, {"add": FunctionKind.SYNC}, partitions=1)
    worker = platform.start_ready()
    platform.wait_all("add", platform.submit("add", [(1, 1)] * 10))
    wait_until(lambda: platform.all_done("add"))
    assert worker.end() == 0
    place = (platform.topics.invocations("add"), 0)
    assert platform.admin.watermarks([place])[place] == (10, 10)
    kinds = {result.kind for history in platform.outcomes("add").values() for result in history.results}
    assert kinds == {ResultKind.OUTCOME}

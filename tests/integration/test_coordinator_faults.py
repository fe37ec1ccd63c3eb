"""What an instance survives: killed executors and instances, freezes, rebalances, drains, endless records."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.core.call import InputPartition, InputTopic
from pelton.core.spec import FunctionKind
from pelton_platform import process
from support.embedded_broker import Broker
from support.worker_instance import Platform, Worker, platform_on, wait_until

pytestmark = pytest.mark.integration

SOURCE = '''
import os, signal, time
def note(text):
    journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, f"{text} {os.environ['INSTANCE']} {os.getpid()}\\n".encode())
    os.close(journal)
def work(label, seconds=0.0):
    """Below 0 seconds it works until it is let go."""
    note(f"begin {label}")
    while seconds < 0 and not os.path.exists(os.environ["JOURNAL"] + ".go"):
        time.sleep(0.01)
    time.sleep(max(0.0, seconds))
    note(f"end {label}")
    return label
def kill(label, times):
    """Kills its executor the first so many times it runs."""
    note(f"begin {label}")
    with open(os.environ["JOURNAL"]) as journal:
        if sum(line.startswith(f"begin {label} ") for line in journal) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
    return label
def stuck(label, seconds):
    """Holds the interpreter and does not hear signals."""
    import ctypes
    note(f"begin {label}")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    ctypes.PyDLL(None).sleep(int(seconds))
    return label
def feed(label, count, pause):
    note(f"begin {label}")
    for number in range(count):
        time.sleep(pause)
        yield number
'''


@pytest.fixture
def platform(broker: Broker, tmp_path: Path) -> Iterator[Platform]:
    """A namespace of its own."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        yield platform


def began(platform: Platform, label: str) -> int:
    return len(platform.ran(f"begin {label} "))


def let_go(platform: Platform) -> None:
    """Calls that work below 0 seconds end now."""
    platform.journal.with_name(platform.journal.name + ".go").touch()


def executors(platform: Platform, worker: Worker) -> list[int]:
    status = platform.status(worker)
    assert status is not None
    return list(status.executors)


def test_coordinator_a_killed_executor_costs_an_attempt_only_when_the_call_was_alone(
    platform: Platform,
) -> None:
    """A killer uses its attempts up and is given up; calls in other executors are not touched."""
    platform.deploy(SOURCE, {"kill": FunctionKind.SYNC, "work": FunctionKind.SYNC}, slots=4)
    worker = platform.start_ready()
    once = platform.call("kill", "once", 1)
    assert platform.wait("kill", once).value == "once"
    for_ever = platform.call("kill", "ever", 1000)
    others = platform.submit("work", [(f"w{number}", 0.2) for number in range(8)])
    given_up = platform.wait("kill", for_ever, 60).outcome
    assert given_up is not None
    assert given_up.failure is not None
    assert given_up.failure.code == "UNAVAILABLE"
    assert given_up.attempts == 3
    assert began(platform, "ever") == 3
    assert [letter.call_id for letter in platform.dead_letters("kill")] == [for_ever]
    found = platform.wait_all("work", others)
    assert all(found[each].value for each in others)
    assert len(platform.ran("begin w")) == 8  # another function's executor is not touched
    wait_until(lambda: worker.counters.get("executors_lost", 0) == 4)


def test_coordinator_an_executor_killed_from_outside_runs_its_calls_again(platform: Platform) -> None:
    """Several calls in a killed executor are deliveries, not attempts: all run again, isolated, and end."""
    platform.deploy(SOURCE, {"work": FunctionKind.SYNC}, slots=4)
    worker = platform.start_ready()
    ids = platform.submit("work", [(f"w{number}", 1.0) for number in range(4)])
    wait_until(lambda: len(platform.ran("begin w")) == 4)
    (pid,) = executors(platform, worker)
    os.kill(pid, signal.SIGKILL)
    found = platform.wait_all("work", ids)
    assert [found[each].value for each in ids] == ["w0", "w1", "w2", "w3"]
    assert len(platform.ran("begin w")) == 8
    assert {history.outcome.attempts for history in found.values() if history.outcome} == {1}
    assert worker.child.poll() is None


def test_coordinator_user_code_that_holds_the_interpreter_harms_nobody_else(platform: Platform) -> None:
    """A call that holds the interpreter and hears no signal is ended at its timeout; others go on."""
    platform.deploy(SOURCE, {"stuck": FunctionKind.SYNC, "work": FunctionKind.SYNC}, slots=2, timeout_ms=1500)
    platform.start_ready()
    call_id = platform.call("stuck", "held", 30)
    wait_until(lambda: began(platform, "held") == 1)
    start = time.monotonic()
    assert platform.wait("work", platform.call("work", "free")).value == "free"
    assert time.monotonic() - start < 5
    outcome = platform.wait("stuck", call_id).outcome
    assert outcome is not None
    assert outcome.failure is not None
    assert outcome.failure.code == "DEADLINE_EXCEEDED"
    assert platform.wait("stuck", platform.call("stuck", "brief", 0)).value == "brief"


def test_coordinator_a_second_instance_takes_over_from_a_killed_one(platform: Platform) -> None:
    """Calls in flight on an instance that is killed begin again elsewhere within 10 s and end once."""
    platform.deploy(SOURCE, {"work": FunctionKind.SYNC}, slots=12)  # room for all, however they fall
    first, second = platform.start_ready(), platform.start_ready()
    wait_until(lambda: len(platform.owners("work")) == 2)
    ids = platform.submit("work", [(f"w{number}", 3.0) for number in range(12)])
    wait_until(lambda: len(platform.ran("begin w")) == 12)
    assert not platform.ran("end w")
    running = [line.split()[1] for line in platform.ran("begin") if first.name in line]
    identities = [identity for pid in executors(platform, first) if (identity := process.identify(pid))]
    first.kill()
    killed = time.monotonic()
    assert running
    wait_until(lambda: all(began(platform, label) == 2 for label in running))
    assert time.monotonic() - killed < 10
    found = platform.wait_all("work", ids)
    assert [found[each].value for each in ids] == [f"w{number}" for number in range(12)]
    assert len(platform.ran("begin w")) == 12 + len(running)
    # Executors die with their instance: what the first one ran never went on beside the second run.
    assert identities
    assert all(process.wait_gone(identity, 5.0) for identity in identities)
    assert not [line for line in platform.ran("end w") if first.name in line]
    assert second.child.poll() is None


def test_coordinator_a_frozen_instance_wakes_to_lost_partitions_and_changes_nothing(
    platform: Platform,
) -> None:
    """Calls of an instance frozen past its session end elsewhere; what it says when woken is dropped."""
    platform.deploy(SOURCE, {"work": FunctionKind.SYNC}, slots=8, partitions=2)
    first = platform.start_ready()
    ids = platform.submit("work", [(f"w{number}", 2.0) for number in range(5)])
    long = platform.call("work", "long", -1)
    wait_until(lambda: len(platform.ran("begin ")) == 6)
    first.freeze()
    second = platform.start(drain_s=5)
    found = platform.wait_all("work", ids, 60)
    assert {found[each].outcome.worker for each in ids if found[each].outcome} == {second.name}  # type: ignore[union-attr]
    first.thaw()
    wait_until(lambda: {"partitions_lost", "refused_commits"} & first.counters.keys() != set())
    wait_until(lambda: first.counters.get("dropped_runs", 0) > 0)
    let_go(platform)
    wait_until(lambda: bool([line for line in platform.ran("end long") if first.name in line]))
    wait_until(lambda: first.counters.get("dropped_completions", 0) > 0)
    assert platform.wait("work", platform.call("work", "late")).value == "late"
    assert platform.wait("work", long).outcome.worker == second.name  # type: ignore[union-attr]
    after = platform.outcomes("work")
    assert all(after[each].outcome == found[each].outcome for each in ids)
    wait_until(lambda: platform.all_done("work"))
    assert first.end() == 0
    assert second.end() == 0


def test_coordinator_sigterm_drains_what_runs_and_hands_back_what_waits(platform: Platform) -> None:
    """SIGTERM under load: running calls end here, waiting ones run elsewhere, once; exit code 0."""
    platform.deploy(SOURCE, {"work": FunctionKind.SYNC}, slots=2)
    first = platform.start_ready()
    ids = platform.submit("work", [(f"w{number}", 1.0) for number in range(6)])
    wait_until(lambda: len(platform.ran("begin w")) == 2)
    first.child.terminate()
    assert first.child.wait(40) == 0
    assert len(platform.ran("end w")) == len(platform.ran("begin w")) < 6
    assert platform.status(first) is None
    platform.start_ready()
    found = platform.wait_all("work", ids)
    assert sorted(str(found[each].value) for each in ids) == [f"w{number}" for number in range(6)]
    assert len(platform.ran("begin w")) == 6
    assert not [line for line in first.log.splitlines() if '"error"' in line or '"critical"' in line]


def test_coordinator_sigterm_ends_within_its_grace_whatever_runs(platform: Platform) -> None:
    """A call that outlasts the grace is handed back and runs elsewhere, nothing counted against it."""
    platform.deploy(SOURCE, {"work": FunctionKind.SYNC}, slots=2, partitions=1)
    first = platform.start_ready(drain_s=1)
    call_id = platform.call("work", "long", -1)
    wait_until(lambda: began(platform, "long") == 1)
    start = time.monotonic()
    assert first.end() == 0
    assert time.monotonic() - start < 15
    let_go(platform)
    offset, meta = platform.committed("work")[InputPartition(InputTopic.INVOCATIONS, 0)]
    assert offset == 0
    assert meta is not None
    assert meta.bound == 1  # it is a suspect for the next owner
    assert dict(meta.counts) == {}
    platform.start_ready()
    assert platform.wait("work", call_id, 60).value == "long"
    assert began(platform, "long") == 2


def test_coordinator_a_join_during_long_calls_runs_none_of_them_again(platform: Platform) -> None:
    """When a second instance joins, long calls go on where they run, whoever owns their partition."""
    platform.deploy(SOURCE, {"work": FunctionKind.SYNC}, slots=12)  # room beside the long ones
    first = platform.start_ready()
    ids = platform.submit("work", [(f"w{number}", -1) for number in range(8)])
    wait_until(lambda: len(platform.ran("begin w")) == 8)
    second = platform.start_ready()
    wait_until(lambda: len(platform.owners("work")) == 2)
    short = platform.submit("work", [(f"s{number}", 0.0) for number in range(20)])
    platform.wait_all("work", short)
    let_go(platform)
    assert any(second.name in line for line in platform.ran("begin s"))  # it owns partitions
    found = platform.wait_all("work", ids)
    assert {history.outcome.worker for key, history in found.items() if key in ids and history.outcome} == {
        first.name
    }
    assert len(platform.ran("begin w")) == 8
    wait_until(lambda: platform.all_done("work"))
    assert first.counters["copies"] > 0


def test_coordinator_a_record_that_never_ends_does_not_hold_up_those_behind_it(platform: Platform) -> None:
    """With the first record running for ever 5,000 behind it end; a restart runs only that one again."""
    platform.deploy(SOURCE, {"work": FunctionKind.SYNC}, slots=8, partitions=1)
    worker = platform.start_ready(drain_s=1)
    head = platform.call("work", "head", 3600)
    wait_until(lambda: began(platform, "head") == 1)
    ids = platform.submit("work", [(f"w{number}",) for number in range(5000)])
    platform.wait_all("work", ids, 110)
    place = InputPartition(InputTopic.INVOCATIONS, 0)

    def all_known() -> bool:
        offset, meta = platform.committed("work")[place]
        return offset == 0 and meta is not None and meta.finished == ((1, 5000),)

    wait_until(all_known)
    worker.kill()
    platform.start_ready()
    wait_until(lambda: began(platform, "head") == 2)
    late = platform.wait("work", platform.call("work", "late"))
    assert late.value == "late"
    assert len(platform.ran("begin w")) == 5000
    assert platform.history("work", head).outcome is None


def test_coordinator_a_broken_stream_fails_once_its_first_chunk_was_seen(platform: Platform) -> None:
    """A stream whose executor dies after chunks ends in one failure; nothing of a second run is seen."""
    platform.deploy(SOURCE, {"feed": FunctionKind.GENERATOR}, slots=1)
    worker = platform.start_ready()
    call_id = platform.call("feed", "broken", 50, 0.1)
    wait_until(lambda: len(platform.history("feed", call_id).chunks) >= 3)
    (pid,) = executors(platform, worker)
    os.kill(pid, signal.SIGKILL)
    history = platform.wait("feed", call_id)
    assert history.outcome is not None
    assert history.outcome.failure is not None
    assert history.outcome.failure.code == "UNAVAILABLE"
    assert history.chunks == list(range(len(history.chunks)))
    assert began(platform, "broken") == 1
    silent = platform.call("feed", "silent", 3, 1.5)
    wait_until(lambda: began(platform, "silent") == 1)
    wait_until(lambda: bool(executors(platform, worker)) and executors(platform, worker) != [pid])
    os.kill(executors(platform, worker)[0], signal.SIGKILL)
    again = platform.wait("feed", silent)
    assert again.chunks == [0, 1, 2]
    assert again.value is None
    assert began(platform, "silent") == 2


def test_coordinator_a_broker_that_goes_away_for_a_while_loses_nothing(
    platform: Platform, broker: Broker
) -> None:
    """While the broker is frozen nothing is given up: calls that ran meanwhile end once it is back."""
    platform.deploy(SOURCE, {"work": FunctionKind.SYNC}, slots=4)
    worker = platform.start_ready()
    ids = platform.submit("work", [(f"w{number}", 1.0) for number in range(4)])
    wait_until(lambda: len(platform.ran("begin w")) == 4)
    broker.freeze()
    try:
        wait_until(lambda: len(platform.ran("end w")) == 4)
        wait_until(lambda: worker.counters.get("expiries", 0) > 0)
    finally:
        broker.thaw()
    found = platform.wait_all("work", ids)
    assert all(history.outcome and history.outcome.failure is None for history in found.values())
    wait_until(lambda: platform.all_done("work"))
    assert worker.child.poll() is None
    assert worker.end() == 0

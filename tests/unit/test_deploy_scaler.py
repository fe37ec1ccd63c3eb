"""The scaler: from counts and states to decisions with reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pelton.core.spec import ContainerSpec, FunctionKind, FunctionSpec, LagSpec
from pelton_platform.deploy.backlog import Count
from pelton_platform.deploy.port import DRAINING, READY, STARTING, ContainerState, InstanceState, status_of
from pelton_platform.deploy.scaler import BY_HAND, Lag, Scaler

FUNCTION = FunctionSpec("f", 1, "c", FunctionKind.SYNC, (), "m", "f", "b", partitions=8)
WORKER = ContainerSpec("c", 1, ("f",), "b", max_instances=5)
PROGRAM = ContainerSpec("p", 1, (), "b", entrypoint=("x",), min_instances=1, max_instances=4)
READER = replace(PROGRAM, min_instances=0, lag=LagSpec("orders", "readers", 100))


def scaler(keep_warm_ms: int = 30_000, cool_down_ms: int = 10_000, drain_ms: int = 30_000) -> Scaler:
    """A fresh one."""
    return Scaler(keep_warm_ms, cool_down_ms, drain_ms)


def state(spec: ContainerSpec, *instances: InstanceState) -> ContainerState:
    """What a deployer has made of a container."""
    return ContainerState(spec.name, spec.version, 0, instances)


def ready(number: int, running: int = 0, cpu: float = 0.0) -> InstanceState:
    """An instance that serves."""
    return InstanceState(f"i-{number}", 1, number, READY, running=running, slots=1, cpu=cpu)


def test_functions_are_scaled_by_their_calls() -> None:
    """From nothing to what waits, a few at a time, with the reason."""
    one = scaler()
    one.observe(0, {"f": Count(100, 100)}, {"c": WORKER}, {})
    found = one.decide(WORKER, {"f": FUNCTION}, None, None, 0)
    assert (found.wanted, found.waiting) == (4, 100)
    assert found.reason == (
        "100 waiting, 0 running, and no call has ended yet; 8 are needed, a few start at a time"
    )
    serving = state(WORKER, *(ready(number, 1) for number in range(4)))
    one.observe(200, {"f": Count(100, 100)}, {"c": WORKER}, {"c": serving})
    found = one.decide(WORKER, {"f": FUNCTION}, serving, None, 200)
    assert (found.wanted, found.running, found.slots) == (5, 4, 4)
    assert found.reason.endswith("8 would be of use, max_instances is 5")


def test_the_same_look_counts_once() -> None:
    """A loop that turns oftener than it looks learns nothing twice."""
    one = scaler()
    one.observe(0, {"f": Count(10, 10)}, {"c": WORKER}, {})
    for _ in range(5):
        one.observe(1_000, {"f": Count(20, 10)}, {"c": WORKER}, {})
    once = scaler()
    once.observe(0, {"f": Count(10, 10)}, {"c": WORKER}, {})
    once.observe(1_000, {"f": Count(20, 10)}, {"c": WORKER}, {})
    decide = [each.decide(WORKER, {"f": FUNCTION}, None, None, 1_000) for each in (one, once)]
    assert decide[0] == decide[1]


def test_busy_instances_are_spared_unless_calls_end_soon() -> None:
    """An instance that is told to stop finishes what it runs, if that ends within its drain time."""
    one = scaler(drain_ms=1_000)
    serving = state(WORKER, ready(1, 1))
    for look in range(50):
        one.observe(look * 200, {"f": Count(look, 1)}, {"c": WORKER}, {"c": serving})
    assert not one.decide(WORKER, {"f": FUNCTION}, serving, None, 10_000).spare_busy
    slow = scaler(drain_ms=300)
    for look in range(50):
        slow.observe(look * 200, {"f": Count(look, 1)}, {"c": WORKER}, {"c": serving})
    assert slow.decide(WORKER, {"f": FUNCTION}, serving, None, 10_000).spare_busy
    assert scaler().decide(WORKER, {"f": FUNCTION}, serving, None, 0).spare_busy, "unknown counts as long"


def test_a_deployer_that_starts_keeps_what_runs() -> None:
    """Instances of a deployer before this one stay for a cool-down time."""
    one = scaler()
    one.found("c", 3, 0)
    serving = state(WORKER, *(ready(number) for number in range(3)))
    assert one.decide(WORKER, {}, serving, None, 9_000).wanted == 3
    assert one.decide(WORKER, {}, serving, None, 11_000).wanted == 1
    assert one.decide(WORKER, {}, serving, None, 31_000).wanted == 0


def test_cool_down_is_no_longer_than_keep_warm() -> None:
    """Who wants the last instance gone at once wants so of all."""
    one = scaler(keep_warm_ms=100, cool_down_ms=30_000)
    one.found("c", 3, 0)
    assert one.decide(WORKER, {}, None, None, 101).wanted == 0


@pytest.mark.parametrize(
    ("lag", "wanted", "reason"),
    [
        (Lag(0, 6), 0, "0 records unread in 6 partitions"),
        (Lag(150, 6), 2, "150 records unread in 6 partitions"),
        (Lag(150, 1), 1, "150 records unread in 1 partitions"),
        (Lag(9_999, 6), 4, "9999 records unread in 6 partitions; 6 would be of use, max_instances is 4"),
        (Lag(reason="there is no topic 'orders'"), 0, "there is no topic 'orders'"),
    ],
)
def test_readers_are_scaled_by_their_lag(lag: Lag, wanted: int, reason: str) -> None:
    """One instance for each so many unread records, at most one a partition; what is not known is said."""
    found = scaler().decide(READER, {}, None, lag, 0)
    assert (found.wanted, found.reason) == (wanted, reason)


def test_a_lag_that_is_not_known_changes_nothing() -> None:
    """A broker that is away is no reason to stop who reads from it."""
    one = scaler(keep_warm_ms=0, cool_down_ms=0)
    running = state(READER, ready(1), ready(2), ready(3))
    assert one.decide(READER, {}, running, Lag(300, 6), 0).wanted == 3
    assert one.decide(READER, {}, running, Lag(reason="away"), 60_000).wanted == 3
    assert one.decide(READER, {}, running, Lag(0, 6), 61_000).wanted == 0


def test_programs_are_scaled_by_cpu() -> None:
    """Above 70 % of their cores there are more of them, up to the bound; below it, in time, fewer."""
    one = scaler(cool_down_ms=1_000)
    hot = state(PROGRAM, ready(1, cpu=0.95), ready(2, cpu=0.95))
    found = one.decide(PROGRAM, {}, hot, None, 0)
    assert (found.wanted, found.reason) == (3, "95% of their CPU used by 2")
    cold = state(PROGRAM, ready(1, cpu=0.1), ready(2, cpu=0.1), ready(3, cpu=0.1))
    assert one.decide(PROGRAM, {}, cold, None, 500).wanted == 3
    assert one.decide(PROGRAM, {}, cold, None, 2_000).wanted == 1


def test_programs_that_start_are_no_reason_for_more() -> None:
    """As long as wanted instances are not ready nobody knows what all of them would use."""
    one = scaler()
    assert one.decide(PROGRAM, {}, state(PROGRAM, ready(1, cpu=0.9)), None, 0).wanted == 2
    starting = InstanceState("i-2", 1, 2, STARTING)
    found = one.decide(PROGRAM, {}, state(PROGRAM, ready(1, cpu=1.0), starting), None, 100)
    assert (found.wanted, found.reason) == (2, "instances start")


def test_programs_with_one_number_are_not_scaled() -> None:
    """Where there is nothing to choose nothing is measured, and a program always runs."""
    fixed = replace(PROGRAM, max_instances=1)
    assert scaler().decide(fixed, {}, None, None, 0).reason == "min_instances"
    assert scaler().decide(replace(fixed, min_instances=0), {}, None, None, 0).wanted == 1


def test_a_container_that_was_deleted_is_forgotten() -> None:
    """One of the same name that is deployed later does not start with what the other needed."""
    one = scaler()
    one.observe(0, {"f": Count(100, 100)}, {"c": WORKER}, {})
    assert one.decide(WORKER, {"f": FUNCTION}, None, None, 0).wanted == 4
    one.observe(200, {}, {}, {})
    assert one.decide(WORKER, {}, None, None, 400).wanted == 0


@pytest.mark.parametrize("count", [0, 2, 9])
def test_a_number_that_was_set_by_hand_holds(count: int) -> None:
    """Also beyond the bounds, whatever waits."""
    one = scaler()
    one.observe(0, {"f": Count(100, 100)}, {"c": WORKER}, {})
    found = one.decide(replace(WORKER, fixed_instances=count), {"f": FUNCTION}, None, None, 0)
    assert (found.wanted, found.reason) == (count, BY_HAND)


@pytest.mark.parametrize(
    ("wanted", "states", "crashing", "refused", "status"),
    [
        (2, [READY, READY], False, False, "running"),
        (2, [READY, STARTING], False, False, "starting"),
        (2, [], False, False, "starting"),
        (0, [], False, False, "stopped"),
        (0, [DRAINING], False, False, "stopping"),
        (1, [], True, False, "crash-loop"),
        (1, [STARTING], True, False, "crash-loop"),
        (2, [READY], True, False, "crash-loop"),
        (1, [READY], False, True, "refused"),
    ],
)
def test_a_status_is_a_word(
    wanted: int, states: list[str], crashing: bool, refused: bool, status: str
) -> None:
    """What people and programs read of a container first."""
    instances = [InstanceState(str(number), 1, 1, each) for number, each in enumerate(states)]
    assert status_of(wanted, instances, crashing=crashing, refused=refused) == status

"""What the local deployer decides, without any process: starts, stops, replacements, backoff, silence."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pelton_platform.deploy.plan import (
    BACKOFF_MAX_MS,
    HEALTHY_AFTER_MS,
    KILL_MARGIN_MS,
    SILENT_AFTER_MS,
    Action,
    Crashes,
    Kill,
    Live,
    Start,
    Stop,
    Workload,
    after_exit,
    backoff_ms,
    plan,
)

DRAIN_MS = 30_000


def live(
    name: str, *, version: int = 1, ready: bool = True, at_ms: int = 0, running: int = 0, container: str = "c"
) -> Live:
    """An instance that was started and last heard of at `at_ms`."""
    return Live(name, container, version, at_ms, at_ms if ready else None, at_ms, running)


def decide(
    now_ms: int, count: int, instances: list[Live], *, version: int = 1, crashes: Crashes | None = None
) -> list[Action]:
    """Plan for one container."""
    workloads = {"c": Workload("c", version, count)}
    return plan(now_ms, workloads, instances, {} if crashes is None else {"c": crashes}, DRAIN_MS)


def test_deploy_missing_instances_are_started_and_nothing_else() -> None:
    """As many starts as instances are missing; at the wanted number nothing is done."""
    assert decide(0, 2, []) == [Start("c", 1)] * 2
    assert decide(0, 2, [live("a"), live("b", ready=False)]) == []


def test_deploy_least_useful_instance_is_stopped_first() -> None:
    """Of too many instances go those that are not ready, then the idle, then the youngest."""
    instances = [
        live("old"),
        live("young", at_ms=5),
        live("busy", at_ms=6, running=3),
        live("new", ready=False),
    ]
    stopped = [action.instance for action in decide(10, 1, instances) if isinstance(action, Stop)]
    assert stopped == ["new", "young", "old"]


def test_deploy_new_version_is_ready_before_the_old_one_stops() -> None:
    """A redeploy starts the new version, and stops the old instances only when the new ones are ready."""
    old = [live("a"), live("b")]
    assert decide(10, 2, old, version=2) == [Start("c", 2)] * 2
    half = [*old, live("x", version=2), live("y", version=2, ready=False)]
    assert decide(10, 2, half, version=2) == []
    whole = [*old, live("x", version=2), live("y", version=2)]
    assert [type(action) for action in decide(10, 2, whole, version=2)] == [Stop, Stop]


def test_deploy_old_version_stops_at_once_when_nothing_is_needed() -> None:
    """With no instance wanted there is nothing to wait for."""
    assert [action[0] for action in decide(10, 0, [live("a")], version=2)] == ["a"]


def test_deploy_removed_container_is_stopped() -> None:
    """Instances of a container that is gone are told to stop; those told already are left alone."""
    told = replace(live("b"), stopping_ms=1)
    assert plan(2, {}, [live("a"), told], {}, DRAIN_MS) == [Stop("a", "its container was removed")]


def test_deploy_crashes_are_spaced_and_probed_by_one() -> None:
    """The first crash is answered at once, later ones after a growing pause, by one instance at a time."""
    first = after_exit(None, live("a", ready=False), 1_000, "exit code 1")
    assert first == Crashes(1, 1, 1_000, "exit code 1")
    assert decide(1_000, 2, [], crashes=first) == [Start("c", 1)] * 2
    second = after_exit(first, live("b", ready=False), 2_000, "exit code 2")
    assert second == Crashes(1, 2, 2_000, "exit code 2")
    assert decide(2_499, 2, [], crashes=second) == []
    assert decide(2_500, 2, [], crashes=second) == [Start("c", 1)]
    assert [backoff_ms(n) for n in (0, 1, 2, 3, 4, 50)] == [0, 0, 500, 1_000, 2_000, BACKOFF_MAX_MS]


def test_deploy_new_version_forgets_the_crashes_of_the_old() -> None:
    """A redeploy is started at once, however often the version before it crashed."""
    crashes = Crashes(1, 9, 1_000, "exit code 1")
    assert decide(1_001, 1, [], version=2, crashes=crashes) == [Start("c", 2)]
    newer = Crashes(2, 3, 5_000, "exit code 3")
    assert after_exit(newer, live("old", version=1), 6_000, "exit code 1") == newer


def test_deploy_healthy_time_forgives() -> None:
    """An instance that was ready long enough counts as a first crash; one that was told to stop as none."""
    crashes = Crashes(1, 5, 0, "exit code 1")
    ended = live("a", at_ms=100)
    assert after_exit(crashes, ended, 100 + HEALTHY_AFTER_MS, "signal 9") == Crashes(
        1, 1, 100 + HEALTHY_AFTER_MS, "signal 9"
    )
    assert after_exit(crashes, replace(ended, stopping_ms=200), 300, "exit code 0") == crashes


def test_deploy_instance_that_does_not_end_is_killed() -> None:
    """A stopping instance has its drain time and a margin, then it is killed."""
    stopping = replace(live("a"), stopping_ms=1_000)
    limit = 1_000 + DRAIN_MS + KILL_MARGIN_MS
    assert plan(limit - 1, {}, [stopping], {}, DRAIN_MS) == []
    assert [type(action) for action in plan(limit, {}, [stopping], {}, DRAIN_MS)] == [Kill]


def test_deploy_silent_instance_is_replaced() -> None:
    """A ready instance that says nothing any more is killed and another one started in its place."""
    silent = live("a")
    assert decide(SILENT_AFTER_MS - 1, 1, [silent]) == []
    actions = decide(SILENT_AFTER_MS, 1, [silent])
    assert [type(action) for action in actions] == [Kill, Start]


@given(seed=st.integers(0, 10_000), wanted=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12))
def test_deploy_plan_settles(seed: int, wanted: list[tuple[int, bool]]) -> None:
    """Whatever was asked for in between, carrying out the plan ends with what is wanted and no action."""
    dice = random.Random(seed)
    instances: dict[str, Live] = {}
    version, count, now_ms, made = 1, 0, 0, 0
    for step, (number, redeploy) in enumerate([*wanted, *[(-1, False)] * 12]):
        if number >= 0:
            count, version = number, version + redeploy
        now_ms += 10
        for action in decide(now_ms, count, list(instances.values()), version=version):
            if isinstance(action, Start):
                made += 1
                instances[f"i{made}"] = live(f"i{made}", version=action.version, ready=False, at_ms=now_ms)
            else:
                instances[action.instance] = replace(instances[action.instance], stopping_ms=now_ms)
        settled = step >= len(wanted)
        for name, one in list(instances.items()):
            if one.stopping_ms is not None and (settled or dice.random() < 0.5):
                del instances[name]
            elif one.ready_ms is None and (settled or dice.random() < 0.5):
                instances[name] = replace(one, ready_ms=now_ms)
    assert decide(now_ms, count, list(instances.values()), version=version) == []
    assert [one.version for one in instances.values()] == [version] * count

"""The engine among crashes, frozen owners, woken zombies, rebalances, lost commits and lost records."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pelton.core.call import Failure, InputPartition, Result, Token
from pelton.core.cancelling import Cancellations
from pelton.core.engine import Engine
from pelton.core.fold import Fold
from pelton.core.run import Item, Run, RunState
from support.world import World, history
from support.world_parts import Broken

MIXES: list[dict[str, Any]] = [{}, {"shuffle": 0.15, "slow": 0.8}]


@pytest.mark.parametrize("mix", MIXES, ids=["crashes", "rebalances"])
@pytest.mark.parametrize("block", range(4))
def test_promises_hold_in_random_histories(block: int, mix: dict[str, Any]) -> None:
    """P2, P3, P4 and P7 hold in every seeded history, and the faults that make them hard do occur."""
    seen: dict[str, int] = {}
    for seed in range(block * 50, block * 50 + 50):
        world = history(seed, **mix)
        for name, count in world.counters.items():
            seen[name] = seen.get(name, 0) + count
    assert seen.get("never_ran", 0) <= 2, "calls given up although none of their deliveries ever ran"
    for name in (
        "refused",
        "suspects",
        "crashes",
        "dropped_runs",
        "retries",
        "expiries",
        "dropped_completions",
    ):
        assert seen.get(name, 0) > 0, f"no history had {name}: the faults prove nothing"


@pytest.mark.parametrize("mix", MIXES, ids=["crashes", "rebalances"])
def test_promises_hold_when_calls_nest(mix: dict[str, Any]) -> None:
    """One slot, two parked runs of a depth, a tiny window: every call and every nested call ends, once."""
    seen: Counter[str] = Counter()
    for seed in range(1000, 1080):
        seen.update(history(seed, nested=True, **mix).counters)
    for name in ("parked", "tail_copies", "crashes", "dropped_runs", "expiries"):
        assert seen[name] > 0, f"no history had {name}: {seen}"


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("mix", MIXES, ids=["crashes", "rebalances"])
def test_promises_hold_when_calls_are_cancelled(mix: dict[str, Any], nested: bool) -> None:
    """One outcome each, whoever dies; none starts that was cancelled before its partition was owned."""
    seen: Counter[str] = Counter()
    for seed in range(2000, 2080):
        seen.update(history(seed, cancels=True, nested=nested, **mix).counters)
    names = ["ended_cancelled", "cancelled_runs", "crashes", "dropped_runs", "expiries"]
    for name in [*names, "parked"] if nested else names:
        assert seen[name] > 0, f"no history had {name}: {seen}"


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("mix", MIXES, ids=["crashes", "rebalances"])
def test_promises_hold_with_key_order(mix: dict[str, Any], nested: bool) -> None:
    """Calls with one key start in the order of the log at whoever owns them, and all else holds as well."""
    seen: Counter[str] = Counter()
    for seed in range(3000, 3080):
        seen.update(history(seed, keys=True, nested=nested, cancels=seed % 2 == 0, **mix).counters)
    for name in ("keyed_starts", "retries", "crashes", "dropped_runs", "expiries", "ended_cancelled"):
        assert seen[name] > 0, f"no history had {name}: {seen}"


@pytest.mark.parametrize("keys", [False, True], ids=["unordered", "keys"])
@pytest.mark.parametrize("mix", MIXES, ids=["crashes", "rebalances"])
def test_promises_hold_with_retries(mix: dict[str, Any], keys: bool) -> None:
    """Every attempt granted is made, none before its time, and none after one that did not fail."""
    seen: Counter[str] = Counter()
    for seed in range(4000, 4080):
        seen.update(history(seed, delays=True, keys=keys, cancels=seed % 3 == 0, **mix).counters)
    names = ["failed_attempts", "delayed_starts", "crashes", "dropped_runs", "expiries", "ended_cancelled"]
    names.append("ended_late")
    for name in names if keys else [*names, "fired_timers"]:
        assert seen[name] > 0, f"no history had {name}: {seen}"


@pytest.mark.parametrize("mix", MIXES, ids=["crashes", "rebalances"])
def test_promises_hold_when_streams_begin_again(mix: dict[str, Any]) -> None:
    """What a reader keeps in the end is one execution's stream from its first chunk to its last."""
    seen: Counter[str] = Counter()
    for seed in range(5000, 5080):
        options = {"delays": True, "cancels": seed % 3 == 0, **mix}
        seen.update(history(seed, streams=True, restart=True, **options).counters)
    for name in ("restarts", "crashes", "dropped_runs", "expiries", "ended_cancelled"):
        assert seen[name] > 0, f"no history had {name}: {seen}"


# ---- seeded bugs: each rule broken alone is caught by the same histories ----


class CommitsBeforeAck(Engine):
    """A record is done when its outcome is sent, not when it is acknowledged."""

    def _close(self, run: Run, items: tuple[bytes, ...], failure: Failure | None) -> None:
        super()._close(run, items, failure)
        self._finish(run)


class DropsDeadLetters(Engine):
    """A call is given up without a dead letter."""

    def _give_up(self, run: Run, reason: Failure) -> None:
        self._free(run)
        self._close(run, (), reason)


class CountsNoSuspects(Engine):
    """Deliveries of suspects are not counted."""

    def _count(self, item: Item) -> int:
        item.own.counts.pop(item.offset, None)
        return 0


class KeepsTheEpoch(Engine):
    """Every owner has the same epoch."""

    def assigned(self, now_ms: int, partition: InputPartition, *args: Any) -> int:
        at = super().assigned(now_ms, partition, *args)
        self._owned[partition].epoch = 1
        return at


class FencesNoStream(Engine):
    """A stream runs again without `reset` and without reading what was written before."""

    def _fence(self, run: Run, *, dead: bool) -> None:
        if dead:
            super()._fence(run, dead=True)
        else:
            self._start(run)


class KeepsNoHorizon(Engine):
    """Records are dispatched above the committed horizon."""

    def assigned(self, now_ms: int, partition: InputPartition, *args: Any) -> int:
        at = super().assigned(now_ms, partition, *args)
        own = self._owned[partition]
        own.horizon, own.bound, own.wanted = 1 << 40, 0, 0
        return at


class RewritesEarly(Engine):
    """After an expiry records are sent again as reports come, not after all of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

        def flow(run: Run, real: Callable[[Run], Run | None] = self._outbox.flow) -> Run | None:
            if run.expired:
                for entry in run.out:
                    if not entry.acked and not entry.out:
                        self._outbox._put(entry)
                run.expired = False
            return real(run)

        self._outbox.flow = flow  # type: ignore[method-assign]


class DropsOnRebalance(Engine):
    """What a lost partition leaves behind counts as finished."""

    def revoke(self, now_ms: int, partitions: Any) -> None:
        for partition in partitions:
            own = self._owned.get(partition)
            for item in list(own.items.values()) if own is not None else []:
                if item.run is not None:
                    item.own.finish(item)
        super().revoke(now_ms, partitions)


class LosesRetries(Engine):
    """A failed attempt's record is finished when its retry is planned."""

    def _failed(self, run: Run, failure: Failure, **how: Any) -> None:
        super()._failed(run, failure, **how)
        if run.state is RunState.BACKOFF:
            self._finish(run)


class RetriesEarly(Engine):
    """A record starts as soon as it is there, whenever it is due."""

    def _not_due(self, item: Item, headers: Any) -> bool:
        return False


class FinishesBeforeTheRetry(Engine):
    """A call that goes on elsewhere is done before Kafka has what it goes on with."""

    def _send_on(self, run: Run, again: Any, **how: Any) -> None:
        super()._send_on(run, again, **how)
        self._finish(run)


class IgnoresTokens(Fold):
    """A reader that takes whatever comes."""

    def feed(self, result: Result) -> Any:
        self.token = Token(0, 0, 0, 0, 0)
        return super().feed(result)


class ParksWithoutGivingBack(Engine):
    """A run that waits for a call it made keeps its slot."""

    def parked(self, now_ms: int, run_id: int) -> None:
        self._now = now_ms


class FinishesBeforeItsCopy(Engine):
    """A record is done when its copy is sent to the tail, not when that is acknowledged."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        real = self._outbox.copy

        def copy(target: Any, record: Any, headers: Any, answer: Callable[[bool, int], None]) -> None:
            real(target, record, headers, lambda ok, at: None)
            answer(True, record.offset)

        self._tail._outbox = SimpleNamespace(copy=copy, moved=self._outbox.moved)  # type: ignore[assignment]


class ReachesNothingBehind(Engine):
    """Records in front of what parked runs wait for stay where they are."""

    def _reach_behind(self) -> None:
        """Does nothing."""


class ReadsCancellationsLate(Engine):
    """Records are dispatched before the requests to cancel were read to their end."""

    def assigned(self, now_ms: int, partition: InputPartition, *args: Any) -> int:
        at = super().assigned(now_ms, partition, *args)
        self._owned[partition].informed = True
        return at


class CancelsNoDescendants(Cancellations):
    """A cancelled call takes none of the calls below it along."""

    def why(self, call_id: bytes, ancestry: bytes) -> str:
        return super().why(call_id, b"")


class RetriesWhatIsCancelled(Engine):
    """A cancelled attempt that lost its executor runs again, and forgets that it was cancelled."""

    def _end_cancelled(self, run: Run, end: Failure | None) -> None:
        run.cancelled = ""
        self._kill(run)
        self._rerun(run.items)

    def _new_run(self, item: Item, key: Any) -> Run:
        run = super()._new_run(item, key)
        run.cancelled = ""
        return run


class KnowsNoOrder(Engine):
    """Records with one key run beside each other."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._order = None


class GoesOnBeforeTheCommit(Engine):
    """The next call of a key starts when the end of the one before it is acknowledged, and not committed."""

    def _finish(self, run: Run) -> None:
        own = run.items[0].own
        super()._finish(run)
        if own.alive and own.lanes is not None:
            for key in own.lanes.take_ended():
                item = own.lanes.go_on(key)
                if item is not None:
                    own.held -= 1
                    own.wait(item)


class CopiesKeyedCalls(Engine):
    """A running call with a key is copied to another partition when its own is revoked."""

    def revoke(self, now_ms: int, partitions: Any) -> None:
        for own in self._owned.values():
            own.lanes = None
        super().revoke(now_ms, partitions)


BUGS: dict[str, tuple[dict[str, Any], str]] = {
    "commit before ack": ({"engine": CommitsBeforeAck}, "P"),
    "dead letter dropped": ({"engine": DropsDeadLetters}, "P7"),
    "suspects uncounted": ({"engine": CountsNoSuspects}, "P7"),
    "epoch not raised": ({"engine": KeepsTheEpoch}, "P"),
    "stream not fenced": ({"engine": FencesNoStream, "streams": True}, "P3"),
    "no horizon": ({"engine": KeepsNoHorizon}, "P"),
    "rewritten early": ({"engine": RewritesEarly, "streams": True}, "P"),
    "lost on rebalance": ({"engine": DropsOnRebalance}, "P"),
    "retry lost": ({"engine": LosesRetries}, "P"),
    "retry too early": ({"engine": RetriesEarly, "delays": True}, "R"),
    "done before the retry is kept": ({"engine": FinishesBeforeTheRetry, "delays": True}, "P"),
    "park without giving back": ({"engine": ParksWithoutGivingBack, "nested": True}, "P7"),
    "finished before its copy": ({"engine": FinishesBeforeItsCopy, "nested": True}, "P"),
    "nothing behind the window": ({"engine": ReachesNothingBehind, "nested": True}, "P7"),
    "cancellation read after dispatch": ({"engine": ReadsCancellationsLate, "cancels": True}, "C"),
    "descendants not cancelled": (
        {"cancellations": CancelsNoDescendants, "cancels": True, "nested": True},
        "C",
    ),
    "cancelled calls run again": ({"engine": RetriesWhatIsCancelled, "cancels": True}, ""),
    "key order ignored": ({"engine": KnowsNoOrder, "keys": True}, "K"),
    "next of a key before the commit": ({"engine": GoesOnBeforeTheCommit, "keys": True}, "K"),
    "keyed calls copied": ({"engine": CopiesKeyedCalls, "keys": True}, "K"),
    "token ignored": ({"fold": IgnoresTokens}, "P"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_seeded_bugs_are_caught(bug: str) -> None:
    """Each rule switched off alone breaks a promise in the same kind of histories."""
    options, promise = BUGS[bug]
    for seed in range(600):
        for mix in MIXES:
            try:
                history(seed, **mix, **options)
            except Broken as found:
                if str(found).startswith(promise):
                    return
    pytest.fail(f"600 histories did not notice: {bug}")


# ---- the same world, driven and shrunk by Hypothesis ----


class EngineMachine(RuleBasedStateMachine):
    """Hypothesis chooses the events; a failing history is shrunk to its shortest form."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(random.Random(0), shuffle=0.0)
        self.begun = False

    @rule(seed=st.integers(0, 2**32), streams=st.booleans())
    @precondition(lambda self: not self.begun)
    def begin(self, seed: int, streams: bool) -> None:
        """A fresh world."""
        self.begun = True
        self.world = World(random.Random(seed), shuffle=0.0, streams=streams)

    @rule(milliseconds=st.integers(10, 3000))
    def wait(self, milliseconds: int) -> None:
        """Time passes for everybody."""
        self.world.advance(milliseconds)
        self.rounds(1)

    @rule(count=st.integers(1, 30))
    def rounds(self, count: int) -> None:
        """Everybody gets turns."""
        for _ in range(count):
            self.world.rebalance()
            for instance in list(self.world.instances):
                self.world.turn(instance)

    @rule()
    def submit(self) -> None:
        """A call is accepted."""
        self.world.submit()

    @rule(which=st.integers(0, 3))
    def crash(self, which: int) -> None:
        """SIGKILL of an instance."""
        world = self.world
        if which < len(world.instances):
            world.crash(world.instances[which])
            world.spawn()

    @rule(which=st.integers(0, 3), milliseconds=st.integers(1000, 15000), whole=st.booleans())
    def freeze(self, which: int, milliseconds: int, whole: bool) -> None:
        """SIGSTOP of an instance, or only its own code stands still."""
        world = self.world
        if which < len(world.instances):
            until = world.now_ms + milliseconds
            if whole:
                world.instances[which].frozen_until = until
            else:
                world.instances[which].stalled_until = until

    @rule(which=st.integers(0, 3))
    def kill_executor(self, which: int) -> None:
        """An executor dies."""
        world = self.world
        if which < len(world.instances) and world.instances[which].executions:
            execution = next(iter(world.instances[which].executions.values()))
            world.kill_executor(world.instances[which], execution.executor)

    @rule()
    def shuffle(self) -> None:
        """A rebalance."""
        if self.world.phase == "stable":
            self.world.phase = "joining"

    @rule(milliseconds=st.integers(1000, 9000))
    def freeze_broker(self, milliseconds: int) -> None:
        """The broker answers nobody for a while."""
        self.world.broker_frozen_until = self.world.now_ms + milliseconds

    @invariant()
    def nothing_is_lost(self) -> None:
        """Every commit was checked when it was applied; here: every accepted call is still somewhere."""
        world = self.world
        for call in world.calls.values():
            if call not in world.pending and world.fold(call.id).outcome is None:
                assert next(world.live(call.id), None) is not None, f"{call} vanished"

    def teardown(self) -> None:
        """Without faults everything ends, and every promise held."""
        self.world.heal()
        self.world.judge()


EngineMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEngineMachine = EngineMachine.TestCase

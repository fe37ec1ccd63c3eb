"""Short scenes on the real broker, each made so that one broken rule shows; without a bug all is well."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from pelton.core.call import call_id_text
from pelton.protocol.topics import Control
from support.chaos_checker import Checker, Verdict
from support.chaos_cluster import Cluster
from support.chaos_ledgers import Sent
from support.chaos_watch import Watch
from support.chaos_world import Hit, World, world_on
from support.worker_instance import Worker, wait_until

SETTLE_S = 40.0


def call(world: World, number: int, function: str = "quick", chunks: int = 0, **arguments: Any) -> Sent:
    """One accepted call."""
    given = (number, chunks) if function == "flow" else (number,)
    call_id = world.call(function, *given, **arguments)
    return Sent(number, function, chunks, bool(arguments.get("boom")), call_id_text(call_id), "yes")


def executing(world: World, count: int) -> bool:
    """Whether so many executions are under way."""
    return len([each for each in _executions(world) if not each.ended_ns]) >= count


def ended(world: World, count: int) -> bool:
    """Whether so many executions have ended."""
    return len([each for each in _executions(world) if each.ended_ns]) >= count


def _executions(world: World) -> list[Any]:
    world.ledger.poll()
    return list(world.ledger.executions.values())


def judged(world: World, sent: list[Sent], watch: Watch | None = None, *, again: bool = False) -> Verdict:
    """Waits until everything is committed, which a broken rule may prevent, and judges.

    With `again` an instance that ended by itself is replaced.
    """
    deadline = time.monotonic() + SETTLE_S
    while not world.inputs_done() and time.monotonic() < deadline:
        if again and not world.alive:
            world.start()
        time.sleep(0.1)
    world.wait_counted()
    return Checker(world, sent, {}, watch).check()


def failing_call(world: World) -> Verdict:
    """A call whose code raises is given up."""
    world.deploy_ledgers("quick")
    world.start()
    return judged(world, [call(world, 1, boom=True), call(world, 2)])


def lone_executor_killed(world: World) -> Verdict:
    """The executor of a lone call is killed: the call has an attempt less and is tried again."""
    world.deploy_ledgers("quick")
    worker = world.start()
    sent = [call(world, 1, hold_ms=1500)]
    wait_until(lambda: executing(world, 1), 30, "the call runs")
    world.kill_executor(worker, _busy_pid(world, worker))
    return judged(world, sent)


def stream_cut(world: World) -> Verdict:
    """An instance is killed in the middle of a stream that was read already."""
    world.deploy_ledgers("flow")
    worker = world.start()
    sent = [call(world, 1, "flow", 30, hold_ms=100)]
    wait_until(lambda: any(len(each.chunks) >= 5 for each in _executions(world)), 30, "chunks")
    world.kill_instance(worker)
    world.start()
    return judged(world, sent)


def killed_in_flight(world: World) -> Verdict:
    """An instance is killed when some calls have ended and others, before them in the log, have not."""
    world.deploy_ledgers("quick", partitions=1)
    watch = Watch(world)
    try:
        worker = world.start()
        sent = [call(world, number, hold_ms=5000) for number in range(3)]
        sent += [call(world, number) for number in range(3, 9)]
        wait_until(lambda: executing(world, 3) and ended(world, 6), 30, "some have ended")
        looks = len(watch.glances)
        wait_until(lambda: len(watch.glances) >= looks + 2, 30, "the commits were looked at")
        world.kill_instance(worker)
        world.start()
        return judged(world, sent, watch)
    finally:
        watch.close()


def results_refused(world: World) -> Verdict:
    """The results topic is away while calls end; then their instance is killed, and the topic comes back."""
    world.deploy_ledgers("quick")
    worker = world.start()
    world.wait_settled(1)
    topic = world.topics.results("quick")
    world.admin.delete_topics([topic])
    wait_until(lambda: topic not in world.admin.topics(), 30, "the topic is gone")
    sent = [call(world, number) for number in range(10)]
    wait_until(lambda: ended(world, 10), 30, "all calls have ended")
    # One round of sends has been given up: nothing of it was acknowledged.
    wait_until(lambda: worker.counters.get("expiries", 0) >= 10, 60, "sends were given up")
    world.kill_instance(worker)
    world.admin.create_topics(world.topics.topic_plans_for_function(world.specs["quick"], 1))
    world.start()
    return judged(world, sent)


def leader_lost(cluster: Cluster, folder: Path, bug: str) -> Verdict:
    """Results are acknowledged while the follower stands still; then their leader is killed."""
    with world_on(cluster.bootstrap_servers, folder, bug) as world:
        # The offsets of groups come to life on the only broker there is now.
        world.admin.committed("nobody", [(world.topics.control(Control.LOGS), 0)])
        cluster.follower.start()
        cluster.await_broker(cluster.follower)
        world.deploy_ledgers("quick", prepare=cluster.lead_first)
        worker = world.start()
        world.wait_settled(1)
        sent = [call(world, number, hold_ms=2000) for number in range(8)]
        results = world.topics.results("quick")
        wait_until(lambda: cluster.in_sync(results), 20, "both brokers have all")
        wait_until(lambda: executing(world, 8), 30, "all calls run")
        cluster.follower.freeze()
        try:
            wait_until(lambda: ended(world, 8), 10, "all calls have ended")
            if bug:
                # It takes the word of the leader alone: what is finished is committed.
                wait_until(world.inputs_done, 20, "the inputs are committed as finished")
            else:
                # Counted once more: a commit that was to come has come by then.
                written = worker.counters_path.stat().st_mtime
                wait_until(
                    lambda: worker.counters_path.stat().st_mtime > written + 0.5, 5, "some time has passed"
                )
            cluster.leader.kill()
        finally:
            cluster.follower.signal(signal.SIGCONT)
        wait_until(lambda: cluster.leaders(results) == {cluster.follower.number}, 60, "the follower leads")
        cluster.leader.start()
        cluster.await_broker(cluster.leader)
        world.hits.append(Hit("broker kill"))
        return judged(world, sent, again=True)


def deadly_call(world: World) -> Verdict:
    """A call kills each instance that runs it, until it is given up."""
    world.deploy_ledgers("deadly", max_attempts=1)
    sent = [call(world, 1, "deadly")]
    for _ in range(5):
        worker = world.start()
        died_or_done(world, worker)
        if worker.child.poll() is None:
            break
    return Checker(world, sent, {}).check()


def _busy_pid(world: World, worker: Worker) -> int:
    return next(pid for pid in world.executors(worker) if world.in_flight([pid]))


def died_or_done(world: World, worker: Worker) -> None:
    """Waits until an instance has died or nothing is left to do."""
    wait_until(lambda: worker.child.poll() is not None or world.inputs_done(), 60, "an end")

"""A broker, its consumer group and worker instances as one seeded state machine around the real engine."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from pelton.core.call import Failure, InputHeaders, InputPartition, InputTopic, Result
from pelton.core.cancelling import Cancellations
from pelton.core.decisions import (
    Action,
    Commit,
    CommitOutcome,
    Credit,
    InputRecord,
    Interrupt,
    Pause,
    ReadCancellations,
    ReadResults,
    Released,
    Resume,
    SendDeadLetter,
    SendInput,
    SendResult,
    SendTimer,
    Start,
    Unpark,
)
from pelton.core.engine import Engine
from pelton.core.fold import Fold
from pelton.core.offsets import decode_metadata, initial_metadata
from pelton.core.runs import EngineSettings
from support.world_delays import Delays
from support.world_parts import (
    MAX_ATTEMPTS,
    MESSAGE_MS,
    PARTITIONS,
    SESSION_MS,
    Broken,
    Call,
    Cancels,
    Execution,
    Instance,
    Keys,
    Sent,
    folded,
    judge_call,
    random_calls,
)


class World:
    """The whole of it. One seed is one history; every method is one possible event."""

    def __init__(
        self,
        rng: random.Random,
        *,
        shuffle: float = 0.03,
        slow: float = 0.0,
        streams: bool | None = None,
        nested: bool = False,
        cancels: bool = False,
        keys: bool = False,
        delays: bool = False,
        restart: bool = False,
        cancellations: type[Cancellations] = Cancellations,
        engine: type[Engine] = Engine,
        fold: type[Fold] = Fold,
    ) -> None:
        self.rng = rng
        self.shuffle_chance, self.slow, self.nested = shuffle, slow, nested
        self.engine_type, self.fold_type = engine, fold
        self.cancellations_type = cancellations
        self.keys = Keys(keys)
        self.delays = Delays(rng, delays)
        self.restart = restart
        self.cancels = Cancels(0.02 if cancels else 0.0)
        self.now_ms = 1_000
        self.streams = rng.random() < 0.5 if streams is None else streams
        self.logs: dict[InputPartition, list[tuple[InputHeaders, bytes]]] = {tp: [] for tp in PARTITIONS}
        self.results: list[Result] = []
        self.dead: list[bytes] = []
        self.limbo: list[tuple[int, Sent]] = []
        self.committed: dict[InputPartition, tuple[int, str]] = {
            tp: (0, initial_metadata()) for tp in PARTITIONS
        }
        self.generation = 0
        self.phase = "stable"
        self.members: dict[int, Instance] = {}
        self.owned: dict[int, set[InputPartition]] = {}
        self.target: dict[int, set[InputPartition]] = {}
        self.instances: list[Instance] = []
        self.born = 0
        self.broker_frozen_until = -1
        self.faults = True
        self.executions: Counter[int] = Counter()
        self.deaths: Counter[int] = Counter()
        self.counters: Counter[str] = Counter()
        self.next_execution = 0
        self.trace: list[str] = []
        self.calls = random_calls(rng, streams=self.streams, nested=nested, delays=delays)
        self.pending = list(self.calls.values())
        for _ in range(2):
            self.spawn()

    # ---- instances ----

    def spawn(self) -> None:
        """A new instance starts."""
        self.born += 1
        settings = EngineSettings(
            f"i{self.born}",
            streams=self.streams,
            max_attempts=MAX_ATTEMPTS,
            horizon=3,
            window=5,
            isolated=1,
            parked_per_depth=2,
            ordered=self.keys.ordered,
            retry=self.delays.spec,
            on_stream_failure="restart" if self.restart else "fail",
        )
        known = self.cancellations_type()
        engine = self.engine_type(settings, self.rng.random, known)
        instance = Instance(f"i{self.born}", engine, cancellations=known)
        instance.engine.capacity(self.now_ms, 1 if self.nested else 3)
        instance.shared = self.born * 1000
        self.instances.append(instance)

    def stuck(self, instance: Instance) -> bool:
        """Whether its own code stands still."""
        return instance.frozen_until > self.now_ms or instance.stalled_until > self.now_ms

    def crash(self, instance: Instance) -> None:
        """SIGKILL: some of its queue had reached the broker."""
        self.trace.append(f"{self.now_ms} crash {instance.name}")
        self.counters["crashes"] += 1
        self.instances.remove(instance)
        for sent in instance.queue[: self.rng.randint(0, len(instance.queue))]:
            self.append(sent)
        for execution in instance.executions.values():
            self.deaths[execution.call.number] += 1
        self.counters.update(instance.engine.counters)

    def kill_executor(self, instance: Instance, executor: int) -> None:
        """An executor dies with everything in it."""
        hit = [run_id for run_id, x in instance.executions.items() if x.executor == executor]
        self.trace.append(f"{self.now_ms} executor {executor} of {instance.name} dies with {hit}")
        for run_id in hit:
            self.deaths[instance.executions.pop(run_id).call.number] += 1
        if executor == instance.shared:
            instance.shared += 1
        if hit:
            instance.engine.executor_died(self.now_ms, hit, "killed")
            self.carry_out(instance)

    # ---- carrying out ----

    def carry_out(self, instance: Instance) -> None:
        """Does what the engine decided."""
        for action in instance.engine.take():
            self._carry_out(instance, action)

    def _carry_out(self, instance: Instance, action: Action) -> None:
        if isinstance(action, SendResult | SendDeadLetter | SendInput | SendTimer):
            instance.queue.append(Sent(action, self.now_ms))
        elif isinstance(action, Commit):
            instance.commits.append((instance.member, instance.generation, action))
        elif isinstance(action, Start):
            self.next_execution += 1
            call = self.calls[int.from_bytes(action.call_id, "big")]
            partition = InputPartition(InputTopic(action.token.topic), action.token.partition)
            if self.cancels.concern(call, instance.cancels_before.get(partition, 0)):
                raise Broken(f"C {call} started, and its cancellation was in the log before the assignment")
            self.keys.start(self, instance, call)
            self.delays.start(self, call, action)
            executor = -self.next_execution if action.isolated else instance.shared
            self.executions[call.number] += 1
            execution = Execution(self.next_execution, action.run_id, call, executor, action.attempt)
            instance.executions[action.run_id] = execution
            self.trace.append(f"{self.now_ms} {instance.name} runs {call} {tuple(action.token)}")
        elif isinstance(action, ReadResults):
            fold = self.fold(action.call_id, action.end_offset)
            instance.inbox.append(
                lambda: instance.engine.fence_read(
                    self.now_ms, action.run_id, fold.seen > 0, fold.outcome is not None
                )
            )
        elif isinstance(action, Released):
            for partition in action.partitions:
                instance.positions.pop(partition, None)
                instance.revoking.discard(partition)
                self.owned.get(instance.member, set()).discard(partition)
        elif isinstance(action, Interrupt) and action.cancelled:
            if action.run_id in instance.executions:
                execution = instance.executions[action.run_id]
                execution.to_stop, execution.deadly = True, execution.deadly or action.forced
        elif isinstance(action, ReadCancellations):
            self.cancels.ask_to_read(self, instance, action)
        elif isinstance(action, Interrupt):
            if instance.executions.pop(action.run_id, None) is not None:
                instance.inbox.append(lambda: instance.engine.finished(self.now_ms, action.run_id, b"", None))
        elif isinstance(action, Pause):
            instance.paused.add(action.partition)
        elif isinstance(action, Resume):
            instance.paused.discard(action.partition)
        elif isinstance(action, Unpark):
            if action.run_id in instance.executions:
                instance.executions[action.run_id].granted = True
        elif isinstance(action, Credit):
            self.counters["credits"] += action.chunks

    # ---- broker ----

    def fold(self, call_id: bytes, end: int | None = None) -> Fold:
        """What a reader of the call's results has seen up to `end`."""
        fold = self.fold_type()
        for result in [each for each in self.results[:end] if each.call_id == call_id]:
            fold.feed(result)
        return fold

    def append(self, sent: Sent) -> int:
        """The broker takes a record."""
        action = sent.action
        if isinstance(action, SendResult):
            self.results.append(action.result)
            return len(self.results) - 1
        if isinstance(action, SendDeadLetter):
            headers = action.record.headers
            self.dead.append(headers.call_id if headers is not None else b"")
            return len(self.dead) - 1
        return self.delays.write(action) if isinstance(action, SendTimer) else self.append_input(action)

    def append_input(self, action: SendInput | SendTimer) -> int:
        """The broker takes an input record; all retries go to one partition."""
        target = action.target._replace(partition=0) if action.target.topic else action.target
        log = self.logs[target]
        log.append((action.headers, action.value))
        return len(log) - 1

    def deliver(self, instance: Instance) -> None:
        """The broker takes and acknowledges one record of a producer's queue, in order."""
        if instance.queue and self.broker_frozen_until <= self.now_ms:
            sent = instance.queue.pop(0)
            offset = self.append(sent)
            self._report(instance, sent, True, offset)

    def _report(self, instance: Instance, sent: Sent, ok: bool, offset: int) -> None:
        send_id = sent.action.send_id
        instance.inbox.append(lambda: instance.engine.reported(self.now_ms, send_id, ok, offset))

    def expire(self, instance: Instance) -> None:
        """Records older than message.timeout.ms are reported as failed; some arrived, or still will."""
        for sent in [sent for sent in instance.queue if self.now_ms - sent.at_ms > MESSAGE_MS]:
            instance.queue.remove(sent)
            fate = self.rng.random()
            if fate < 0.25:
                self.append(sent)
            elif fate < 0.5:
                self.limbo.append((self.now_ms + self.rng.randint(100, 8000), sent))
            self._report(instance, sent, False, -1)

    def serve_commit(self, instance: Instance) -> None:
        """The broker answers the oldest commit: taken, refused, or the answer is lost."""
        if not instance.commits or instance.serving or self.broker_frozen_until > self.now_ms:
            return
        member, generation, commit = instance.commits.pop(0)
        instance.serving = True
        fate = self.rng.random() if self.faults else 0.5
        known = member in self.members
        if fate < 0.05:
            outcome = CommitOutcome.UNKNOWN
        elif not known:
            outcome = CommitOutcome.LOST
        elif generation != self.generation:
            outcome = CommitOutcome.REFUSED
        else:
            self.apply(instance, commit)
            outcome = CommitOutcome.UNKNOWN if fate > 0.97 else CommitOutcome.OK
        if outcome in (CommitOutcome.LOST, CommitOutcome.REFUSED):
            self.counters["refused"] += 1

        def answer() -> None:
            instance.serving = False
            instance.engine.committed(self.now_ms, commit.commit_id, outcome)

        instance.inbox.append(answer)

    def apply(self, instance: Instance, commit: Commit) -> None:
        """A commit is in force; what it says must be true now."""
        before = dict(self.committed)
        for partition, (offset, text) in commit.offsets.items():
            if offset < before[partition][0]:
                raise Broken(f"P4 the committed offset of {partition} went back to {offset}")
            if decode_metadata(text) is None:
                raise Broken(f"P4 unreadable metadata {text!r}")
            self.committed[partition] = (offset, text)
        for partition, (offset, text) in commit.offsets.items():
            self.check(partition, before[partition][0], offset, text)

    def finished_above(self, text: str) -> set[int]:
        """Offsets finished above the committed one."""
        meta = decode_metadata(text)
        assert meta is not None
        return {x for first, length in meta.finished for x in range(first, first + length)}

    def live(self, call_id: bytes) -> Iterator[tuple[InputPartition, int]]:
        """Unfinished records of a call, as the committed state has them."""
        for partition, log in self.logs.items():
            offset, text = self.committed[partition]
            finished = self.finished_above(text)
            for at in range(offset, len(log)):
                if log[at][0].call_id == call_id and at not in finished:
                    yield partition, at
        yield from self.delays.live(call_id)

    def check(self, partition: InputPartition, low: int, high: int, text: str) -> None:
        """P4 and P7: what is finished has durable evidence, and an open call keeps a live record."""
        for at in [*range(low, high), *self.finished_above(text)]:
            if at >= len(self.logs[partition]):
                raise Broken(f"P4 {partition} committed {at}, beyond the end of the log")
            headers = self.logs[partition][at][0]
            if self.fold(headers.call_id).outcome is None and next(self.live(headers.call_id), None) is None:
                raise Broken(f"P7 {headers.call_id[-1]} has no outcome and no live record: {partition}@{at}")

    # ---- group ----

    def rebalance(self) -> None:
        """Sessions expire, members join, partitions move in two phases."""
        for member, instance in list(self.members.items()):
            gone = instance not in self.instances or instance.member != member
            if self.now_ms - instance.heartbeat_ms > SESSION_MS or (gone and self.rng.random() < 0.1):
                del self.members[member]
                self.owned.pop(member, None)
                self.phase = "joining"
        for instance in self.instances:
            if self.stuck(instance) or instance.member in self.members or self.rng.random() > 0.3:
                continue
            instance.engine.lost(self.now_ms, list(instance.positions))
            instance.positions.clear()
            instance.revoking.clear()
            self.carry_out(instance)
            self.born += 1
            instance.member = self.born
            instance.heartbeat_ms = self.now_ms
            self.members[self.born] = instance
            self.owned[self.born] = set()
            self.phase = "joining"
        if self.phase == "stable" and self.faults and self.rng.random() < self.shuffle_chance:
            self.phase = "joining"
        self._move()

    def _move(self) -> None:
        busy = any(x.revoking for x in self.members.values())
        if self.phase == "joining":
            if not self.members or busy or any(self.stuck(x) for x in self.members.values()):
                return
            self.generation += 1
            order = list(PARTITIONS)
            self.rng.shuffle(order)
            members = sorted(self.members)
            self.target = {member: set(order[n :: len(members)]) for n, member in enumerate(members)}
            for member in members:
                instance = self.members[member]
                instance.generation = self.generation
                leaving = sorted(self.owned[member] - self.target[member])
                if leaving:
                    instance.revoking = set(leaving)
                    instance.engine.revoke(self.now_ms, leaving)
                    self.carry_out(instance)
            self.phase = "revoking"
            self._assign()
        elif self.phase == "revoking" and not busy:
            self.generation += 1
            for instance in self.members.values():
                instance.generation = self.generation
            self.phase = "stable"
            self._assign()

    def _assign(self) -> None:
        held = {partition for owned in self.owned.values() for partition in owned}
        for member, instance in self.members.items():
            for partition in sorted(self.target[member] - self.owned[member] - held):
                self.owned[member].add(partition)
                end = len(self.logs[partition])
                start = instance.engine.assigned(self.now_ms, partition, self.committed[partition], 0, end)
                instance.positions[partition] = start
                instance.cancels_before[partition] = len(self.cancels.asked)
                instance.paused.discard(partition)
            self.carry_out(instance)

    # ---- time ----

    def advance(self, milliseconds: int) -> None:
        """Time passes; late records arrive, calls are submitted."""
        self.now_ms += milliseconds
        for due, sent in [entry for entry in self.limbo if entry[0] <= self.now_ms]:
            self.append(sent)
            self.limbo.remove((due, sent))
        self.delays.fire(self)

    def submit(self) -> None:
        """The next call is accepted."""
        if self.pending:
            call = self.pending.pop(0)
            log = self.logs[self.keys.partition(self, call)]
            log.append((InputHeaders(call.id, "f", deadline_ms=self.delays.deadline(self, call)), b"body"))

    def act(self, instance: Instance) -> None:
        """One thing an instance can do now."""
        choices: list[str] = ["tick"]
        if instance.inbox:
            choices += ["inbox"] * 3
        if instance.executions:
            choices += ["step"] * 2
        if instance.positions:
            choices += ["poll"] * 2
        if instance.reads_from_ms <= self.now_ms:
            choices += ["reads"] * len(instance.reads)
            choices += ["cancels"] * (instance.cancels_read < len(self.cancels.asked))
        choice = self.rng.choice(choices)
        if choice == "inbox":
            instance.inbox.pop(0)()
        elif choice == "step":
            if self.rng.random() >= self.slow:
                self.step(instance, self.rng.choice(list(instance.executions.values())))
        elif choice == "poll":
            self.poll(instance, self.rng.choice(list(instance.positions)))
        elif choice == "reads":
            instance.reads.pop(0)()
        elif choice == "cancels":
            self.cancels.read(self, instance, instance.cancels_read + 1)
        else:
            instance.engine.tick(self.now_ms)
        if instance in self.instances:
            self.carry_out(instance)

    def poll(self, instance: Instance, partition: InputPartition) -> None:
        """The next record of a partition comes in."""
        at = instance.positions[partition]
        log = self.logs[partition]
        if at < len(log) and partition not in instance.revoking and partition not in instance.paused:
            instance.positions[partition] = at + 1
            headers, body = log[at]
            key = self.keys.of(self.calls[int.from_bytes(headers.call_id, "big")])
            record = InputRecord(at, headers, body, key)
            instance.engine.records(self.now_ms, partition, [record])

    def step(self, instance: Instance, execution: Execution) -> None:
        """User code goes one step on."""
        call = execution.call
        if execution.to_stop and self._stop(instance, execution):
            return
        if call.kind == "kill-instance":
            self.crash(instance)
        elif call.kind == "kill-executor":
            self.kill_executor(instance, execution.executor)
        elif call.kind == "nest" and not self._nest(instance, execution):
            return
        elif execution.step < call.chunks:
            chunk = f"{execution.id}:{execution.step}".encode()
            execution.step += 1
            instance.engine.chunks(self.now_ms, execution.run_id, [chunk])
        else:
            del instance.executions[execution.run_id]
            failure = self.delays.end(self, call, execution.attempt)
            value = None if failure else str(execution.id).encode()
            instance.engine.finished(self.now_ms, execution.run_id, value, failure)

    def _stop(self, instance: Instance, execution: Execution) -> bool:
        """User code that was told to stop: it ends, or goes on, or is killed for that."""
        fate = self.rng.random()
        if execution.child is not None and not execution.granted:
            if not execution.asked and fate < 0.5:
                execution.asked = True
                instance.engine.unparked(self.now_ms, execution.run_id)
            elif execution.deadly and fate > 0.8:
                self.kill_executor(instance, execution.executor)
            return True
        if fate < 0.6:
            del instance.executions[execution.run_id]
            failure = Failure("CancelledError", "", code="CANCELLED")
            instance.engine.finished(self.now_ms, execution.run_id, None, failure)
            return True
        if execution.deadly and fate > 0.9:
            self.kill_executor(instance, execution.executor)
            return True
        return False

    def _nest(self, instance: Instance, execution: Execution) -> bool:
        """Calls the same function, waits, comes back; True once the code may go on."""
        if execution.child is None:
            number = len(self.calls) + 1
            ancestry = execution.call.ancestry + execution.call.id
            kind = "nest" if len(ancestry) < 32 and self.rng.random() < 0.3 else "ok"
            execution.child = self.calls[number] = Call(number, kind, 0, ancestry)
            log = self.logs[PARTITIONS[self.rng.randrange(3)]]
            log.append((InputHeaders(execution.child.id, "f", ancestry=ancestry), b"body"))
            instance.engine.parked(self.now_ms, execution.run_id)
            self.counters["parked"] += 1
        elif not execution.asked and self.fold(execution.child.id).outcome is not None:
            execution.asked = True
            instance.engine.unparked(self.now_ms, execution.run_id)
        return execution.granted

    def fault(self) -> None:
        """Perhaps something breaks."""
        fate = self.rng.random()
        live = [instance for instance in self.instances if not self.stuck(instance)]
        if not live or fate > 0.036:
            return
        instance = self.rng.choice(live)
        until = self.now_ms + self.rng.randint(2000, 16000)
        if fate < 0.006:
            self.crash(instance)
        elif fate < 0.016:
            instance.frozen_until = until
            self.trace.append(f"{self.now_ms} freeze {instance.name}")
        elif fate < 0.024:
            instance.stalled_until = until
        elif fate < 0.030:
            self.broker_frozen_until = until - 5000
        elif instance.executions:
            self.kill_executor(instance, self.rng.choice(list(instance.executions.values())).executor)

    def tick(self) -> None:
        """One round of everything."""
        if self.rng.random() < 0.3:
            self.advance(self.rng.randint(100, 1500))
        if self.rng.random() < 0.3:
            self.submit()
        if self.faults:
            self.fault()
        self.cancels.perhaps(self)
        if self.rng.random() < (
            0.2 if (count := len(self.instances)) < 2 else 0.004 if self.faults and count < 4 else 0
        ):
            self.spawn()
        self.rebalance()
        for instance in list(self.instances):
            self.turn(instance)

    def turn(self, instance: Instance) -> None:
        """One instance and its producer get some time."""
        if instance.frozen_until > self.now_ms:
            return
        self.expire(instance)
        if instance.member in self.members:
            instance.heartbeat_ms = self.now_ms
        for _ in range(2):
            if self.rng.random() < 0.5:
                self.deliver(instance)
            if self.rng.random() < 0.5:
                self.serve_commit(instance)
        for _ in range(4):
            if instance.stalled_until <= self.now_ms and instance in self.instances:
                self.act(instance)

    # ---- judging ----

    def heal(self, rounds: int = 8000) -> None:
        """No more faults: everything must come to its end."""
        self.faults = False
        self.broker_frozen_until = -1
        for instance in self.instances:
            instance.frozen_until = instance.stalled_until = -1
        for _ in range(rounds):
            self.tick()
            if (
                not self.pending
                and not self.limbo
                and all(self.settled(call) for call in self.calls.values())
            ):
                return
        open_calls = [call for call in self.calls.values() if not self.settled(call)]
        where = [(call, self.fold(call.id).outcome, list(self.live(call.id))) for call in open_calls]
        raise Broken(f"P7 calls never end: {where}")

    def settled(self, call: Call) -> bool:
        """Whether a call has its outcome and no record left to work on."""
        return self.fold(call.id).outcome is not None and next(self.live(call.id), None) is None

    def judge(self) -> None:
        """Every promise, at the end of the history."""
        for instance in self.instances:
            self.counters.update(instance.engine.counters)
        for call in self.calls.values():
            judge_call(self, call, *folded(self, call))


def history(seed: int, *, rounds: int = 260, **options: object) -> World:
    """One whole history: faults, healing, judgement."""
    world = World(random.Random(seed), **options)  # type: ignore[arg-type]
    for _ in range(rounds):
        world.tick()
    world.heal()
    world.judge()
    return world

"""Executors of a function written in a test, driven through the pool as a coordinator drives them."""

from __future__ import annotations

import os
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelton.core.call import CallId, Invocation, mint_call_id
from pelton.protocol import codec, payload
from pelton.protocol.frames import FromExecutor, ToExecutor
from pelton_platform.confinement import NO_LIMITS, Limits
from pelton_platform.coordinator.executors import ExecutorExit, ExecutorPool, ExecutorSettings

FUNCTION = "under-test"
INSTANCE = "instance-1"
PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: value (decoded), failure (type, message, traceback, code, retriable) or poison."""

    value: Any = None
    failure: tuple[str, str, str, str, bool, int] | None = None
    poison: str | None = None
    submitted_ms: int = 0


def invocation(call_id: CallId, *args: Any, function: str = FUNCTION, **kwargs: Any) -> bytes:
    """The body of an input record."""
    arguments = payload.encode_arguments(args, kwargs)
    return codec.encode_invocation(
        Invocation(call_id=call_id, function=function, arguments=arguments, submitted_ms=77)
    )


def new_call_id() -> CallId:
    """A fresh call id."""
    return mint_call_id(int(time.time() * 1000), 3, os.urandom(8))


def wait_for_file(path: Path, seconds: float = PATIENCE_S) -> None:
    """Waits until user code made a file."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear in time"
        time.sleep(0.005)


class Rig:
    """A pool and everything it said.

    Attributes:
        pool: the pool.
        executor: id of the executor that was started last.
        ended: how runs ended, by run id.
        chunks: encoded chunks by run id.
        logs: LOG records.
        exits: ends of executors.
        ready: ids of executors that became ready.
        credits: acknowledge chunks as they come.
    """

    def __init__(self, settings: ExecutorSettings) -> None:
        self.ended: dict[int, Ended] = {}
        self.chunks: dict[int, list[bytes]] = {}
        self.logs: list[list[Any]] = []
        self.exits: list[ExecutorExit] = []
        self.ready: list[int] = []
        self.call_ids: dict[int, CallId] = {}
        self.credits = True
        self.executor = 0
        self._runs = 0
        self._changed = threading.Condition()
        self._hold = threading.Lock()
        self.pool = ExecutorPool(settings, self._records, self._ready, self._exit)

    def start(self, *, isolated: bool = False) -> int:
        """Starts an executor and waits until it is ready."""
        self.executor = self.pool.start(isolated=isolated)
        wanted = self.executor
        self.wait(lambda: wanted in self.ready or bool(self.exit_of(wanted)))
        assert wanted in self.ready, self.exit_of(wanted)
        return wanted

    @property
    def pid(self) -> int:
        """Pid of the executor that was started last."""
        return self.pool.pids()[self.executor]

    def exit_of(self, executor: int) -> ExecutorExit | None:
        """The end of an executor, None while it lives."""
        return next((end for end in list(self.exits) if end.executor_id == executor), None)

    def begin(
        self, *args: Any, attempt: int = 1, delivery: int = 1, deadline_ms: int = 0, **kwargs: Any
    ) -> int:
        """Sends a run; returns its id."""
        call_id = new_call_id()
        body = invocation(call_id, *args, **kwargs)
        return self.send_body(call_id, body, attempt=attempt, delivery=delivery, deadline_ms=deadline_ms)

    def send_body(
        self, call_id: CallId, body: bytes, *, attempt: int = 1, delivery: int = 1, deadline_ms: int = 0
    ) -> int:
        """Sends a run with a body as it is; returns its id."""
        self._runs += 1
        run = self._runs
        self.call_ids[run] = call_id
        record = [int(ToExecutor.RUN), run, call_id, attempt, delivery, deadline_ms, body]
        assert self.pool.send(self.executor, [record])
        return run

    def end_of(self, run: int) -> Ended:
        """Waits for the end of a run."""
        self.wait(lambda: run in self.ended or bool(self.exit_of(self.executor)))
        assert run in self.ended, self.exit_of(self.executor)
        return self.ended[run]

    def call(self, *args: Any, **kwargs: Any) -> Ended:
        """Runs it and waits for the end."""
        return self.end_of(self.begin(*args, **kwargs))

    def values(self, run: int) -> list[Any]:
        """The chunks of a run, decoded."""
        return [payload.decode(chunk) for chunk in self.chunks.get(run, [])]

    def acknowledge(self, run: int, chunks: int) -> None:
        """Gives credit back."""
        self.pool.send(self.executor, [[int(ToExecutor.CREDIT), run, chunks]])

    def wait(self, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        """Waits until a condition on what was said holds."""
        with self._changed:
            assert self._changed.wait_for(condition, seconds), "the condition did not become true in time"

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Holds up the reading thread of the pool at the next record it gets."""
        with self._hold:
            yield

    def wait_exit(self) -> ExecutorExit:
        """Waits for the end of the executor that was started last."""
        self.wait(lambda: self.exit_of(self.executor) is not None)
        end = self.exit_of(self.executor)
        assert end is not None
        return end

    def lines(self, source: str | None = None) -> list[str]:
        """Texts that were logged."""
        return [log[6] for log in list(self.logs) if source is None or log[3] == source]

    def _records(self, executor: int, records: list[list[Any]]) -> None:
        with self._hold, self._changed:
            for record in records:
                self._take(executor, record)
            self._changed.notify_all()

    def _take(self, executor: int, record: list[Any]) -> None:
        kind, run = record[0], record[1]
        if kind == FromExecutor.CHUNKS:
            self.chunks.setdefault(run, []).extend(record[2])
            if self.credits:
                self.pool.send(executor, [[int(ToExecutor.CREDIT), run, len(record[2])]])
        elif kind == FromExecutor.LOG:
            self.logs.append(record)
        else:
            assert run not in self.ended, "a run ended twice"
            if kind == FromExecutor.POISON:
                self.ended[run] = Ended(poison=record[2])
            else:
                _, _, value, failure, submitted_ms = record
                assert (value is None) != (failure is None)
                self.ended[run] = Ended(
                    None if value is None else payload.decode(value),
                    None if failure is None else tuple(failure),
                    submitted_ms=submitted_ms,
                )

    def _ready(self, executor: int, pid: int) -> None:
        with self._changed:
            assert pid > 0
            self.ready.append(executor)
            self._changed.notify_all()

    def _exit(self, end: ExecutorExit) -> None:
        with self._changed:
            self.exits.append(end)
            self._changed.notify_all()


@contextmanager
def pool_of(
    folder: Path,
    source: str,
    *,
    kind: str = "sync",
    slots: int = 1,
    chunk_credit: int = 64,
    env: Mapping[str, str] | None = None,
    qualname: str = "run",
    module: str = "worker",
    limits: Limits = NO_LIMITS,
) -> Iterator[Rig]:
    """A pool for `run` of a module with this source, nothing started; killed and gone afterwards."""
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    (bundle / "worker.py").write_text(textwrap.dedent(source))
    rig = Rig(
        ExecutorSettings(
            namespace="test",
            function=FUNCTION,
            kind=kind,
            module=module,
            qualname=qualname,
            bundle=bundle,
            slots=slots,
            container="box",
            instance=INSTANCE,
            version=1,
            chunk_credit=chunk_credit,
            env=env or {},
            limits=limits,
        )
    )
    try:
        yield rig
    finally:
        for executor in rig.pool.pids():
            rig.pool.kill(executor)
        rig.pool.close(0.0)


@contextmanager
def executor_of(folder: Path, source: str, **settings: Any) -> Iterator[Rig]:
    """As `pool_of`, with one shared executor ready."""
    with pool_of(folder, source, **settings) as rig:
        rig.start()
        yield rig

"""The ledgers kept outside the system: what was sent, what was executed, what readers saw."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = r'''
"""Functions that write down what they do, each executor in a file of its own."""
import itertools, os, time
from pelton import context

_COUNT = itertools.count(1)
_FILES = {}

def _note(kind, execution, *more):
    name = context().function
    file = _FILES.get(name)
    if file is None:
        path = os.path.join(os.environ["LEDGER"], f"{name}.{context().instance}.{os.getpid()}")
        file = _FILES[name] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    words = (kind, str(time.monotonic_ns()), execution, *map(str, more))
    os.write(file, (" ".join(words) + "\n").encode())

def _begin():
    here = context()
    execution = f"{os.getpid()}-{next(_COUNT)}"
    _note("S", execution, here.call_id, here.attempt, here.delivery)
    return execution

def _hold(ms):
    if ms >= 0:
        time.sleep(ms / 1000)
    while ms < 0:
        time.sleep(0.05)

def quick(number, hold_ms=0, boom=False):
    """One value: the number it was given and the execution that made it."""
    execution = _begin()
    _hold(hold_ms)
    if boom:
        _note("E", execution)
        raise ValueError(f"call {number} is to fail")
    _note("E", execution)
    return [number, execution]

def flow(number, chunks, hold_ms=0):
    """So many chunks: the number, the place in the stream, the execution that made them."""
    execution = _begin()
    for index in range(chunks):
        _note("C", execution, index)
        yield [number, index, execution]
        _hold(hold_ms)
    _note("E", execution)

def deadly(number):
    """Kills the instance that runs it, each time."""
    execution = _begin()
    os.kill(os.getppid(), 9)
    _hold(-1)
'''
"""The code of the functions under fault; `hold_ms` below 0 holds for ever."""


@dataclass(slots=True)
class Sent:
    """One call as its caller knows it.

    Attributes:
        number: the argument that names it.
        function: which function.
        chunks: chunks it is asked for; 0 for a plain call.
        boom: whether user code raises.
        call_id: UUID text; "" when it was never handed over.
        accepted: "yes", "no" (certainly not in the log), or "unknown".
    """

    number: int
    function: str
    chunks: int = 0
    boom: bool = False
    call_id: str = ""
    accepted: str = "unknown"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one reader saw of one call.

    Attributes:
        chunks: what the stream yielded, decoded, in order.
        value: the value of a plain call.
        error: "" for success, else the class of the error raised.
    """

    chunks: tuple[Any, ...] = ()
    value: Any = None
    error: str = ""


@dataclass(slots=True)
class Execution:
    """One time user code began to run a call.

    Attributes:
        id: pid and a count, unique in a run.
        call_id: UUID text.
        function, instance, pid: where it ran.
        attempt, delivery: what the context said.
        begun_ns: monotonic time of the machine.
        ended_ns: the same, 0 while it runs and for ever when it was killed.
        chunks: indexes it yielded.
    """

    id: str
    call_id: str
    function: str
    instance: str
    pid: int
    attempt: int
    delivery: int
    begun_ns: int
    ended_ns: int = 0
    chunks: list[int] = field(default_factory=list)


class ExecutedLedger:
    """Reads what executors wrote; files only grow, so that each line is read once.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.executions: dict[str, Execution] = {}
        self.by_call: dict[str, list[Execution]] = defaultdict(list)
        self._open: dict[int, dict[str, Execution]] = defaultdict(dict)

    def poll(self) -> None:
        """Takes in what was written since the last time."""
        for path in self._folder.iterdir():
            known = self._read.get(path, 0)
            if path.stat().st_size == known:
                continue
            with path.open("rb") as file:
                file.seek(known)
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._read[path] = known + whole
            function, instance, pid = path.name.split(".")
            for line in data[:whole].decode().splitlines():
                self._take(line.split(" "), function, instance, int(pid))

    def _take(self, words: list[str], function: str, instance: str, pid: int) -> None:
        kind, at_ns, execution = words[0], int(words[1]), words[2]
        if kind == "S":
            call_id, attempt, delivery = words[3], int(words[4]), int(words[5])
            begun = Execution(execution, call_id, function, instance, pid, attempt, delivery, at_ns)
            self.executions[execution] = begun
            self.by_call[call_id].append(begun)
            self._open[pid][execution] = begun
        elif kind == "C":
            self.executions[execution].chunks.append(int(words[3]))
        else:
            self.executions[execution].ended_ns = at_ns
            self._open[pid].pop(execution, None)

    def open(self, pid: int) -> list[Execution]:
        """Executions in this executor that have begun and not ended, as far as it was read."""
        return list(self._open[pid].values())

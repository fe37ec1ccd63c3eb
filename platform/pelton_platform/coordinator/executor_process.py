"""One executor as its parent sees it: settings, environment, channel, raw output, and how it ended."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

from pelton.core.call import Failure
from pelton.protocol.frames import FrameReader, ToExecutor, encode_write
from pelton_platform.confinement import NO_LIMITS, Confinement, Limits
from pelton_platform.redaction import NOTHING, Redactor

MAX_RAW_LINE_BYTES: Final = 16 * 1024
"""Longer lines on descriptors 1 and 2 are cut into lines of this length."""

MAX_RAW_LINES_PER_S: Final = 5_000
"""More raw lines of one descriptor in a second are dropped and counted."""

_KEPT_WORDS: Final = 4096
_WRITE_BYTES: Final = 4 * 1024 * 1024
_SOCKET_BUFFER: Final = 1024 * 1024
# What an executor's environment starts from; all else has to be given.
_INHERITED: Final = (
    "PATH", "HOME", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "USER", "LOGNAME", "PYTHONPATH",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
)  # fmt: skip
_WITHHELD: Final = ("PELTON_KEY", "PELTON_KAFKA", "PELTON_BOOTSTRAP")

Record = Sequence[Any]


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """What an executor has to know.

    Attributes:
        namespace, container, instance, version: where it belongs.
        function, kind, module, qualname: what it runs.
        bundle: folder of the source bundle, its working directory.
        slots: attempts at the same time in a shared executor; an isolated one has one.
        chunk_credit: chunks a run may have unacknowledged.
        env: variables of the container, secrets included.
        log_level: level of the root logger of user code.
        code: SHA-256 hex of the verified code of a function that has no module, else "".
        exchange: folder by which large payloads go to and fro; None refuses them.
        redact: takes the values of secrets out of what is written down.
        python: interpreter to run.
        root: files of the image by their absolute paths, "" for none.
        workdir: working folder that the image sets, "" for that of the sources.
        limits: memory and CPU that one executor may use.
    """

    namespace: str
    function: str
    kind: str
    module: str
    qualname: str
    bundle: Path
    slots: int
    container: str
    instance: str
    version: int
    chunk_credit: int = 256
    env: Mapping[str, str] = field(default_factory=dict)
    log_level: str = "INFO"
    code: str = ""
    exchange: Path | None = None
    redact: Redactor = NOTHING
    python: str = sys.executable
    root: str = ""
    workdir: str = ""
    limits: Limits = NO_LIMITS

    def command(self, fd: int) -> list[str]:
        """What starts an executor that talks over a descriptor."""
        command = [self.python, "-P", "-m", "pelton_platform.executor", "--fd", str(fd)]
        return [*command, "--root", self.root] if self.root else command

    def hello(self, *, isolated: bool) -> dict[str, Any]:
        """The first record."""
        names = ("namespace", "function", "kind", "module", "qualname", "container", "instance", "version")
        hello: dict[str, Any] = {
            name: getattr(self, name) for name in (*names, "chunk_credit", "log_level", "code", "workdir")
        }
        exchange = "" if self.exchange is None else str(self.exchange)
        slots = 1 if isolated else self.slots
        return hello | {"bundle": str(self.bundle), "exchange": exchange, "slots": slots}


@dataclass(frozen=True, slots=True)
class ExecutorExit:
    """The end of an executor; everything it said was delivered before.

    Attributes:
        executor_id: which one.
        pid: its pid, 0 when it could not be started.
        code: exit code, negative for the signal that ended it; -1 with pid 0.
        reason: one sentence for people and for failures.
        asked: it was stopped or killed by its owner.
        isolated: it was started for one suspect.
        ready: user code had been loaded.
        broken: why user code could not be loaded, None when it was not that.
        peak_memory: bytes resident at most, 0 when not known.
        last_words: end of what it wrote to descriptor 2.
        runs: ids of the runs it was sent and did not end.
        out_of_memory: it took more memory than it may.
    """

    executor_id: int
    pid: int
    code: int
    reason: str
    asked: bool
    isolated: bool
    ready: bool
    broken: Failure | None
    peak_memory: int
    last_words: str
    runs: frozenset[int]
    out_of_memory: bool = False


def executor_environment(given: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    """A few variables of ours and what the container gives; never keys, never how to reach Kafka."""
    env = {name: inherited[name] for name in _INHERITED if name in inherited} | dict(given)
    return {name: value for name, value in env.items() if not name.startswith(_WITHHELD)}


def writes(records: Sequence[Record]) -> list[bytes]:
    """Encodes records in as many writes as keep each one moderate."""
    batches: list[list[Record]] = [[]]
    size = 0
    for record in records:
        if record[0] == ToExecutor.RUN:
            size += len(record[6])
            if size > _WRITE_BYTES and batches[-1]:
                batches.append([])
                size = len(record[6])
        batches[-1].append(record)
    return [encode_write(batch) for batch in batches]


class Channel:
    """Our end of a socket pair; what it does not take at once is kept."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._lock = threading.Lock()
        self._kept: deque[memoryview] = deque()
        self._closed = False

    def post(self, data: bytes) -> bool | None:
        """True when all was written, False when some of it is kept, None when the channel is over."""
        with self._lock:
            if self._closed:
                return None
            self._kept.append(memoryview(data))
            return self._write()

    def write_on(self) -> bool:
        """Writes what was kept; True when nothing is left."""
        with self._lock:
            return self._closed or self._write() is not False

    def close(self) -> None:
        """Ends it; nothing is written any more."""
        with self._lock:
            self._closed = True
            self._kept.clear()
            self.socket.close()

    def _write(self) -> bool | None:
        kept = self._kept
        try:
            while kept:
                sent = self.socket.send(kept[0], socket.MSG_DONTWAIT)
                if sent == len(kept[0]):
                    kept.popleft()
                else:
                    kept[0] = kept[0][sent:]
        except BlockingIOError:
            return False
        except OSError:
            # The other side is gone; its exit is told by the reading thread.
            self._closed = True
            kept.clear()
            return None
        return True


class Executor:
    """One executor; all but `channel`, `asked`, `given`, `runs` belong to the pool's reading thread."""

    def __init__(self, executor_id: int, isolated: bool) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
        self.id = executor_id
        self.isolated = isolated
        self.channel = Channel(ours)
        self.child_end = theirs
        self.frames = FrameReader()
        self.child: Popen[bytes] | None = None
        self.pidfd = -1
        self.raw: dict[int, RawLines] = {}
        self.begun = False
        self.listening = False
        self.given = False
        self.asked = False
        self.ready = False
        self.broken: Failure | None = None
        self.kill_reason = ""
        self.runs: set[int] = set()
        self.peak_memory = 0
        self.confinement: Confinement | None = None
        self.out_of_memory = False
        self.memory_limit = 0

    def exit(self, code: int) -> ExecutorExit:
        """How it ended."""
        return ExecutorExit(
            executor_id=self.id,
            pid=0 if self.child is None else self.child.pid,
            code=code,
            reason=self._reason(code),
            asked=self.asked,
            isolated=self.isolated,
            ready=self.ready,
            broken=self.broken,
            peak_memory=self.peak_memory,
            last_words=next((raw.last_words() for raw in self.raw.values() if raw.source == "stderr"), ""),
            runs=frozenset(self.runs),
            out_of_memory=self.out_of_memory,
        )

    def _reason(self, code: int) -> str:
        if self.broken is not None:
            return f"user code could not be loaded: {self.broken.type}: {self.broken.message}"
        if self.child is None:
            return "the executor was stopped before it started"
        if self.out_of_memory:
            peak, limit = self.peak_memory / 2**20, self.memory_limit / 2**20
            return f"the executor took more than its {limit:.0f} MiB of memory, {peak:.0f} MiB at its peak"
        if self.kill_reason:
            return f"the executor was killed: {self.kill_reason}"
        if code < 0:
            return f"the executor was ended by {signal.Signals(-code).name}"
        return f"the executor ended with exit code {code}"


class RawLines:
    """Cuts what was written to a descriptor into lines, so many a second.

    Attributes:
        source: name of the descriptor.
        ended: whether it was closed.
        dropped: lines dropped and not told of yet.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.ended = False
        self._rest = b""
        self._words = b""
        self._window = 0.0
        self._count = 0
        self.dropped = 0

    def feed(self, data: bytes, now: float) -> list[str]:
        """Takes bytes; returns the lines that are complete and not too many."""
        self._words = (self._words + data)[-_KEPT_WORDS:]
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > MAX_RAW_LINE_BYTES:
            lines.append(self._rest[:MAX_RAW_LINE_BYTES])
            self._rest = self._rest[MAX_RAW_LINE_BYTES:]
        if now - self._window >= 1.0:
            self._window, self._count = now, 0
        room = max(0, MAX_RAW_LINES_PER_S - self._count)
        self._count += len(lines)
        self.dropped += max(0, len(lines) - room)
        return [piece for line in lines[:room] for piece in _pieces(line)]

    def end(self) -> list[str]:
        """The line that was left unfinished."""
        self.ended = True
        rest, self._rest = self._rest, b""
        return _pieces(rest) if rest else []

    def last_words(self) -> str:
        """The end of it all."""
        return self._words.decode("utf-8", "backslashreplace")


def _pieces(line: bytes) -> list[str]:
    """A line as text, cut to the longest length."""
    return [
        line[start : start + MAX_RAW_LINE_BYTES].decode("utf-8", "backslashreplace")
        for start in range(0, len(line) or 1, MAX_RAW_LINE_BYTES)
    ]

"""Who calls while faults happen: a caller that keeps a ledger, and readers in processes of their own."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pelton
from pelton.errors import PeltonError, SubmitFailed
from pelton_platform import process
from support.chaos_ledgers import Seen, Sent
from support.worker_instance import Platform

TESTS = Path(__file__).resolve().parent.parent

HELD_MS = (0, 10, 50, 100, 200, 400)
"""How long plain calls hold their slot; each as likely as the next."""


class Caller:
    """Makes calls through the public SDK and notes what became of each.

    Args:
        seed: decides what the calls are.
        total: calls to make.
        window: calls open at the same time at most.
        streams: every so many calls is a stream; 0 for none.
    """

    def __init__(self, seed: int, total: int, window: int, streams: int = 5) -> None:
        self._dice = random.Random(seed)
        self._total = total
        self._streams = streams
        self._room = threading.Semaphore(window)
        self._allowed = threading.Condition()
        self._quota = total
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="chaos-stream")
        self._open: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="chaos-caller", daemon=True)
        self.sent: list[Sent] = []
        self.seen: dict[str, Seen] = {}
        self.ended = 0
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begins to call."""
        self._thread.start()

    def allow(self, quota: int) -> None:
        """So many calls may have been made by now; the rest waits."""
        with self._allowed:
            self._quota = quota
            self._allowed.notify_all()

    def finish(self, timeout_s: float) -> None:
        """Waits for the end of every call; what is open after the time stays unseen."""
        self.allow(self._total)
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"{len(self.sent)} of {self._total} calls made in {timeout_s} s"
        done = threading.Event()

        def wait() -> None:
            self._pool.shutdown(wait=True)
            done.set()

        threading.Thread(target=wait, daemon=True).start()
        done.wait(timeout_s)

    @property
    def submitting(self) -> bool:
        """Whether calls are still being made."""
        return self._thread.is_alive()

    def open_numbers(self) -> set[int]:
        """Calls without an end."""
        with self._lock:
            return set(self._open)

    def _run(self) -> None:
        try:
            functions = {name: pelton.function_ref(name) for name in ("quick", "flow")}
            for number in range(self._total):
                with self._allowed:
                    while number >= self._quota:
                        self._allowed.wait()
                self._room.acquire()
                call = self._choose(number)
                self.sent.append(call)
                with self._lock:
                    self._open.add(number)
                if call.function == "flow" and number % 2:
                    self._pool.submit(self._stream, functions["flow"], call)
                else:
                    self._future(functions[call.function], call)
        except BaseException as error:
            self.failure = error
            raise

    def _choose(self, number: int) -> Sent:
        dice = self._dice
        if self._streams and number % self._streams == 0:
            return Sent(number, "flow", chunks=dice.choice((0, 1, 3, 8, 20)))
        return Sent(number, "quick", boom=dice.random() < 0.01)

    def _arguments(self, call: Sent) -> tuple[Any, ...]:
        held = random.Random(call.number).choice(HELD_MS)
        if call.function == "flow":
            return (call.number, call.chunks, min(held, 50))
        return (call.number, held, call.boom)

    def _future(self, function: Any, call: Sent) -> None:
        try:
            future = function.async_call(*self._arguments(call))
        except PeltonError as error:
            self._never_sent(call, error)
            return
        call.call_id = future.call_id
        future.add_done_callback(lambda future: self._take(call, future))

    def _take(self, call: Sent, future: Future[Any]) -> None:
        refusal = future.accepted.exception(60)  # type: ignore[attr-defined]
        call.accepted = _accepted(refusal)
        error = future.exception(0)
        if error is not None:
            # Of a stream that broke, the chunks are there all the same.
            chunks = _chunks_of(future) if call.chunks else ()
            seen = Seen(chunks=chunks, error=type(error).__name__)
        elif call.function == "flow":
            seen = Seen(chunks=tuple(map(_frozen, future.result(0))))
        else:
            seen = Seen(value=_frozen(future.result(0)))
        self._end(call, seen if refusal is None else None)

    def _stream(self, function: Any, call: Sent) -> None:
        chunks: list[Any] = []
        error = ""
        refusal: Exception | None = None
        try:
            with function(*self._arguments(call)) as stream:
                call.call_id = stream.call_id
                refusal = stream.accepted.exception(60)
                call.accepted = _accepted(refusal)
                for chunk in stream:
                    chunks.append(_frozen(chunk))
        except PeltonError as failure:
            if not call.call_id:
                self._never_sent(call, failure)
                return
            error = type(failure).__name__
        self._end(call, Seen(chunks=tuple(chunks), error=error) if refusal is None else None)

    def _never_sent(self, call: Sent, error: PeltonError) -> None:
        call.accepted = "no"
        self._end(call, None)

    def _end(self, call: Sent, seen: Seen | None) -> None:
        with self._lock:
            if seen is not None:
                self.seen[call.call_id] = seen
            self._open.discard(call.number)
            self.ended += 1
        self._room.release()


def _accepted(refusal: Exception | None) -> str:
    return "yes" if refusal is None else "no" if isinstance(refusal, SubmitFailed) else "unknown"


def _chunks_of(future: Any) -> tuple[Any, ...]:
    chunks = []
    try:
        for chunk in future.stream():
            chunks.append(_frozen(chunk))
    except PeltonError:
        pass  # how it ended is known
    return tuple(chunks)


def _frozen(value: Any) -> Any:
    """Values of readers in other processes come through JSON: lists and tuples are the same here."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


class AttachingReader:
    """A process that attaches to calls it did not make, at any time, and says what it saw.

    Args:
        platform: where the calls are.
        sent: the calls.
        folder: for its files.
        name: names its files.
    """

    def __init__(self, platform: Platform, sent: Iterable[Sent], folder: Path, name: str) -> None:
        wanted = folder / f"{name}.calls"
        wanted.write_text(
            "".join(f"{call.function} {call.call_id}\n" for call in sent if call.call_id), encoding="utf-8"
        )
        self._out = folder / f"{name}.seen"
        self._log = folder / f"{name}.log"
        environ = {
            **os.environ,
            "PELTON_BOOTSTRAP_SERVERS": platform.config.bootstrap_servers,
            "PELTON_NAMESPACE": platform.namespace,
            "PELTON_KEY_FILE": str(platform.key_file),
            "PYTHONPATH": str(TESTS),
        }
        with wanted.open("rb") as calls, self._out.open("wb") as out, self._log.open("wb") as log:
            self._child = process.spawn(
                [sys.executable, "-m", "support.chaos_callers"],
                stdin=calls.fileno(),
                stdout=out,
                stderr=log,
                env=environ,
                die_with_parent=True,
            )

    def seen(self, timeout_s: float) -> dict[str, Seen]:
        """What it saw, once it is done with all."""
        try:
            code = self._child.wait(timeout_s)
        finally:
            self.close()
        assert code == 0, self._log.read_text()[-3000:]
        found = {}
        for line in self._out.read_text().splitlines():
            call_id, chunks, value, error = json.loads(line)
            found[call_id] = Seen(_frozen(chunks), _frozen(value), error)
        return found

    def close(self) -> None:
        """Ends the process if it still runs."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait(10)


def attach_all(lines: Iterable[str], say: Callable[[str], None]) -> None:
    """Attaches to each call named on a line, eight at a time, and says what became of it as JSON."""

    def read(line: str) -> str:
        function, call_id = line.split()
        future = pelton.function_ref(function).attach(call_id, timeout=60)
        error = future.exception(180)
        chunks = _chunks_of(future) if function == "flow" else ()
        value = None if error is not None or function == "flow" else future.result(0)
        return json.dumps([call_id, chunks, value, "" if error is None else type(error).__name__])

    with ThreadPoolExecutor(8) as pool:
        for text in pool.map(read, lines):
            say(text)


if __name__ == "__main__":
    attach_all(sys.stdin, lambda text: print(text, flush=True))
    pelton.close()

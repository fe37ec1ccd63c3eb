"""Calls that nobody starts: after 5 s stderr says why, one line for all calls of a function."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from pelton.client.readiness import unserved
from pelton.core.call import CallId, call_time_ms
from pelton.transport.ports import Directory

if TYPE_CHECKING:
    from pelton.client.calls import Call

PATIENCE_MS: Final = 5_000
"""A call that has not started for this long is worth a line."""

AGAIN_SECONDS: Final = 60.0
"""The same line about the same function is not repeated sooner."""

_LOOK_SECONDS: Final = 1.0


class Patience:
    """Looks at every call once, when it is 5 s old.

    One thread for all calls, alive while there are calls to look at.

    Args:
        calls: open calls by id.
        directory: what is deployed.
        now_ms: broker time.
    """

    def __init__(self, calls: Mapping[CallId, Call], directory: Directory, now_ms: Callable[[], int]) -> None:
        self._calls = calls
        self._directory = directory
        self._now_ms = now_ms
        self._watched: deque[CallId] = deque()
        self._running = False
        self._starting = threading.Lock()
        self._stopped = threading.Event()
        self._said: dict[str, tuple[str, float]] = {}

    def watch(self, call_id: CallId) -> None:
        """Takes note of a call that was just sent."""
        self._watched.append(call_id)
        if not self._running:
            self._start()

    def stop(self) -> None:
        """Looks no more."""
        self._watched.clear()
        self._stopped.set()

    def look(self) -> None:
        """Looks at the calls that have come of age."""
        due = self._now_ms() - PATIENCE_MS
        waiting: Counter[str] = Counter()
        while self._watched and call_time_ms(self._watched[0]) <= due:
            call = self._calls.get(self._watched.popleft())
            if call is not None and not call.started:
                waiting[call.function] += 1
        for function, count in waiting.items():
            self._say(function, count)

    def _say(self, function: str, count: int) -> None:
        why = self._reason(function)
        said, at = self._said.get(function, ("", 0.0))
        now = time.monotonic()
        if said == why and now - at < AGAIN_SECONDS:
            return
        self._said[function] = (why, now)
        calls = "1 call" if count == 1 else f"{count} calls"
        sys.stderr.write(
            f"pelton: {calls} of {function!r} not known to have started in {PATIENCE_MS // 1000} s: {why}\n"
        )

    def _reason(self, function: str) -> str:
        spec = self._directory.function(function)
        if spec is None:
            return f"Function {function!r} is no longer in the registry."
        reasons = unserved(self._directory, spec)
        if reasons:
            return " ".join(reasons)
        container = self._directory.container(spec.container)
        instances = [
            entry for entry in self._directory.instances(spec.container) if function in entry.functions
        ]
        if not instances:
            return "An instance is being started."
        running = sum(entry.running for entry in instances)
        slots = sum(entry.slots for entry in instances)
        if running >= slots:
            most = "" if container is None else f" of at most {container.max_instances}"
            return (
                f"All {slots} slots of {len(instances)} live instance(s){most} are taken; it waits its turn."
            )
        return f"{len(instances)} live instance(s) with {running} of {slots} slots taken; it waits its turn."

    def _start(self) -> None:
        with self._starting:
            if self._running or self._stopped.is_set():
                return
            self._running = True
            threading.Thread(target=self._run, name="pelton-patience", daemon=True).start()

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            self.look()
            if not self._watched:
                self._running = False
                # A call noted just before the flag fell saw it up: look again before leaving.
                if not self._watched:
                    return
                with self._starting:
                    if self._running:
                        return
                    self._running = True

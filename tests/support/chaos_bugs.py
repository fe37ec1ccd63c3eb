"""An instance with one rule broken on purpose: `python -m support.chaos_bugs BUG --instance FILE`.

A checker that lets one of these pass proves nothing. Each bug is one rule left out, put into the real
coordinator before it starts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from pelton.core.attempts import Attempts
from pelton.core.call import Failure, InputPartition, Token
from pelton.core.engine import Engine
from pelton.core.ownership import Owned
from pelton.core.run import Item, Run, RunState
from pelton.transport.kafka import producer
from pelton.transport.kafka.settings import producer_settings
from pelton_platform.coordinator.__main__ import main
from pelton_platform.coordinator.cancellations import CancellationReader


def _commit_before_ack() -> None:
    """An offset counts as done when its outcome was sent, not when it was acknowledged."""
    close = Attempts._close

    def hasty(self: Attempts, run: Run, items: tuple[bytes, ...], failure: Failure | None) -> None:
        close(self, run, items, failure)
        for item in run.items:
            item.own.finish(item)

    _replace(Attempts, "_close", hasty)


def _commit_the_highest() -> None:
    """The committed offset is the highest one taken in, not the lowest unfinished one."""
    snapshot = Owned.snapshot

    def proud(self: Owned, *, leave: bool = False) -> tuple[int, str]:
        return self.position, snapshot(self, leave=leave)[1]

    _replace(Owned, "snapshot", proud)


def _acks_1() -> None:
    """Records count as acknowledged when one replica has them."""
    settings = producer_settings

    def careless(*given: Any) -> dict[str, Any]:
        return {**settings(*given), "acks": "1", "enable.idempotence": False}

    _replace(producer, "producer_settings", careless)


def _token_ignored() -> None:
    """All executions of a call bear the same token."""

    def same(self: Owned, attempt: int) -> Token:
        return Token(attempt, 1, 0, 0, 1)

    _replace(Owned, "token", same)


def _suspects_uncounted() -> None:
    """A suspect is dispatched without its delivery being counted."""
    count_first = Engine._count_first

    def lenient(self: Engine, run: Run, item: Item, *, shared: bool) -> None:
        count_first(self, run, item, shared=shared)
        item.own.counts.pop(item.offset, None)

    _replace(Engine, "_count_first", lenient)


def _dead_letter_dropped() -> None:
    """A call is given up without a dead letter."""

    def silent(self: Attempts, run: Run, reason: Failure) -> None:
        self._free(run)
        run.state = RunState.CLOSING
        self._close(run, (), reason)

    _replace(Attempts, "_give_up", silent)


def _fence_skipped() -> None:
    """A stream runs again without looking at what was read of it before."""

    def blind(self: Attempts, run: Run, *, dead: bool) -> None:
        self._start(run)

    _replace(Attempts, "_fence", blind)


def _retry_lost() -> None:
    """An attempt that died with its executor ends the call without a word."""
    failed = Attempts._failed

    def forgetful(self: Attempts, run: Run, failure: Failure, **how: Any) -> None:
        if failure.code == "UNAVAILABLE":
            self._finish(run)
        else:
            failed(self, run, failure, **how)

    _replace(Attempts, "_failed", forgetful)


def _park_without_giving_back() -> None:
    """A run that waits for calls it made keeps its slot."""

    def selfish(self: Attempts, now_ms: int, run_id: int) -> None:
        self._now = now_ms

    _replace(Attempts, "parked", selfish)


def _key_order_ignored() -> None:
    """Calls with one key run beside each other."""
    init = Engine.__init__

    def unordered(self: Engine, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        self._order = None

    _replace(Engine, "__init__", unordered)


def _cancellation_read_after_dispatch() -> None:
    """Requests to cancel are read at leisure: no assignment waits for them."""
    assigned, read = Engine.assigned, CancellationReader._run

    def hasty(self: Engine, now_ms: int, partition: InputPartition, *given: Any) -> int:
        start = assigned(self, now_ms, partition, *given)
        self._owned[partition].informed = True
        return start

    def leisurely(self: CancellationReader) -> None:
        time.sleep(5)
        read(self)

    _replace(Engine, "assigned", hasty)
    _replace(CancellationReader, "_run", leisurely)


BUGS: Final[Mapping[str, Callable[[], None]]] = {
    "commit before ack": _commit_before_ack,
    "commit the highest": _commit_the_highest,
    "acks=1": _acks_1,
    "token ignored": _token_ignored,
    "suspects uncounted": _suspects_uncounted,
    "dead letter dropped": _dead_letter_dropped,
    "fence skipped": _fence_skipped,
    "retry lost": _retry_lost,
    "key order ignored": _key_order_ignored,
    "park without giving back": _park_without_giving_back,
    "cancellation read after dispatch": _cancellation_read_after_dispatch,
}
"""What can be broken, by name."""


def _replace(owner: Any, name: str, broken: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more: this bug breaks nothing"
    setattr(owner, name, broken)


if __name__ == "__main__":
    BUGS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))

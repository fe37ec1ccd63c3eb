"""Instances in odd states: `python -m support.odd_instances STATE [ARGUMENT] --instance FILE`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from confluent_kafka import Consumer

from pelton.transport.kafka.group import GroupConsumer
from pelton_platform.coordinator import times
from pelton_platform.coordinator.__main__ import main
from pelton_platform.coordinator.instance import Deafness

DEAF_AFTER_S: Final = 2.0
"""How long an instance made by `deaf` may be deaf; what a real one is given is too long to wait for."""

MAX_POLL_MS: Final = times.SESSION_TIMEOUT_MS
"""Longest time between two polls of an `impatient` instance; the client takes none below the session."""


def deaf(flag: Path) -> None:
    """Its poll thread stands still while the file `flag` is there, and writes to it; other threads go on."""
    turn = GroupConsumer._turn

    def hang(self: GroupConsumer, consumer: Consumer) -> None:
        while flag.exists():
            flag.write_text("stands still")
            time.sleep(0.05)
        turn(self, consumer)

    GroupConsumer._turn = hang  # type: ignore[method-assign]
    assert Deafness.__init__.__defaults__ == (times.DEAF_AFTER_S,)
    Deafness.__init__.__defaults__ = (DEAF_AFTER_S,)
    times.DEAF_AFTER_S = DEAF_AFTER_S  # type: ignore[misc]


def impatient() -> None:
    """The client leaves the group when it is not polled for the shortest time that it can be given."""
    times.MAX_POLL_MS = MAX_POLL_MS  # type: ignore[misc]


if __name__ == "__main__":
    state, *arguments = sys.argv[1:]
    if state == "deaf":
        deaf(Path(arguments.pop(0)))
    else:
        assert state == "impatient", state
        impatient()
    sys.exit(main(arguments))

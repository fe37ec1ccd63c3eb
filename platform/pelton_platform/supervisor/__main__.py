"""Runs a supervisor in the background: settings as JSON on standard input, what it says as JSON lines."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from pelton.errors import PeltonError
from pelton_platform import telemetry
from pelton_platform.embedded import EmbeddedKafkaError
from pelton_platform.supervisor.settings import SupervisorSettings
from pelton_platform.supervisor.state import AlreadyRunning
from pelton_platform.supervisor.supervise import Supervisor


class _Mouth:
    """Speaks to the command that waits for the start; afterwards to the log."""

    def __init__(self) -> None:
        self._log = telemetry.get_logger("pelton_platform.supervisor")
        self._heard = True

    def tell(self, line: str) -> None:
        self._log.info("told", text=line)
        self.say({"tell": line})

    def say(self, words: dict[str, Any]) -> None:
        if self._heard:
            try:
                print(json.dumps(words), flush=True)
            except BrokenPipeError:
                self.hang_up()

    def hang_up(self) -> None:
        """Nobody listens any more: standard output leads nowhere from here on."""
        self._heard = False
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def main() -> int:
    """Start the platform, say so, and keep it until SIGTERM."""
    settings = SupervisorSettings.from_json(json.loads(sys.stdin.read()))
    telemetry.set_up("supervisor", level=settings.log_level)
    mouth = _Mouth()
    with Supervisor(settings, mouth.tell) as supervisor:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)
        try:
            state = supervisor.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: supervisor.ask_to_stop())
        except AlreadyRunning as error:
            mouth.say({"running": error.state.to_json()})
            return 3
        except (PeltonError, EmbeddedKafkaError) as error:
            mouth.say({"error": str(error)})
            return 1
        except KeyboardInterrupt:
            mouth.say({"error": "the start was interrupted"})
            return 130
        mouth.say({"ready": state.to_json()})
        mouth.hang_up()
        supervisor.watch()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

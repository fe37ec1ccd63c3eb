"""The cron service as the supervisor keeps it: a child that fires timers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from pelton_platform import process

_STOP_S: Final = 3.0


class CronChild:
    """The process of the cron service, started and started again by its keeper.

    Attributes:
        pid: of the process that runs, 0 for none.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """See the class."""
        return self._child.pid if self.runs and self._child is not None else 0

    @property
    def began(self) -> bool:
        """Whether it was ever started."""
        return self._child is not None

    @property
    def runs(self) -> bool:
        """Whether it runs."""
        return self._child is not None and self._child.poll() is None

    def start(self, settings: Path, log: Path) -> None:
        """Starts it.

        Args:
            settings: the file with the connection.
            log: what it says is added to this.
        """
        with log.open("ab") as output:
            self._child = process.spawn(
                [sys.executable, "-m", "pelton_platform.cron", "--settings", str(settings)],
                stdout=output,
                stderr=subprocess.STDOUT,
                die_with_parent=True,
            )

    def stop(self) -> None:
        """Ends it; timers it was about to fire are fired when it runs again."""
        if self._child is not None:
            process.terminate_child(self._child, _STOP_S)

"""The lock of a host, and what has to happen whenever somebody lets go of it."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Protocol


class Host(Protocol):
    """What a turn needs of the host whose lock it is."""

    @property
    def reported(self) -> Collection[object]:
        """Delivery reports that nobody took in yet."""

    def take_reports(self) -> None:
        """Takes them in; called with the turn held."""

    def failed(self, error: BaseException) -> None:
        """The host cannot go on."""


class Turn:
    """The lock of a host; who lets go of it takes in the delivery reports that came meanwhile.

    An error under it leaves the engine in a state that nobody knows: it ends the process.
    """

    __slots__ = ("_host", "_lock")

    def __init__(self, host: Host) -> None:
        self._host = host
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._lock.release()
        if error is not None:
            self._host.failed(error)
        elif self._host.reported:
            self.pass_by()

    def pass_by(self) -> None:
        """Takes in reports, unless somebody has the turn: then that one does it."""
        host = self._host
        while host.reported and self._lock.acquire(blocking=False):
            try:
                host.take_reports()
            except BaseException as error:
                host.failed(error)
                raise
            finally:
                self._lock.release()

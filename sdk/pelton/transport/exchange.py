"""Large payloads between an executor and its coordinator: files in a folder, and questions about them.

An executor has no credentials of the object store. What it keeps it writes into the folder and asks its
coordinator to store; what it needs it asks for, and the coordinator puts it there.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from pelton.errors import PayloadUnavailable
from pelton.protocol.claims import Claim, encode_claim
from pelton.protocol.frames import Question
from pelton.transport.payloads import checked, new_draft

T = TypeVar("T")

TRANSFER_TIMEOUT_S: Final = 900.0
"""Storing or fetching one payload takes no longer."""

_FILE: Final = re.compile(r"[0-9]+-[A-Za-z0-9_]+")


class Coordinator(Protocol):
    """The way to the coordinator."""

    aside: Callable[[Callable[[], Any]], Any]
    """Calls what takes long, without stopping an event loop on the calling thread."""

    def ask(self, question: Question, *arguments: Any, wait_s: float) -> Any:
        """The answer to a question; raises what the coordinator says went wrong."""


class ExchangedPayloads:
    """Implements `PayloadStore` in an executor.

    Args:
        folder: shared with the coordinator.
        coordinator: keeps and fetches.
    """

    def __init__(self, folder: Path, coordinator: Coordinator) -> None:
        self._folder = folder
        self._coordinator = coordinator
        self._numbers = itertools.count(1)

    def aside(self, call: Callable[[], T]) -> T:
        """As `PayloadStore.aside`."""
        result: T = self._coordinator.aside(call)
        return result

    def draft(self) -> Path:
        """As `PayloadStore.draft`; the name says whose it is, so that it goes when this process dies."""
        return new_draft(self._folder, f"{os.getpid()}-")

    def keep(self, draft: Path, claim: Claim) -> None:
        """As `PayloadStore.keep`."""
        self._coordinator.ask(Question.KEEP, draft.name, encode_claim(claim), wait_s=TRANSFER_TIMEOUT_S)

    def open(self, claim: Claim) -> int:
        """As `PayloadStore.open`."""
        target = self._folder / f"{os.getpid()}-r{next(self._numbers)}"
        try:
            self._coordinator.ask(Question.FETCH, target.name, encode_claim(claim), wait_s=TRANSFER_TIMEOUT_S)
            descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
            return self.aside(lambda: checked(descriptor, claim))
        except OSError as error:
            raise PayloadUnavailable(f"a payload cannot be read from {target}: {error}") from error
        finally:
            target.unlink(missing_ok=True)


def exchanged_file(folder: Path, name: str) -> Path:
    """The file of this name in a folder of exchange.

    Raises:
        PayloadUnavailable: that is no name of one; user code speaks on the channel, too.
    """
    if _FILE.fullmatch(name) is None:
        raise PayloadUnavailable(f"{name[:80]!r} names no payload")
    return folder / name


def clear_exchange(folder: Path, pid: int) -> None:
    """Removes what an executor that is gone has left."""
    for path in folder.glob(f"{pid}-*"):
        path.unlink(missing_ok=True)

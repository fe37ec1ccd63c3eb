"""How Kafka clients end: closed when the process exits, and let alone for ever in a child made by `fork`."""

from __future__ import annotations

import atexit
import ctypes
import os
import weakref
from typing import Any, Protocol

_open: weakref.WeakSet[Any] = weakref.WeakSet()
_increment = ctypes.pythonapi.Py_IncRef
_increment.argtypes = [ctypes.py_object]
_increment.restype = None


class HoldsClient(Protocol):
    """Something that owns a client of the Kafka library."""

    def close(self) -> Any:
        """Ends the client and its thread."""

    def abandon(self) -> Any:
        """In a forked child: forget the client without touching it."""


def track(holder: HoldsClient) -> None:
    """Closes `holder` at exit and abandons it in forked children."""
    _open.add(holder)


def untrack(holder: HoldsClient) -> None:
    """The holder has closed its client."""
    _open.discard(holder)


def keep_for_ever(client: object) -> None:
    """Makes sure that an inherited client is never destroyed.

    Its threads do not exist in the child, and the library's destructor would wait for them.
    """
    _increment(client)


def _in_child() -> None:
    holders = list(_open)
    _open.clear()
    for holder in holders:
        holder.abandon()


def _at_exit() -> None:
    # Threads that are inside the library when the interpreter goes away would take it down with them.
    for holder in list(_open):
        holder.close()


os.register_at_fork(after_in_child=_in_child)
atexit.register(_at_exit)

"""Binds this process to the keeper of its instance's leases: the kernel ends it when the keeper ends."""

from __future__ import annotations

import fcntl
import os
import select
import signal
from typing import Final

_F_SETSIG: Final = 10
"""Of Linux; Python does not name it."""


def bind(fd: int) -> int:
    """From now on this process is killed when the other end of a pipe is closed, also while it is stopped.

    Args:
        fd: the end that was inherited. It is one file for all who inherited it, with one receiver of
            signals; so the pipe is opened anew.

    Returns:
        What must stay open.

    Raises:
        OSError: this system cannot do that.
    """
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(own, 0)
    if poll.poll(0):
        # It was over before anybody could be told.
        os.kill(os.getpid(), signal.SIGKILL)
    return own

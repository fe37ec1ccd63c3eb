"""Binds executors to the leases of their instance: they end with the first lease that is not renewed in time.

A process that holds a lease may be frozen, and wake up when others have its slot. So the end must not depend
on any of its threads. A small process, the keeper, has a timer of the kernel that ends it; a pipe that ends
with it takes along all who are bound.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

from pelton_platform import process

_SCRIPT: Final = Path(__file__).with_name("keeper_process.py")
_WORD: Final = struct.Struct(">Q")


class Keeper:
    """One keeper's process, and the end of its pipe that executors inherit.

    It dies with the thread that makes it: that has to live as long as this process.

    Attributes:
        fd: pass it to executors, which bind themselves to it: see `pelton_platform.executor.bound`.

    Raises:
        OSError: it does not start.
    """

    def __init__(self) -> None:
        self.fd, held = os.pipe()
        told, self._tell = os.pipe()
        try:
            self._child = process.spawn(
                [sys.executable, "-I", "-S", str(_SCRIPT), str(held)],
                stdin=told,
                stdout=subprocess.PIPE,
                pass_fds=(held,),
                die_with_parent=True,
            )
        except OSError:
            os.close(self.fd)
            os.close(self._tell)
            raise
        finally:
            os.close(held)
            os.close(told)
        self._ends_ms = 0
        if self._child.stdout is None or not self._child.stdout.readline():
            self.close()
            raise OSError("the keeper of leases did not start")

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._child.pid

    @property
    def ended(self) -> bool:
        """Whether its time was over: who was bound is gone, and another keeper is needed."""
        return self._child.poll() is not None

    def arm(self, ends_ms: int) -> None:
        """Says when the first lease ends, milliseconds of `boot_ms`; 0 for none."""
        if ends_ms != self._ends_ms:
            self._ends_ms = ends_ms
            try:
                os.write(self._tell, _WORD.pack(ends_ms * 1_000_000))
            except BrokenPipeError:
                # It ended meanwhile, as `ended` says.
                return

    def close(self) -> None:
        """Ends it, and all who are bound to it."""
        self._child.kill()
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        os.close(self._tell)
        os.close(self.fd)

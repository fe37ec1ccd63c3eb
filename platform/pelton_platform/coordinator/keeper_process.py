"""The keeper's process: ends by a timer of the kernel when a lease is over, however frozen the machine was.

It runs alone, as a script, with nothing but the standard library: `python -I -S keeper_process.py FD`. On its
standard input it is told when the first lease ends: 8 bytes, nanoseconds of CLOCK_BOOTTIME, 0 for none. FD is
the end of a pipe that nobody else holds: the kernel closes it with this process, and ends with SIGKILL who is
bound to its other end. User code has no part in this, so no lock it holds can delay a renewal, nothing it
masks can stop the end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import time

_WORD = struct.Struct(">Q")
_TIMER_ABSTIME = 1


class _Event(ctypes.Structure):
    """`struct sigevent`: which signal a timer sends."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_int * 12),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def main(pipe: int) -> None:
    """Arms the timer as it is told, until its owner is gone."""
    os.fstat(pipe)  # an end that is not there would bind nobody
    libc = ctypes.CDLL(None, use_errno=True)
    timer = ctypes.c_void_p()
    event = _Event(None, signal.SIGKILL, 0)
    if libc.timer_create(time.CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(timer)):
        raise OSError(ctypes.get_errno(), "timer_create")
    os.write(1, b"\n")  # ready
    while word := _read():
        ends_ns = _WORD.unpack(word)[0]
        value = _Timespec(ends_ns // 1_000_000_000, ends_ns % 1_000_000_000)
        setting = _Setting(_Timespec(0, 0), value)
        if libc.timer_settime(timer, _TIMER_ABSTIME, ctypes.byref(setting), None):
            raise OSError(ctypes.get_errno(), "timer_settime")


def _read() -> bytes:
    """The last of what was told, b"" when nobody tells any more."""
    data = os.read(0, 512 * _WORD.size)
    while len(data) % _WORD.size:
        more = os.read(0, _WORD.size - len(data) % _WORD.size)
        if not more:
            return b""
        data += more
    return data[-_WORD.size :]


if __name__ == "__main__":
    main(int(sys.argv[1]))

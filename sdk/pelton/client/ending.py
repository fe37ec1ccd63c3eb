"""How a program ends that could not finish its work at the very end: with the reason, and exit code 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

EXIT_CODE: Final = 1

_NAME: Final = "_pelton_exit_code"


class _Last:
    """Ends the process when it is let go of: `sys` is emptied after all else that the program has."""

    def __del__(self, leave: Callable[[int], object] = os._exit, code: int = EXIT_CODE) -> None:
        # Names of this module are gone by then; what was written is flushed.
        leave(code)


def fail(reason: str) -> None:
    """Says on stderr what could not be done, and makes this process end with exit code 1.

    For what happens after the last line of the program, where no exception can tell it any more: exit
    handlers run as ever, files are closed, and then the exit code is this one.

    Args:
        reason: one sentence for people; empty when it was told already.
    """
    if reason:
        sys.stderr.write(f"pelton: {reason}\n")
    if not hasattr(sys, _NAME):
        setattr(sys, _NAME, _Last())
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        # Processes that `multiprocessing` forked leave without taking anything down.
        from multiprocessing.util import Finalize

        Finalize(None, _leave, exitpriority=-100)


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            # Nobody reads it any more, it is closed, or there is none: the exit code still says it.
            continue
    os._exit(EXIT_CODE)

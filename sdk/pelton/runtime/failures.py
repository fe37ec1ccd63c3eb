"""How an exception becomes a failure: type, bounded message, bounded traceback without Pelton's frames."""

from __future__ import annotations

import os
import traceback
from types import TracebackType
from typing import Final

from pelton.core.call import Failure

MAX_MESSAGE_BYTES: Final = 8 * 1024
"""Longer messages are cut in the middle: a failure travels in headers and result records."""

MAX_TRACEBACK_BYTES: Final = 16 * 1024
"""Longer tracebacks lose their middle; the last lines name the cause."""

_CUT: Final = "\n... {} bytes left out ...\n"
_HEAD_SHARE: Final = 4
# Frames of these folders are Pelton's own: they say nothing about the user's mistake.
_OWN_FOLDERS = (os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,)


def failure_of(error: BaseException, *, code: str = "UNKNOWN", own_folders: tuple[str, ...] = ()) -> Failure:
    """Makes a failure of any exception; never raises because of what the exception does.

    Args:
        error: what user code raised, `SystemExit` and broken `__str__` methods included.
        code: gRPC status name.
        own_folders: more folders (ending with a separator) whose leading frames are left out.
    """
    return Failure(
        type=type_name(error),
        message=_message(error),
        traceback=_traceback_text(error, _OWN_FOLDERS + own_folders),
        code=code,
        retriable=False,
    )


def type_name(error: BaseException) -> str:
    """Qualified name of the exception's type; builtins go without their module."""
    cls = type(error)
    try:
        module, name = str(cls.__module__), str(cls.__qualname__)
    except Exception:
        return bounded(cls.__name__, MAX_MESSAGE_BYTES)
    return bounded(name if module == "builtins" else f"{module}.{name}", MAX_MESSAGE_BYTES)


def bounded(text: str, limit: int) -> str:
    """The text as valid UTF-8 of at most `limit` bytes; a longer one keeps its first quarter and its end."""
    # Lone surrogates (bytes read with surrogateescape) cannot be encoded: they become visible escapes.
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode()
    mark = _CUT.format(len(data) - limit).encode()
    room = max(0, limit - len(mark))
    head, tail = room // _HEAD_SHARE, room - room // _HEAD_SHARE
    kept = data[:head] + mark + data[len(data) - tail :]
    # Characters cut through at the two edges are dropped.
    return kept.decode("utf-8", "ignore")


def _message(error: BaseException) -> str:
    try:
        return bounded(str(error), MAX_MESSAGE_BYTES)
    except BaseException as broken:
        return f"(no message: str() of the exception raised {type_name(broken)})"


def _traceback_text(error: BaseException, own: tuple[str, ...]) -> str:
    try:
        trace = _without_own(error.__traceback__, own)
        shown = traceback.TracebackException(type(error), error, trace, compact=True)
        return bounded("".join(shown.format()), MAX_TRACEBACK_BYTES)
    except BaseException as broken:
        return f"(no traceback: formatting it raised {type_name(broken)})"


def _without_own(trace: TracebackType | None, own: tuple[str, ...]) -> TracebackType | None:
    """Drops the leading frames that are Pelton's own; what user code called from there on stays."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(own):
        trace = trace.tb_next
    return trace

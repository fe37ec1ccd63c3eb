"""The gRPC status name of an exception: Python's own, and those of libraries that are loaded."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any, Final

from pelton.core.retry import CODES
from pelton.errors import CallFailed, PeltonError, Retry

UNKNOWN: Final = "UNKNOWN"

_HTTP: Final = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    412: "FAILED_PRECONDITION",
    423: "ABORTED",
    425: "UNAVAILABLE",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    507: "RESOURCE_EXHAUSTED",
}
"""Answers of HTTP servers; others with 4 in front are FAILED_PRECONDITION, with 5 UNAVAILABLE."""

_ERRNOS: Final = {
    errno.ENOSPC: "RESOURCE_EXHAUSTED",
    errno.EDQUOT: "RESOURCE_EXHAUSTED",
    errno.EMFILE: "RESOURCE_EXHAUSTED",
    errno.ENFILE: "RESOURCE_EXHAUSTED",
    errno.ENETUNREACH: "UNAVAILABLE",
    errno.EHOSTUNREACH: "UNAVAILABLE",
    errno.ENETDOWN: "UNAVAILABLE",
    errno.EHOSTDOWN: "UNAVAILABLE",
}

_PYTHON: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (TimeoutError, "DEADLINE_EXCEEDED"),
    (ConnectionError, "UNAVAILABLE"),
    (PermissionError, "PERMISSION_DENIED"),
    (FileNotFoundError, "NOT_FOUND"),
    (FileExistsError, "ALREADY_EXISTS"),
    (MemoryError, "RESOURCE_EXHAUSTED"),
)

# What a service the function called says of its own caller says nothing about the function's.
_NOT_PASSED_ON: Final = {"INVALID_ARGUMENT": "FAILED_PRECONDITION", "CANCELLED": "ABORTED"}


def code_of(error: BaseException) -> str:
    """The gRPC status name that says what kind of failure an exception is; "UNKNOWN" for most."""
    if isinstance(error, Retry):
        return "ABORTED"
    if isinstance(error, PeltonError):
        return _of_pelton(error)
    for library, of in _LIBRARIES.items():
        module = sys.modules.get(library)
        if module is not None:
            try:
                found = of(module, error)
            except Exception:
                # An exception of another version of the library, or a half-loaded one: it has no code then.
                found = ""
            if found:
                return _NOT_PASSED_ON.get(found, found)
    for kind, code in _PYTHON:
        if isinstance(error, kind):
            return code
    if isinstance(error, OSError):
        return _ERRNOS.get(error.errno or 0, UNKNOWN)
    return UNKNOWN


def _of_pelton(error: PeltonError) -> str:
    if isinstance(error, CallFailed):
        return _NOT_PASSED_ON.get(error.code, error.code if error.code in CODES else UNKNOWN)
    return "UNAVAILABLE" if error.retriable else UNKNOWN


def _of_status(status: object) -> str:
    if not isinstance(status, int):
        return ""
    return _HTTP.get(status) or {4: "FAILED_PRECONDITION", 5: "UNAVAILABLE"}.get(status // 100, "")


def _of_grpc(module: Any, error: BaseException) -> str:
    if not isinstance(error, module.RpcError):
        return ""
    code = getattr(error, "code", None)
    name = getattr(code() if callable(code) else code, "name", "")
    return name if name in CODES else UNKNOWN


def _of_httpx(module: Any, error: BaseException) -> str:
    if isinstance(error, module.HTTPStatusError):
        return _of_status(error.response.status_code)
    if isinstance(error, module.TimeoutException):
        return "DEADLINE_EXCEEDED"
    return "UNAVAILABLE" if isinstance(error, module.TransportError) else ""


def _of_requests(module: Any, error: BaseException) -> str:
    if not isinstance(error, module.RequestException):
        return ""
    if isinstance(error, module.Timeout):
        return "DEADLINE_EXCEEDED"
    if isinstance(error, module.ConnectionError):
        return "UNAVAILABLE"
    return _of_status(getattr(error.response, "status_code", None)) or UNKNOWN


def _of_urllib(module: Any, error: BaseException) -> str:
    if isinstance(error, module.HTTPError):
        return _of_status(error.code)
    if isinstance(error, module.URLError):
        reason = error.reason
        known = code_of(reason) if isinstance(reason, BaseException) else UNKNOWN
        return "UNAVAILABLE" if known == UNKNOWN else known
    return ""


_LIBRARIES: Final[dict[str, Callable[[Any, BaseException], str]]] = {
    "grpc": _of_grpc,
    "httpx": _of_httpx,
    "requests": _of_requests,
    "urllib.error": _of_urllib,
}

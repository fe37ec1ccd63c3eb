"""How the processes of the platform write their own log lines: structured, set up in one place."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import IO, Any

LOG_FORMAT_VARIABLE = "PELTON_LOG_FORMAT"
"""`json` or `text`; services write JSON unless told."""

_structlog: ModuleType | None = None


class Logger:
    """Writes events with fields: `log.info("instance-started", instance="a")`.

    Before `set_up`, as in commands and in programs of users, only what is worth a warning is written, by the
    standard library.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **fields: Any) -> None:
        """Write what only helps to find a fault."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Write what happened."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Write what should not happen and does not stop anything."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Write what somebody has to do something about."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Write the exception that is being handled, with its traceback."""
        self._write(logging.ERROR, event, {**fields, "exc_info": True})

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if _structlog is not None:
            _structlog.stdlib.get_logger(self._name).log(level, event, **fields)
            return
        exc_info = fields.pop("exc_info", False)
        words = " ".join((event, *(f"{name}={value}" for name, value in fields.items())))
        logging.getLogger(self._name).log(level, "%s", words, exc_info=exc_info)


def set_up(
    service: str,
    *,
    level: str = "INFO",
    stream: IO[str] | None = None,
    text: bool | None = None,
    redact: Callable[[str], str] | None = None,
) -> None:
    """Send every log line of this process, also those of libraries, to one stream.

    Args:
        service: Name of the process, on every line: `supervisor`, `deployer`, `coordinator`, ...
        level: Least level written.
        stream: Where to; standard error by default.
        text: Lines for people instead of JSON; None asks `PELTON_LOG_FORMAT`.
        redact: Takes out of each line what must not be written down.
    """
    global _structlog
    structlog: Any = _load_structlog()
    if text is None:
        text = os.environ.get(LOG_FORMAT_VARIABLE, "json") == "text"

    def who(_logger: object, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        # A processor, not context variables: those are of one thread, and this is of the process.
        event.update(service=service, pid=os.getpid())
        return event

    shared = [
        structlog.contextvars.merge_contextvars,
        who,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    render = (
        [structlog.dev.ConsoleRenderer(colors=False)]
        if text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(formatter if redact is None else _Redacting(formatter, redact))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    _structlog = structlog


class _Redacting(logging.Formatter):
    """A formatter whose lines are looked through."""

    def __init__(self, inner: logging.Formatter, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._inner = inner
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return self._redact(self._inner.format(record))


def get_logger(name: str) -> Logger:
    """Return the logger of a module."""
    return Logger(name)


def alarm(log: Logger, event: str, **fields: Any) -> None:
    """Write something a person must look at: refused signatures, data below the log start, and the like.

    Alarms bear `alarm=true`, so that one filter finds them all.
    """
    log.error(event, alarm=True, **fields)


def _load_structlog() -> ModuleType:
    """Import structlog without the library by which it draws tracebacks.

    That takes longer to load than everything else an instance needs, and no line of ours is drawn with it.
    """
    absent = "rich" not in sys.modules
    if absent:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("structlog")
    finally:
        if absent:
            del sys.modules["rich"]

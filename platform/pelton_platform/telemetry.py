"""How the processes of the platform write their own log lines: structured, set up in one place."""

from __future__ import annotations

import logging
import os
import sys
from typing import IO, Any

import structlog

Logger = structlog.stdlib.BoundLogger

LOG_FORMAT_VARIABLE = "PELTON_LOG_FORMAT"
"""`json` or `text`; services write JSON unless told."""


def set_up(
    service: str, *, level: str = "INFO", stream: IO[str] | None = None, text: bool | None = None
) -> None:
    """Send every log line of this process, also those of libraries, to one stream.

    Args:
        service: Name of the process, on every line: `supervisor`, `deployer`, `coordinator`, ...
        level: Least level written.
        stream: Where to; standard error by default.
        text: Lines for people instead of JSON; None asks `PELTON_LOG_FORMAT`.
    """
    if text is None:
        text = os.environ.get(LOG_FORMAT_VARIABLE, "json") == "text"

    def who(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        # A processor, not context variables: those are of one thread, and this is of the process.
        event.update(service=service, pid=os.getpid())
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        who,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    render: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=False)]
        if text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(formatter)
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


def get_logger(name: str) -> Logger:
    """Return the logger of a module; `log.info("event", key=value)`."""
    return structlog.stdlib.get_logger(name)


def alarm(log: Logger, event: str, **fields: Any) -> None:
    """Write something a person must look at: refused signatures, data below the log start, and the like.

    Alarms bear `alarm=true`, so that one filter finds them all.
    """
    log.error(event, alarm=True, **fields)

"""The logger for user code: `%` arguments and named fields alike, on the standard library's logging."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Final, TextIO

FIELDS_ATTRIBUTE: Final = "pelton_fields"
"""Attribute of a `logging.LogRecord` that holds the named fields, `dict[str, str]`."""

LOGGER_NAME: Final = "pelton.user"
"""Name of the standard library's logger below `pelton.logger`."""


class FieldLogger:
    """A logger that takes `info("x %s", n)` and `info("event", key=value)`, also mixed.

    Inside an attempt its lines are captured with call id and attempt; elsewhere they go where the program
    sends logging, or to stderr when it has set up none. Fields become text; keep values short.
    """

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    @property
    def name(self) -> str:
        """Name of the standard library's logger below."""
        return self._logger.name

    def debug(self, message: object, *args: object, **fields: object) -> None:
        """Logs at level DEBUG."""
        self._emit(logging.DEBUG, message, args, fields)

    def info(self, message: object, *args: object, **fields: object) -> None:
        """Logs at level INFO."""
        self._emit(logging.INFO, message, args, fields)

    def warning(self, message: object, *args: object, **fields: object) -> None:
        """Logs at level WARNING."""
        self._emit(logging.WARNING, message, args, fields)

    def error(self, message: object, *args: object, **fields: object) -> None:
        """Logs at level ERROR."""
        self._emit(logging.ERROR, message, args, fields)

    def critical(self, message: object, *args: object, **fields: object) -> None:
        """Logs at level CRITICAL."""
        self._emit(logging.CRITICAL, message, args, fields)

    def exception(self, message: object, *args: object, **fields: object) -> None:
        """Logs at level ERROR with the traceback of the exception being handled."""
        fields.setdefault("exc_info", True)
        self._emit(logging.ERROR, message, args, fields)

    def log(self, level: int, message: object, *args: object, **fields: object) -> None:
        """Logs at a level by number, e.g. `logging.INFO`."""
        self._emit(level, message, args, fields)

    def setLevel(self, level: int | str) -> None:
        """Drops what is below this level; INFO to begin with."""
        self._logger.setLevel(level)

    def isEnabledFor(self, level: int) -> bool:
        """Whether a line at this level would be logged."""
        return self._logger.isEnabledFor(level)

    def _emit(self, level: int, message: object, args: tuple[object, ...], fields: dict[str, object]) -> None:
        logger = self._logger
        if not logger.isEnabledFor(level):
            return
        exc_info = fields.pop("exc_info", None)
        extra = fields.pop("extra", None)
        stack_info = bool(fields.pop("stack_info", False))
        stacklevel = fields.pop("stacklevel", 1)
        attributes: dict[str, object] = dict(extra) if isinstance(extra, Mapping) else {}
        attributes[FIELDS_ATTRIBUTE] = {name: _text(value) for name, value in fields.items()}
        # Two frames of this class lie between the standard library and the line that logs.
        logger.log(
            level,
            message,
            *args,
            exc_info=exc_info,  # type: ignore[arg-type]  # whatever the caller gave; logging says what it takes
            extra=attributes,
            stack_info=stack_info,
            stacklevel=2 + (stacklevel if isinstance(stacklevel, int) else 1),
        )


class FieldFormatter(logging.Formatter):
    """Formats a line with its fields behind it, `event key=value`."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, then its fields."""
        line = super().formatMessage(record)
        fields: dict[str, str] = getattr(record, FIELDS_ATTRIBUTE, None) or {}
        return " ".join((line, *(f"{name}={_quoted(value)}" for name, value in fields.items())))


class _StderrWhenUnset(logging.StreamHandler[TextIO]):
    """Writes to stderr as long as the program has set up no logging of its own."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(FieldFormatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the line unless another handler above gets it too."""
        if logging.getLogger().handlers or logging.getLogger("pelton").handlers:
            return
        self.stream = sys.stderr
        super().emit(record)


def _text(value: object) -> str:
    """Text of a field; a value whose `str()` fails must not cost the line."""
    try:
        return value if isinstance(value, str) else str(value)
    except Exception as error:
        return f"<{type(value).__name__} without text: {type(error).__name__}>"


def _quoted(value: str) -> str:
    return repr(value) if not value or any(character in value for character in " \"'=\n\r\t") else value


def _user_logger() -> FieldLogger:
    below = logging.getLogger(LOGGER_NAME)
    below.setLevel(logging.INFO)
    if not below.handlers:
        below.addHandler(_StderrWhenUnset())
    return FieldLogger(below)


logger: Final = _user_logger()
"""The logger of user code."""

chalk_logger: Final = logger
"""Another name of `logger`."""

"""The logger of user code: `%` arguments, named fields, and the standard library below."""

from __future__ import annotations

import io
import logging
import sys

import pytest

import pelton
from pelton.logs import FIELDS_ATTRIBUTE, LOGGER_NAME, logger


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """The named fields of a record."""
    fields: dict[str, str] = getattr(record, FIELDS_ATTRIBUTE)
    return fields


def test_both_ways_of_logging(caplog: pytest.LogCaptureFixture) -> None:
    """Arguments go into the message, fields stay fields, as text; both together work too."""
    logger.info("x %s of %d", 1, 2)
    logger.warning("event", key=3, flag=None)
    logger.error("%s failed", "it", why="disk full")
    first, second, third = caplog.records
    assert (first.getMessage(), fields_of(first)) == ("x 1 of 2", {})
    assert (second.getMessage(), second.levelname) == ("event", "WARNING")
    assert fields_of(second) == {"key": "3", "flag": "None"}
    assert (third.getMessage(), fields_of(third)) == ("it failed", {"why": "disk full"})


def test_records_name_the_line_that_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Not a line of this library; with `stacklevel` the line above."""
    logger.info("here")
    logger.log(logging.INFO, "here too")

    def inner() -> None:
        logger.info("above", stacklevel=2)

    inner()
    assert {record.filename for record in caplog.records} == {"test_sdk_logs.py"}
    assert [record.funcName for record in caplog.records] == ["test_records_name_the_line_that_logs"] * 3


def test_names_of_fields_that_the_record_itself_has_are_fine(caplog: pytest.LogCaptureFixture) -> None:
    """`name`, `args` and `module` are ordinary words for fields."""
    logger.info("event", name="a", args="b", module="c", msg="d", level="e")
    assert fields_of(caplog.records[0]) == {"name": "a", "args": "b", "module": "c", "msg": "d", "level": "e"}


def test_exceptions_and_extra_pass_through(caplog: pytest.LogCaptureFixture) -> None:
    """What the standard library's logger takes, this one takes."""
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("failed", ticket=7)
    record = caplog.records[0]
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError
    assert fields_of(record) == {"ticket": "7"}
    logger.info("x", extra={"tenant": "t1"})
    assert vars(caplog.records[1])["tenant"] == "t1"


def test_a_field_without_text_does_not_cost_the_line(caplog: pytest.LogCaptureFixture) -> None:
    """`str()` of a value may fail."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    logger.info("event", value=Broken())
    assert fields_of(caplog.records[0]) == {"value": "<Broken without text: RuntimeError>"}


def test_levels(caplog: pytest.LogCaptureFixture) -> None:
    """INFO and above by default; the level can be changed."""
    logger.debug("hidden")
    assert not caplog.records
    logger.setLevel(logging.DEBUG)
    try:
        logger.debug("shown")
        logger.critical("also shown")
    finally:
        logger.setLevel(logging.INFO)
    assert [record.levelname for record in caplog.records] == ["DEBUG", "CRITICAL"]
    assert logger.isEnabledFor(logging.INFO)


def test_without_logging_set_up_lines_go_to_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain program sees its lines with their fields; a program with logging of its own gets them once."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger.info("event", key="two words", n=1)
    assert stream.getvalue().endswith("INFO event key='two words' n=1\n")
    own = logging.StreamHandler(other := io.StringIO())
    monkeypatch.setattr(logging.getLogger(), "handlers", [own])
    logger.info("once")
    assert other.getvalue() == "once\n"
    assert "once" not in stream.getvalue()


def test_both_names_are_one_logger() -> None:
    """`chalk_logger` is an alias."""
    assert pelton.chalk_logger is pelton.logger is logger
    assert logger.name == LOGGER_NAME

"""What log lines of the platform look like, and what they cost to set up."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from pelton_platform import telemetry


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """The root logger as it was before the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    telemetry._structlog = None


def test_settings_log_lines_are_json_from_every_thread_and_library() -> None:
    """Each line is one JSON object with service, level, logger and fields, whoever writes it."""
    stream = io.StringIO()
    telemetry.set_up("deployer", stream=stream)
    log = telemetry.get_logger("a.b")
    log.info("started", instance="x")
    log.debug("too small")
    thread = threading.Thread(target=lambda: log.warning("from a thread"))
    thread.start()
    thread.join()
    logging.getLogger("library").error("old %s", "style")
    telemetry.alarm(log, "bundle-refused", container="c")
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [
        "started",
        "from a thread",
        "old style",
        "bundle-refused",
        "failed",
    ]
    assert {line["service"] for line in lines} == {"deployer"}
    assert lines[0] | {"instance": "x", "level": "info", "logger": "a.b"} == lines[0]
    assert lines[3]["alarm"] is True
    assert "ValueError: boom" in lines[4]["exception"]


def test_settings_text_lines_for_people() -> None:
    """With text=True a line is for people, with the event and its fields."""
    stream = io.StringIO()
    telemetry.set_up("supervisor", stream=stream, text=True)
    telemetry.get_logger("a").info("started", instance="x")
    assert "started" in stream.getvalue()
    assert "instance=x" in stream.getvalue()


def test_settings_without_set_up_warnings_still_come_through(caplog: pytest.LogCaptureFixture) -> None:
    """A process that never set up telemetry writes through the standard library."""
    telemetry.get_logger("a").warning("spec-refused", spec="f")
    assert [record.getMessage() for record in caplog.records] == ["spec-refused spec=f"]


def test_settings_importing_telemetry_loads_neither_structlog_nor_rich() -> None:
    """Commands do not pay for services' log lines, and services do not pay for drawing."""
    program = (
        "import sys\nfrom pelton_platform import telemetry\nassert 'structlog' not in sys.modules\n"
        "telemetry.set_up('x')\nassert 'structlog' in sys.modules\nassert 'rich' not in sys.modules\n"
        "import rich.text"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

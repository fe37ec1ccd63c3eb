"""The page about the wire says what the code does: its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from pelton.core.spec import FunctionKind, FunctionSpec
from pelton.protocol import codec
from pelton.protocol.extensions import Extension
from pelton.protocol.headers import HEADERS
from pelton.protocol.topics import Topics

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "wire.md").read_text(encoding="utf-8")


def _rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_page_lists_every_topic() -> None:
    """Names, partitions and policies of all topics are those that are created."""
    spec = FunctionSpec("F", 1, "c", FunctionKind.SYNC, (), "m", "q", "b")
    topics = Topics("NS")
    plans = [*topics.topic_plans_for_function(spec, 3), *topics.control_topic_plans(3)]
    rows = _rows("Names")
    assert [row[0] for row in rows] == [f"`{plan.name.removeprefix('NS.')}`" for plan in plans]
    for row, plan in zip(rows, plans, strict=True):
        assert row[2].split()[-1] == str(plan.partitions)
        assert row[3] == plan.configs["cleanup.policy"]
        retention = int(plan.configs.get("retention.ms", "-1"))
        number, unit = (row[4].split() + [""])[:2] if row[4] != "for ever" else ("-1", "ms")
        assert int(number) * {"h": 3_600_000, "d": 86_400_000, "ms": 1}[unit] == retention


def test_the_page_lists_every_header() -> None:
    """The table of headers is the one in the code."""
    assert _rows("Headers") == [
        [f"`{header.name}`", header.type, header.records, header.absent or "never", header.meaning]
        for header in HEADERS
    ]


def test_the_page_lists_every_contract() -> None:
    """Subjects and fingerprints of the latest versions are those of the schemas."""
    assert [(row[0], row[2]) for row in _rows("Bodies")] == [
        (f"`{name}`", f"`{subject.prefix[2:].hex()}`") for name, subject in codec.SUBJECTS.items()
    ]


def test_the_page_lists_every_extension() -> None:
    """Each code of an extension is in the table, and no other."""
    listed = [int(code) for row in _rows("Payloads") for code in re.findall(r"\d+", row[0])]
    assert listed == [code for name, code in vars(Extension).items() if name.isupper()]

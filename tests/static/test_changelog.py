"""The changelog: fragments are well named, and a release moves them into CHANGELOG.md."""

from __future__ import annotations

import datetime
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from support.tree import ROOT

DAY = datetime.date(2026, 2, 28)


def program() -> ModuleType:
    """The program beside the fragments."""
    spec = importlib.util.spec_from_file_location("assemble", ROOT / "docs/changelog.d/assemble.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one release and two fragments."""
    (tmp_path / "docs/changelog.d").mkdir(parents=True)
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\nIntro.\n\n## 0.1.0 (2026-01-01)\n\n### Added\n\n- A.\n"
    )
    (tmp_path / "docs/changelog.d/README.md").write_text("# Fragments\n")
    (tmp_path / "docs/changelog.d/late-ack.fixed.md").write_text("An acknowledgement\nthat came late.\n")
    (tmp_path / "docs/changelog.d/streams.added.md").write_text("Streams.\n")
    return tmp_path


def test_the_fragments_of_this_repository_are_well_named() -> None:
    """Every fragment waiting for a release has a kind, and at least one line."""
    by_kind = program().fragments(ROOT / "docs/changelog.d")
    assert all(path.read_text().strip() for paths in by_kind.values() for path in paths)


def test_a_release_moves_the_fragments_above_older_sections(root: Path) -> None:
    """The new section comes first, sorted by kind, and no fragment is left."""
    program().assemble("0.2.0", DAY, root)
    assert (root / "CHANGELOG.md").read_text() == (
        "# Changelog\n\nIntro.\n\n"
        "## 0.2.0 (2026-02-28)\n\n### Added\n\n- Streams.\n\n"
        "### Fixed\n\n- An acknowledgement that came late.\n\n"
        "## 0.1.0 (2026-01-01)\n\n### Added\n\n- A.\n"
    )
    assert [path.name for path in (root / "docs/changelog.d").iterdir()] == ["README.md"]


@pytest.mark.parametrize("version", ["", "next", "0.1.0"])
def test_a_version_that_cannot_be_released_changes_nothing(root: Path, version: str) -> None:
    """No version, a word, or a version released before: refused, and every file stays as it was."""
    before = {path: path.read_text() for path in root.rglob("*.md")}
    with pytest.raises(SystemExit):
        program().assemble(version, DAY, root)
    assert {path: path.read_text() for path in root.rglob("*.md")} == before


def test_a_fragment_without_a_kind_is_refused_by_name(root: Path) -> None:
    """A misnamed fragment is named, not skipped."""
    (root / "docs/changelog.d/streams.md").write_text("Streams.\n")
    with pytest.raises(SystemExit, match=r"streams\.md"):
        program().assemble("0.2.0", DAY, root)

"""Tracked files hold no registry hosts, no paths of one machine, no marks of unfinished work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.tree import ROOT, files, python_files, relative

# Written as patterns so that this file does not hold what it looks for.
REGISTRY_HOSTS = (
    r"pypi\.org",
    r"pythonhosted\.org",
    r"repo1?\.maven\.(org|apache\.org)",
    r"registry\.npmjs\.org",
    r"proxy\.golang\.org",
    r"(deb\.debian|archive\.ubuntu)\.(org|com)",
    r"index\.crates\.io",
    r"(docker|ghcr|quay)\.io/",
)
HOME_PATHS = (r"/h[o]me/\w", r"/U[s]ers/\w", r"/r[o]ot/", re.escape(f"{ROOT}/"))
UNFINISHED = (
    r"\bT[O]DO\b",
    r"\bF[I]XME\b",
    r"\bX[X]X\b",
    r"\bNotImplemented[E]rror\b",
    r"\bnot [i]mplemented\b",
)


def hits(paths: list[Path], *patterns: str) -> Iterator[str]:
    """`file:line text` of each line that matches one of the patterns."""
    wanted = re.compile("|".join(patterns))
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not a text
        for number, line in enumerate(text.splitlines(), 1):
            if wanted.search(line):
                yield f"{relative(path)}:{number} {line.strip()[:120]}"


def test_no_file_names_a_registry_host() -> None:
    """Package names suffice: a host in a file breaks everybody who uses a mirror."""
    assert list(hits(list(files()), *REGISTRY_HOSTS)) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    """A path below somebody's home or this checkout works on one machine only."""
    assert list(hits(list(files()), *HOME_PATHS)) == []


def test_no_python_file_carries_a_mark_of_unfinished_work() -> None:
    """What is not built is left out, not left open."""
    assert list(hits(python_files(), *UNFINISHED)) == []


@pytest.mark.parametrize("line", ["see https://pypi" + ".org/simple", "at repo1.maven" + ".org/maven2"])
def test_a_registry_host_is_found(line: str, tmp_path: Path) -> None:
    """The patterns above match the hosts they mean."""
    assert re.search("|".join(REGISTRY_HOSTS), line)

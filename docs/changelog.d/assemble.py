"""Moves the fragments of this folder into a new section of CHANGELOG.md."""

from __future__ import annotations

import datetime
import re
import sys
from pathlib import Path

KINDS = ("added", "changed", "fixed", "removed", "security")
FRAGMENT = re.compile(rf"[a-z0-9-]+\.({'|'.join(KINDS)})\.md")


def fragments(folder: Path) -> dict[str, list[Path]]:
    """The fragments of a folder by kind, each kind in alphabetical order.

    Raises:
        SystemExit: a file is neither a fragment nor the folder's own README or program.
    """
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for path in sorted(folder.iterdir()):
        match = FRAGMENT.fullmatch(path.name)
        if match:
            found[match[1]].append(path)
        elif path.suffix == ".md" and path.name != "README.md":
            raise SystemExit(f"{path.name}: name it <what-it-is>.<kind>.md with a kind of {', '.join(KINDS)}")
    return found


def section(version: str, day: datetime.date, by_kind: dict[str, list[Path]]) -> str:
    """The text of a release: a heading, then one list per kind that has fragments."""
    lines = [f"## {version} ({day.isoformat()})", ""]
    for kind, paths in by_kind.items():
        if paths:
            texts = (" ".join(path.read_text(encoding="utf-8").split()) for path in paths)
            lines += [f"### {kind.capitalize()}", "", *(f"- {text}" for text in texts), ""]
    return "\n".join(lines)


def assemble(version: str, day: datetime.date, root: Path) -> str:
    """Writes the new section above the newest one of `root/CHANGELOG.md` and removes the fragments.

    Returns the section.

    Raises:
        SystemExit: the version is no version, is in the changelog already, or there is nothing to say.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+\w*", version):
        raise SystemExit(f"{version!r} is no version; say for example: make changelog VERSION=0.2.0")
    changelog = root / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    if f"\n## {version} " in text:
        raise SystemExit(f"CHANGELOG.md has a section {version} already")
    by_kind = fragments(root / "docs" / "changelog.d")
    if not any(by_kind.values()):
        raise SystemExit("docs/changelog.d holds no fragments: nothing to release")
    new = section(version, day, by_kind)
    head, mark, older = text.partition("\n## ")
    changelog.write_text(f"{head.rstrip()}\n\n{new}{mark}{older}", encoding="utf-8")
    for path in (path for paths in by_kind.values() for path in paths):
        path.unlink()
    return new


def main() -> None:
    """`assemble.py VERSION`: what `make changelog` runs."""
    version = sys.argv[1] if len(sys.argv) > 1 else ""
    print(assemble(version, datetime.datetime.now(datetime.UTC).date(), Path(__file__).parents[2]))


if __name__ == "__main__":
    main()

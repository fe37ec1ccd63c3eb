"""Renders what documentation can take from the code: the file map."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "schemas/pelton_schemas",
    "sdk/pelton",
    "consumer_templates/pelton_templates",
    "platform/pelton_platform",
)
BEGIN = "<!-- from here: rendered by `make fmt` from the first line of each file -->"
END = "<!-- to here -->"


def sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def line(name: str, path: Path, depth: int) -> str:
    """One line of the map; the sentences of all depths stand below each other."""
    return f"{'  ' * depth + name:<28} {sentence(path)}".rstrip()


def folder_lines(folder: Path, depth: int) -> list[str]:
    """The modules of a folder, then its sub-packages, one line each, indented by depth."""
    modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    lines = [line(path.name, path, depth) for path in modules]
    for package in sorted(folder.glob("*/__init__.py")):
        lines += [line(f"{package.parent.name}/", package, depth), *folder_lines(package.parent, depth + 1)]
    return lines


def file_map(root: Path = ROOT) -> str:
    """Every module of the distribution with what it knows, as one text block per import package."""
    blocks = []
    for package in PACKAGES:
        folder = root / package
        lines = [line(f"{package}/", folder / "__init__.py", 0), *folder_lines(folder, 1)]
        blocks.append("\n".join(["```", *lines, "```"]))
    return "\n\n".join(blocks)


def between(text: str, rendered: str) -> str:
    """`text` with what stands between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{rendered}\n\n{END}{after}"


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Each page with rendered parts -> the text it should have."""
    architecture = root / "docs" / "architecture.md"
    return {architecture: between(architecture.read_text(encoding="utf-8"), file_map(root))}


def main() -> None:
    """Brings the pages up to date and names those that changed."""
    for path, text in pages().items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"rendered {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

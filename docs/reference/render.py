"""Renders what documentation can take from the code: the file map, the commands, the settings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "schemas/pelton_schemas",
    "sdk/pelton",
    "consumer_templates/pelton_templates",
    "platform/pelton_platform",
)
BEGIN = "<!-- from here: rendered by `make fmt` -->"
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


def file_map() -> str:
    """Every module of the distribution with what it knows, as one text block per import package."""
    blocks = []
    for package in PACKAGES:
        folder = ROOT / package
        lines = [line(f"{package}/", folder / "__init__.py", 0), *folder_lines(folder, 1)]
        blocks.append("\n".join(["```", *lines, "```"]))
    return "\n\n".join(blocks)


def all_commands() -> Iterator[tuple[str, Any]]:
    """The words of every command of the `pelton` program, and the command."""
    import typer.main

    from pelton_platform.cli.main import app

    return leaves("pelton", typer.main.get_command(app))


def commands() -> str:
    """Every command: usage, what it does, its arguments and options."""
    return "\n\n".join(command_section(words, command) for words, command in all_commands())


def leaves(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands below a group that are no groups, with the words that reach them."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
        return
    for name, child in inner.items():
        if not child.hidden:
            yield from leaves(f"{words} {name}", child)


def command_section(words: str, command: Any) -> str:
    """Heading, text and parameters of one command."""
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    usage = " ".join([words, *(usage_word(parameter) for parameter in arguments)])
    lines = [f"## `{usage}`", "", " ".join((command.help or "").split())]
    if shown:
        lines += ["", *(parameter_line(parameter) for parameter in shown)]
    return "\n".join(lines)


def usage_word(parameter: Any) -> str:
    """An argument as it stands in a usage line: NAME, [NAME], NAME..."""
    word = (parameter.metavar or parameter.name).upper()
    word += "..." if parameter.nargs == -1 else ""
    return word if parameter.required else f"[{word.removeprefix('[').removesuffix(']')}]"


def parameter_line(parameter: Any) -> str:
    """A list entry: how a parameter is written, what it means, its default if that says something."""
    is_option = parameter.param_type_name == "option"
    written = (
        ", ".join([*parameter.opts, *parameter.secondary_opts])
        if is_option
        else usage_word(parameter).strip("[]")
    )
    default = parameter.default
    says = not (default is None or isinstance(default, bool) or callable(default) or default in ("", [], ()))
    return f"- `{written}`: {parameter.help or ''}".rstrip() + (f" Default: `{default}`." if says else "")


def settings() -> str:
    """Every setting as a row: name, variable, default, meaning."""
    from pelton_platform.settings import SETTINGS, PeltonSettings, meaning_of

    defaults = PeltonSettings()
    rows = ["| setting | variable | default | meaning |", "|---|---|---|---|"]
    for name in SETTINGS:
        variable = "PELTON_KAFKA_*" if name == "security" else f"PELTON_{name.upper()}"
        default = default_of(getattr(defaults, name))
        rows.append(" ".join(["|", f"`{name}` | `{variable}` |", *default, f"| {meaning_of(name)} |"]))
    return "\n".join(rows)


def default_of(value: object) -> list[str]:
    """The default of a setting as one would write it; nothing if it is unset or empty."""
    if value in (None, "", {}):
        return []
    return [f"`{value.total_seconds():g}s`" if isinstance(value, timedelta) else f"`{value}`"]


PAGES = {
    ROOT / "docs/architecture.md": file_map,
    ROOT / "docs/reference/commands.md": commands,
    ROOT / "docs/reference/settings.md": settings,
}
"""Each page with a rendered part, and what renders it."""


def rendered(page: Path) -> str:
    """The text a page should have: its own, with what stands between the marks made anew."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{PAGES[page]()}\n\n{END}{after}"


def main() -> None:
    """Brings the pages up to date and names those that changed."""
    for page in PAGES:
        text = rendered(page)
        if page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            print(f"rendered {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""The commands `pelton env set|ls|rm`: variables that every container gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pelton_platform.cli.console import Json, print_json, print_table, tell

if TYPE_CHECKING:
    from pelton_platform.deploy.home import Home

app = typer.Typer(
    name="env",
    help="Variables that every container gets; for values that nobody may see there is `pelton secret`.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("set")
def set_variables(
    pairs: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="Variables and values.")],
) -> None:
    """Set variables, over `[env]` of pelton.toml and under what containers say themselves.

    Instances that run keep what they have; the next ones get the new values.
    """
    from pelton_platform.deploy.default_env import change

    given = parse_pairs(pairs)
    change(_home(), given, ())
    tell(f"set {', '.join(sorted(given))}; instances that start from now on have them")


@app.command("ls")
def list_variables(as_json: Json = False) -> None:
    """List the variables that were set, and those of `[env]`."""
    from pelton_platform.deploy.default_env import stored
    from pelton_platform.settings import load_settings

    kept = stored(_home())
    rows = {name: (value, "pelton.toml") for name, value in load_settings().env.items()}
    rows |= {name: (value, "pelton env") for name, value in kept.items()}
    if as_json:
        print_json(
            [{"name": name, "value": value, "from": where} for name, (value, where) in sorted(rows.items())]
        )
        return
    print_table(
        ("VARIABLE", "VALUE", "FROM"),
        ((name, value, where) for name, (value, where) in sorted(rows.items())),
        empty="no variable is set; `pelton env set NAME=VALUE` sets one for every container",
    )


@app.command("rm")
def remove_variables(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Variables to forget.")],
) -> None:
    """Forget variables that were set with `pelton env set`."""
    from pelton_platform.deploy.default_env import change

    change(_home(), {}, names)
    tell(f"forgot {', '.join(names)}")


def parse_pairs(pairs: list[str]) -> dict[str, str]:
    """Read `NAME=VALUE` words.

    Raises:
        BadParameter: A word is none.
    """
    from pelton.errors import DefinitionError
    from pelton.policies import check_variable

    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE")
        try:
            check_variable("variables", name)
        except DefinitionError as error:
            raise typer.BadParameter(str(error)) from None
        found[name] = value
    return found


def _home() -> Home:
    from pelton_platform.deploy.home import Home
    from pelton_platform.settings import load_settings

    home = Home(load_settings().home)
    home.prepare()
    return home

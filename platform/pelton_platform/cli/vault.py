"""The commands `pelton secret set|ls|rm|rotate`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelton_platform.cli.console import Json, age, print_json, print_table, tell

if TYPE_CHECKING:
    from pelton_platform.deploy.secret_store import SecretStore

app = typer.Typer(
    name="secret",
    help="Secrets of this platform, which containers name with `Secret(name=...)`.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the secret.")]


@app.command("set")
def set_secret(
    name: Name,
    source: Annotated[
        str,
        typer.Argument(metavar="[-]", help="`-` reads the value from standard input.", show_default=False),
    ] = "",
    from_env: Annotated[
        str | None, typer.Option("--from-env", help="Take the value of this variable.")
    ] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from-file", help="Take the content of this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Store a value, over the one it had; asked for without echo when no source is named.

    One line end at the end of a file or of standard input is left out. Running containers get the new value
    with their next instance; deploying them again replaces those that run.
    """
    from pelton.policies import checked_name

    if sum((bool(source), from_env is not None, from_file is not None)) > 1:
        raise typer.BadParameter("name one source: -, --from-env or --from-file")
    if source not in ("", "-"):
        raise typer.BadParameter("values are not given as words, which other users can see; use - or a file")
    store = _opened()
    store.store(checked_name("secret", name), _value(name, source, from_env, from_file))
    users = store.users(name)
    if as_json:
        print_json({"name": name, "containers": users})
        return
    tell(f"secret {name} is stored")
    if users:
        tell(f"deploy again to replace what runs with its old value: {', '.join(users)}")


@app.command("ls")
def list_secrets(as_json: Json = False) -> None:
    """List the stored secrets: names, when they changed, who uses them; never values."""
    store = _opened()
    rows: list[dict[str, Any]] = [
        {"name": name, "changed_ms": changed_ms, "containers": store.users(name)}
        for name, changed_ms in store.names().items()
    ]
    if as_json:
        print_json(rows)
        return
    now_ms = time.time_ns() // 1_000_000
    print_table(
        ("SECRET", "CHANGED", "CONTAINERS"),
        ((row["name"], age(now_ms - row["changed_ms"]), ", ".join(row["containers"])) for row in rows),
        empty="no secret is stored; `pelton secret set NAME` stores one",
    )


@app.command("rm")
def remove_secret(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Also when a container uses it.")] = False,
) -> None:
    """Forget a secret. One that a deployed container uses is kept unless forced."""
    from pelton_platform.deploy.secret_store import SecretError

    store = _opened()
    users = store.users(name)
    if users and not force and name in store.names():
        raise SecretError(f"secret {name} is used by {', '.join(users)}; --force forgets it all the same")
    store.remove(name)
    tell(f"secret {name} is forgotten")


@app.command("rotate")
def rotate(as_json: Json = False) -> None:
    """Encrypt all values with a new key and drop the old one. Nothing has to be deployed again."""
    count = _opened().rotate()
    if as_json:
        print_json({"secrets": count})
    else:
        tell(f"{count} values are encrypted with a new key")


def _opened() -> SecretStore:
    from pelton_platform.deploy.home import Home
    from pelton_platform.deploy.secret_store import SecretStore
    from pelton_platform.settings import load_settings

    home = Home(load_settings().home)
    home.prepare()
    return SecretStore(home)


def _value(name: str, source: str, from_env: str | None, from_file: Path | None) -> str:
    from pelton_platform.deploy.secret_store import SecretError

    if from_env is not None:
        value = os.environ.get(from_env)
        if value is None:
            raise SecretError(f"the variable {from_env} is not set")
        return value
    try:
        if from_file is not None:
            return from_file.read_text().removesuffix("\n")
        if source == "-" or not sys.stdin.isatty():
            return sys.stdin.read().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"the value of {name} cannot be read: {error}") from error
    return str(typer.prompt(f"Value of {name}", hide_input=True, confirmation_prompt=True))

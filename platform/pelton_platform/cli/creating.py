"""The command `pelton new consumer`: copies a consumer program and what deploys it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pelton_platform.cli.console import Json, print_json, tell

app = typer.Typer(name="new", help="Make files to start from.", no_args_is_help=True)

TEMPLATE = "dispatch.py"

_DEPLOY = '''"""Deploys the consumer, a plain program in a container of its own: `pelton deploy deploy.py`."""

from __future__ import annotations

from pelton import Container

Container(
    name={name!r},
    entrypoint=["python", "consumer.py"],
    # What it can be told is at the head of consumer.py.
    env={{"TOPIC": {topic!r}, "FUNCTION": {function!r}, "GROUP": {name!r}}},
    min_instances=1,
    max_instances=1,
).run()
'''


@app.callback()
def new() -> None:
    """Make files to start from."""


@app.command("consumer")
def consumer(
    name: Annotated[str, typer.Argument(help="Name of the container, of its group, and of the folder.")],
    topic: Annotated[str, typer.Option(help="The topic it consumes.")],
    function: Annotated[str, typer.Option(help="The function it calls for each record.")],
    folder: Annotated[Path, typer.Option(help="Where the new folder is made.")] = Path(),
    as_json: Json = False,
) -> None:
    """Make a consumer that calls a function for the records of a topic, as a program of your own.

    It loses nothing and is stopped by nothing that lies in the topic: bad records are tried again and end
    in a dead-letter topic, and offsets are committed only for what is done.
    """
    from importlib.resources import files

    from pelton.protocol.topics import check_name

    try:
        check_name("container", name)
        check_name("function", function)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    made = folder / name
    program, deploy = made / "consumer.py", made / "deploy.py"
    for path in (program, deploy):
        if path.exists():
            raise typer.BadParameter(f"{path} is there already, and stays as it is")
    made.mkdir(parents=True, exist_ok=True)
    program.write_text(files("pelton_templates").joinpath(TEMPLATE).read_text(encoding="utf-8"), "utf-8")
    deploy.write_text(_DEPLOY.format(name=name, topic=topic, function=function), "utf-8")
    if as_json:
        print_json({"program": str(program), "deploy": str(deploy)})
        return
    for path in (program, deploy):
        typer.echo(str(path))
    tell(f"deploy it with: pelton deploy {deploy}")

"""The commands `pelton scale`, `pelton stop` and `pelton exec`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from pelton_platform.cli.console import Json, print_json, tell

if TYPE_CHECKING:
    from pelton_platform.deploy.control import ContainerControl

Name = Annotated[
    str, typer.Argument(metavar="CONTAINER", help="Name of a container; `pelton ps` lists them.")
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is so.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")]


def scale(
    container: Name,
    count: Annotated[str, typer.Argument(metavar="COUNT|auto", help="Instances, or `auto` for by load.")],
    wait: Wait = True,
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Set how many instances a container has, until it is deployed again.

    Also beyond its min_instances and max_instances; 0 stops it. `auto` leaves it to the platform again.
    """
    from pelton.policies import MAX_INSTANCES

    if count != "auto" and not (count.isdecimal() and int(count) <= MAX_INSTANCES):
        raise typer.BadParameter(f"COUNT is a number from 0 to {MAX_INSTANCES}, or auto, not {count!r}")
    _scale(container, None if count == "auto" else int(count), timeout if wait else 0.0, as_json)


def stop(container: Name, wait: Wait = True, timeout: Timeout = 60.0, as_json: Json = False) -> None:
    """Stop all instances of a container until it is deployed or scaled again.

    Calls of its functions wait meanwhile.
    """
    _scale(container, 0, timeout if wait else 0.0, as_json)


def execute(
    container: Name,
    command: Annotated[list[str], typer.Argument(help="Program and arguments, after --.")],
    instance: Annotated[str | None, typer.Option(help="Id of the instance; default: any.")] = None,
) -> None:
    """Run a command where an instance of a container runs.

    It has the files, the environment and the secrets of the instance, and ends with it: `pelton exec web --
    bash`. The exit code is that of the command.
    """
    words = _control().command(container, command[command[0] == "--" :], instance)
    os.execv(words[0], words)


def _scale(container: str, count: int | None, timeout_s: float, as_json: bool) -> None:
    control = _control()
    control.scale(container, count)
    info = control.wait(container, timeout_s) if timeout_s else control.info(container)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(info))
        return
    ready = sum(one.state == "ready" for one in info.instances)
    tell(f"{container}: {info.status}, {ready}/{info.wanted} ready ({info.reason})")


def _control() -> ContainerControl:
    from pelton.transport.config import find_context
    from pelton_platform.deploy.control import ContainerControl

    return ContainerControl(find_context())

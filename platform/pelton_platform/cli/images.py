"""The commands `pelton images ls|build|prune|dockerfile`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelton_platform.cli.console import Json, age, print_json, print_table, tell, warn

if TYPE_CHECKING:
    from pelton.container import Container
    from pelton_platform.deploy.environments import Environments
    from pelton_platform.deploy.home import Home

app = typer.Typer(
    name="images",
    help="Environments of images on this machine: list, build and remove them, or write Dockerfiles.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(help="A Python file that defines functions or containers.")]


@app.command("ls")
def list_images(as_json: Json = False) -> None:
    """List the environments that were built for images.

    Sizes count files that are shared with uv's cache of packages.
    """
    _, environments = _opened()
    found = environments.built()
    if as_json:
        print_json([asdict(built) for built in found])
        return
    print_table(
        ("ENVIRONMENT", "PYTHON", "SIZE", "USED", "STATE", "STEPS"),
        (
            (
                built.key[:12],
                built.python,
                f"{built.size / 2**20:.0f} MiB",
                age(round((time.time() - built.used_s) * 1000)),
                "built" if built.complete else "not finished",
                "; ".join(built.steps)[:80],
            )
            for built in found
        ),
        empty="no image was built yet; deploys build what they need, and `pelton images build FILE` does",
    )


@app.command("build")
def build(file: File, as_json: Json = False) -> None:
    """Build the images of a file without deploying it.

    A build that was interrupted goes on where it was; one that was made before is there at once.
    """
    _, environments = _opened()
    rows = []
    for container in _containers(file):
        what, image = f"container {container.name!r}", container.image.spec(file.absolute().parent)
        environments.keep_files(image, file.absolute().parent)
        environment = environments.build(image, what, tell)
        for note in environment.notes:
            warn(f"{what}: {note}")
        rows.append({"container": container.name, **asdict(environment)})
    if as_json:
        print_json(rows)
        return
    print_table(
        ("CONTAINER", "ENVIRONMENT", "PYTHON", "INTERPRETER"),
        ((row["container"], row["key"][:12] or "platform", row["version"], row["python"]) for row in rows),
        empty=f"{file} defines no container",
    )


@app.command("prune")
def prune(
    everything: Annotated[
        bool, typer.Option("--all", help="Also what deployed containers use; it is built again when needed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove the environments that no deployed container uses.

    Without a running platform nothing is known to be deployed: then only `--all` removes.
    """
    _, environments = _opened()
    removed, size = environments.prune(frozenset() if everything else _deployed())
    if as_json:
        print_json({"removed": removed, "bytes": size})
        return
    for key in removed:
        typer.echo(key[:12])
    tell(f"removed {len(removed)} environments, {size / 2**20:.0f} MiB with what they share")


@app.command("dockerfile")
def write_dockerfile(
    file: File,
    container: Annotated[
        str, typer.Option("--container", help="Which container, if the file has several.")
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to write to, with Pelton's own wheel; else it is printed."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the Dockerfile that says the same as the image of a file.

    The folder of the file is the build context, with Pelton's own wheel in it.
    """
    import platform
    import shutil

    from pelton.errors import DeployError
    from pelton_platform.deploy.dockerfile import dockerfile
    from pelton_platform.deploy.own_wheel import own_wheel

    home, _ = _opened()
    found = {one.name: one for one in _containers(file)}
    if not container and len(found) > 1:
        raise DeployError(
            f"{file} has several containers; choose with --container: {', '.join(sorted(found))}"
        )
    chosen = found.get(container) if container else next(iter(found.values()), None)
    if chosen is None:
        raise DeployError(
            f"{file} has no container {container!r}; it has {', '.join(sorted(found)) or 'none'}"
        )
    wheel = own_wheel(home.wheels)
    version = ".".join(platform.python_version_tuple()[:2])
    text = dockerfile(chosen.image.spec(file.absolute().parent), wheel.name, version)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "Dockerfile").write_text(text)
        shutil.copy(wheel, output / wheel.name)
        tell(f"wrote {output / 'Dockerfile'} and {output / wheel.name}")
    elif as_json:
        print_json({"container": chosen.name, "dockerfile": text, "wheel": str(wheel)})
    else:
        typer.echo(text, nl=False)


def _opened() -> tuple[Home, Environments]:
    from pelton_platform.deploy.environments import Environments
    from pelton_platform.deploy.home import Home
    from pelton_platform.settings import load_settings

    home = Home(load_settings().home)
    home.prepare()
    return home, Environments(home)


def _containers(file: Path) -> tuple[Container, ...]:
    from pelton_platform.deploy.loading import load_definitions

    return load_definitions(file.absolute()).containers


def _deployed() -> frozenset[str]:
    """Hashes of the images that are deployed."""
    from pelton_platform.cli.connecting import open_registry

    with open_registry() as (_, registry):
        containers: dict[str, Any] = registry.snapshot()[1]
    return frozenset(spec.image.digest for spec in containers.values())

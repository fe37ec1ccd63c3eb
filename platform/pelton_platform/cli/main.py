"""The entry of the command `pelton`: what is mounted, and how errors are told."""

from __future__ import annotations

import sys

import typer

from pelton_platform.cli import (
    calling,
    calls,
    cancelling,
    containers,
    creating,
    dead_letters,
    deleting,
    deploying,
    doctor,
    images,
    lifecycle,
    listing,
    logs,
    variables,
    vault,
)
from pelton_platform.cli import kafka as kafka_commands
from pelton_platform.cli.console import EXIT_FAILED, complain

app = typer.Typer(
    name="pelton",
    help="Run Python functions on events, on Apache Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Drawn help would load a quarter of a second's worth of modules.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(lifecycle.up)
app.command("down")(lifecycle.down)
app.command("deploy")(deploying.deploy)
app.command("delete")(deleting.delete)
app.command("call")(calling.call)
app.command("cancel")(cancelling.cancel)
app.command("functions")(listing.functions)
app.command("ps")(listing.ps)
app.command("logs")(logs.logs)
app.command("scale")(containers.scale)
app.command("stop")(containers.stop)
app.command("exec", context_settings={"allow_interspersed_args": False})(containers.execute)
app.add_typer(calls.app)
app.add_typer(dead_letters.app)
app.add_typer(creating.app)
app.add_typer(images.app)
app.add_typer(vault.app)
app.add_typer(variables.app)
app.command("doctor")(doctor.doctor)
app.add_typer(kafka_commands.app)
app.command("version")(listing.version)


def main() -> None:
    """Run the command line; errors that Pelton knows are one line and exit code 1."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output has seen enough, as `head` does.
        sys.stderr.close()
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if not _is_known(error):
            raise
        complain(" ".join(str(error).split("\n")) if len(str(error)) < 400 else str(error))
        sys.exit(EXIT_FAILED)


def _is_known(error: Exception) -> bool:
    from pelton.errors import PeltonError

    if isinstance(error, PeltonError):
        return True
    embedded = sys.modules.get("pelton_platform.embedded.failure")
    return embedded is not None and isinstance(error, embedded.EmbeddedKafkaError)


if __name__ == "__main__":
    main()

"""Variables that every container gets: those of the settings, those set by command, those of this start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pelton.errors import PeltonError
from pelton_platform.deploy.home import Home, read_json, write_json


class VariableError(PeltonError):
    """A variable that was to be forgotten was never set."""


def stored(home: Home) -> dict[str, str]:
    """Return the variables that `pelton env set` has kept."""
    return {str(name): str(value) for name, value in (read_json(home.env_file) or {}).items()}


def change(home: Home, given: Mapping[str, str], forgotten: Iterable[str]) -> None:
    """Set and forget variables.

    Raises:
        VariableError: One to forget is not there.
    """
    kept = stored(home) | dict(given)
    for name in forgotten:
        if kept.pop(name, None) is None:
            raise VariableError(
                f"{name} was not set by `pelton env set`; `pelton env ls` says where it comes from"
            )
    write_json(home.env_file, kept)


def default_environment(home: Home, settings: Mapping[str, str], over: Mapping[str, str]) -> dict[str, str]:
    """Return what every container gets now.

    Args:
        home: The home folder.
        settings: Those of `[env]`.
        over: Those of the command line that started the platform, which win.
    """
    return {**settings, **stored(home), **over}

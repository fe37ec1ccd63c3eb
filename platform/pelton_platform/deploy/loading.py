"""Loading the file of a user as a module, and taking note of what it defines."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from pathlib import Path

from pelton.errors import DeployError, PeltonError
from pelton.loading import Collected, collecting


class DefinesNothing(DeployError):
    """A file that was loaded has nothing to deploy."""


def load_definitions(file: Path) -> Collected:
    """Load a file as executors will: by its name, from its folder.

    Args:
        file: A Python file; its folder is the root of its imports.

    Returns:
        What it defines.

    Raises:
        DefinesNothing: It defines nothing.
        DeployError: There is no such file, its name is taken, or it fails.
        DefinitionError: What it defines is wrong.
    """
    file = file.absolute()
    if file.suffix != ".py" or not file.is_file():
        raise DeployError(f"{file} is no Python file")
    name = file.stem
    if name in sys.stdlib_module_names or name in ("pelton", "__main__"):
        raise DeployError(
            f"{file.name} has the name of a module that executors import already: give the file another name"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise DeployError(f"{file} cannot be loaded as a module")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.path.insert(0, str(file.parent))
    sys.modules[name] = module
    try:
        # What the file prints is for people: commands keep standard output for what they say themselves.
        with collecting(name) as collection, contextlib.redirect_stdout(sys.stderr):
            _run(module, spec.loader, file)
            collected = collection.result()
    finally:
        sys.path.remove(str(file.parent))
        if before is not None:
            sys.modules[name] = before
    if not collected.functions and not collected.containers:
        raise DefinesNothing(f"{file.name} defines nothing to deploy{_hint(collected)}")
    return collected


def _run(module: object, loader: object, file: Path) -> None:
    try:
        loader.exec_module(module)  # type: ignore[attr-defined]
    except PeltonError:
        raise
    except SystemExit as error:
        raise DeployError(
            f"{file.name} ended with exit code {error.code!r} while it was loaded; "
            'put what runs as a script under `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise DeployError(f"{file.name} cannot be loaded: {_where(error, file)}") from error


def _where(error: Exception, file: Path) -> str:
    """Say what happened and in which line of the user's own code."""
    said = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    if isinstance(error, SyntaxError):
        return f"{said} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(file.parent)]
    return f"{said} ({own[-1].filename}, line {own[-1].lineno})" if own else said


def _hint(collected: Collected) -> str:
    if collected.not_run:
        names = ", ".join(container.name for container in collected.not_run)
        return f"; a container with an entrypoint is deployed by its `.run()`: {names}"
    if collected.imported:
        return f"; it only imports {', '.join(collected.imported)}: deploy the file that defines them"
    return "; decorate a function with `@pelton.function`"

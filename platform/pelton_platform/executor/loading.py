"""How an executor finds the user's function: import the module from the bundle, walk to the name, unwrap."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pelton.core.call import Failure
from pelton.runtime.failures import failure_of

_OWN_FRAMES = (str(Path(__file__).parent) + os.sep, str(importlib.__file__), "<frozen importlib")


class LoadError(Exception):
    """The module was imported, but what was deployed is not in it; the message says what to look at."""


def load_function(bundle: Path, module: str, qualname: str) -> Callable[..., Any]:
    """Imports the user's module, the bundle being first on the path, and returns the function as written.

    Args:
        bundle: folder of the source bundle; becomes the working directory.
        module: dotted name relative to the bundle.
        qualname: qualified name inside of the module.

    Raises:
        LoadError: the module is another one, or the name is not a function in it.
        BaseException: whatever the module raises while it is imported.
    """
    os.chdir(bundle)
    sys.path.insert(0, str(bundle))
    importlib.invalidate_caches()
    loaded = importlib.import_module(module)
    _check_origin(loaded, bundle)
    found: Any = loaded
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise LoadError(
                f"module {module!r} of the bundle has no {qualname!r}; define it at module level, "
                "and not under a condition that does not hold in an executor"
            ) from None
    function: Any = _as_written(found)
    if not callable(function):
        raise LoadError(f"{module}.{qualname} is a {type(function).__name__}, not a function")
    return cast("Callable[..., Any]", function)


def load_failure(error: BaseException) -> Failure:
    """Why the user's code could not be loaded, without Pelton's and the import system's frames."""
    return failure_of(error, code="FAILED_PRECONDITION", own_folders=_OWN_FRAMES)


def _check_origin(module: ModuleType, bundle: Path) -> None:
    """Makes sure that the name did not lead to a module of Python or of a package instead."""
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    root = bundle.resolve()
    if not any(place and Path(place).resolve().is_relative_to(root) for place in places):
        raise LoadError(
            f"module {module.__name__!r} was loaded from {places[0] or 'the interpreter'}, "
            "not from the bundle: another module has that name; rename the file"
        )


def _as_written(found: Any) -> Any:
    """The bare function inside of Pelton's own wrapper, also when other wrappers lie around that one."""
    layer = found
    while layer is not None:
        if type(layer).__module__.partition(".")[0] == "pelton":
            return getattr(layer, "__wrapped__", layer)
        layer = getattr(layer, "__wrapped__", None)
    return found

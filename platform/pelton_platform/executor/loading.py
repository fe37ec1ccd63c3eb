"""How an executor finds the user's function: import the module from the bundle, walk to the name, unwrap."""

from __future__ import annotations

import hashlib
import hmac
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pelton import hooks
from pelton.core.call import Failure
from pelton.errors import SignatureError
from pelton.protocol.signing import unverified_body
from pelton.retries import rule_of
from pelton.runtime import pickled
from pelton.runtime.failures import failure_of
from pelton.runtime.retrying import NEVER, RetryRule

_OWN_FRAMES = (str(Path(__file__).parent) + os.sep, str(importlib.__file__), "<frozen importlib")


class LoadError(Exception):
    """The module was imported, but what was deployed is not in it; the message says what to look at."""


class Loaded(NamedTuple):
    """A function of the user's code.

    Attributes:
        function: as it was written.
        rule: after which failures it wants to be tried again.
    """

    function: Callable[..., Any]
    rule: RetryRule


def load_function(bundle: Path, module: str, qualname: str) -> Loaded:
    """Imports the user's module, the bundle being first on the path, and returns the function as written.

    Args:
        bundle: folder of the source bundle; becomes the working directory.
        module: dotted name relative to the bundle.
        qualname: qualified name inside of the module.

    Raises:
        LoadError: the module is another one, or the name is not a function in it.
        BaseException: whatever the module raises while it is imported.
    """
    _enter(bundle)
    imported = importlib.import_module(module)
    _check_origin(imported, bundle)
    found: Any = imported
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise LoadError(
                f"module {module!r} of the bundle has no {qualname!r}; define it at module level, "
                "and not under a condition that does not hold in an executor"
            ) from None
    loaded = _as_written(found)
    if not callable(loaded.function):
        raise LoadError(f"{module}.{qualname} is a {type(loaded.function).__name__}, not a function")
    return loaded


def load_code(bundle: Path, function: str, sha256: str) -> Loaded:
    """Unpickles the code of a function, the bundle being first on the path, and returns it as written.

    Args:
        bundle: folder of the source bundle; becomes the working directory.
        function: name of the function.
        sha256: digest of the code that the coordinator verified: nothing else is unpickled.

    Raises:
        LoadError: the code is not there, or is not that one.
        BaseException: whatever the code raises.
    """
    try:
        data = (bundle.parent / pickled.file_name(function, sha256)).read_bytes()
        body = unverified_body(pickled.purpose(function), data)
    except (OSError, SignatureError) as error:
        raise LoadError(f"the code of {function!r} cannot be read: {error}") from error
    if not hmac.compare_digest(hashlib.sha256(body).hexdigest(), sha256):
        raise LoadError(f"the code of {function!r} is not the one that was verified; deploy it again")
    _enter(bundle)
    loaded, (starts, stops) = pickled.load(body)
    hooks.adopt(list(starts), list(stops))
    return _as_written(loaded)


def load_failure(error: BaseException) -> Failure:
    """Why the user's code could not be loaded, without Pelton's and the import system's frames."""
    return failure_of(error, code="FAILED_PRECONDITION", own_folders=_OWN_FRAMES)


def _enter(bundle: Path) -> None:
    """Makes the bundle the working directory and the first place of imports."""
    os.chdir(bundle)
    sys.path.insert(0, str(bundle))
    importlib.invalidate_caches()


def _check_origin(module: ModuleType, bundle: Path) -> None:
    """Makes sure that the name did not lead to a module of Python or of a package instead."""
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    root = bundle.resolve()
    if not any(place and Path(place).resolve().is_relative_to(root) for place in places):
        raise LoadError(
            f"module {module.__name__!r} was loaded from {places[0] or 'the interpreter'}, "
            "not from the bundle: another module has that name; rename the file"
        )


def _as_written(found: Any) -> Loaded:
    """The bare function inside of Pelton's own wrapper, also when other wrappers lie around that one."""
    layer = found
    while layer is not None:
        if type(layer).__module__.partition(".")[0] == "pelton":
            return Loaded(getattr(layer, "__wrapped__", layer), rule_of(getattr(layer, "retry_policy", None)))
        layer = getattr(layer, "__wrapped__", None)
    return Loaded(found, NEVER)

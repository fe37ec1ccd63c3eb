"""The code of a function as bytes and back, for functions that have no module an executor could import."""

from __future__ import annotations

import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Final

from pelton.errors import DefinitionError, PeltonError
from pelton.protocol.classes import reachable

MAIN: Final = "__main__"
"""The module of scripts, notebooks and the REPL: in an executor it is another one."""

PURPOSE: Final = "function-code"
"""What signatures of code are for; the name of the function follows: code is worth nothing elsewhere."""

_FORMAT: Final = 1

Hooks = tuple[Sequence[Callable[..., Any]], Sequence[Callable[..., Any]]]
"""What starts an executor, and what stops it."""


class CodeError(PeltonError):
    """Code that cannot be loaded here; the message says why."""


def purpose(function: str) -> str:
    """What the signature of the code of a function is for."""
    return f"{PURPOSE}/{function}"


def file_name(function: str, sha256: str) -> str:
    """Name of the file that holds the signed code of a function, beside the source bundles.

    Args:
        function: its name.
        sha256: digest of the code, in hex.
    """
    return f"{function}-{sha256}.code"


def dump(name: str, function: Callable[..., Any], hooks: Hooks = ((), ())) -> bytes:
    """The code of a function with everything of `__main__` that it uses, as cloudpickle.

    Modules are named and not taken along. The same code gives the same bytes in every process, as far as
    what it refers to does.

    Args:
        name: its name on the platform, for messages.
        function: as the user wrote it.
        hooks: of `__main__`, that start and that stop an executor.

    Raises:
        DefinitionError: something it refers to cannot be taken along; the message names it.
    """
    import cloudpickle

    hints = _hints(function)
    names = {
        found.__name__: found for found in reachable(hints) if found.__module__ == MAIN and _is_top(found)
    }
    code = (function, hints, names, tuple(map(tuple, hooks))) if any(hooks) else (function, hints, names)
    try:
        body = cloudpickle.dumps(code)
    except Exception as error:
        # Whatever the pickling of a user's object raises: all of it means the same.
        raise DefinitionError(
            f"function {name!r} cannot be deployed: {_culprit(function)} cannot be pickled "
            f"({type(error).__name__}: {error}); make it inside the function, or in a module that it imports"
        ) from error
    head = {"format": _FORMAT, "python": _python()}
    return json.dumps(head, sort_keys=True).encode() + b"\n" + _settled(body)


def load(code: bytes) -> tuple[Callable[..., Any], Hooks]:
    """The function that `dump` took apart, and the hooks that came with it.

    This runs whatever the code says: only for bytes whose signature the coordinator has verified. What the
    function took along of `__main__` becomes the `__main__` of this process.

    Raises:
        CodeError: it was made by another version of Python or of Pelton.
        BaseException: whatever the code raises.
    """
    import cloudpickle

    head, _, body = code.partition(b"\n")
    made = json.loads(head)
    if made.get("format") != _FORMAT:
        raise CodeError("the function was deployed with another version of Pelton; deploy it again")
    if made["python"] != _python():
        raise CodeError(
            f"the function was deployed from Python {made['python']}, and the platform runs Python "
            f"{_python()}: run the script with that one, or deploy a module with `pelton deploy FILE`"
        )
    main = ModuleType(MAIN)
    # The module that is replaced may be the running program: nobody else keeps it.
    main.__dict__["__replaced__"] = sys.modules.get(MAIN)
    sys.modules[MAIN] = main
    function, hints, names, *rest = cloudpickle.loads(body)
    main.__dict__.update(getattr(function, "__globals__", {}))
    main.__dict__.update(names)
    main.__dict__["__name__"] = MAIN
    if hints:
        function.__annotations__ = hints
    return function, rest[0] if rest else ((), ())


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations evaluated here: the names in them are not looked up again elsewhere."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:
        # Names that exist for type checkers only; what they stand for arrives as `pelton.Record`.
        return {}


def _is_top(found: type) -> bool:
    return "." not in found.__qualname__


def _python() -> str:
    """Code travels between interpreters of one minor version."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _settled(body: bytes) -> bytes:
    """The pickle with ids that cloudpickle drew at random for classes replaced by ones that stay the same."""
    from cloudpickle import cloudpickle

    drawn: Mapping[type, str] = getattr(cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_CLASS", {})
    found = [drawn_id.encode() for drawn_id in list(drawn.values()) if drawn_id.encode() in body]
    for number, drawn_id in enumerate(sorted(found, key=body.find)):
        body = body.replace(drawn_id, f"{number:0{len(drawn_id)}x}".encode())
    return body


def _culprit(function: Callable[..., Any]) -> str:
    """What of all that the function refers to cannot be pickled, in words."""
    import cloudpickle

    try:
        used = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return "something it refers to"
    for kind, names in (("the global", used.globals), ("the variable", used.nonlocals)):
        for name, value in names.items():
            try:
                cloudpickle.dumps(value)
            except Exception:
                return f"{kind} {name!r}, a {type(value).__qualname__},"
    return "something it refers to"

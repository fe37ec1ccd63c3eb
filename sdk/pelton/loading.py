"""What a module defines while it is loaded for a deploy, and which functions this process knows by name."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from pelton.client import session
from pelton.errors import DefinitionError

if TYPE_CHECKING:
    from pelton.container import Container
    from pelton.decorators import Function

    AnyFunction = Function[Any, Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Collected:
    """What a module defines for deploy.

    Attributes:
        functions: the functions the module defines, in order.
        containers: the containers those run in and the containers whose `run()` was reached, each once.
        imported: names of functions other modules defined on the way; importing never deploys them.
        not_run: containers with an entrypoint the module defined without reaching their `run()`.
    """

    functions: tuple[AnyFunction, ...] = ()
    containers: tuple[Container, ...] = ()
    imported: tuple[str, ...] = ()
    not_run: tuple[Container, ...] = ()


@dataclass(slots=True)
class Collecting:
    """One module load under way."""

    module: str
    functions: list[AnyFunction] = field(default_factory=list)
    defined: list[Container] = field(default_factory=list)
    run: list[Container] = field(default_factory=list)

    def result(self) -> Collected:
        """What was collected so far.

        Raises:
            DefinitionError: two containers share a name.
        """
        collected = collect(self.module, self.functions, self.run)
        return replace(
            collected,
            imported=tuple(entry.name for entry in self.functions if entry.module != self.module),
            not_run=tuple(
                container
                for container in self.defined
                if container.entrypoint and container.module == self.module and container not in self.run
            ),
        )


def collect(module: str, functions: Iterable[AnyFunction], run: Iterable[Container]) -> Collected:
    """The functions of a module and the containers that are deployed with them.

    Raises:
        DefinitionError: two containers share a name.
    """
    own = tuple(entry for entry in functions if entry.module == module)
    containers: dict[str, Container] = {}
    for container in (*(entry.container for entry in own), *run):
        known = containers.setdefault(container.name, container)
        if known is not container:
            raise DefinitionError(
                f"two containers are named {container.name!r}; a function without container= has its "
                "own, named after it: rename one, or pass container= to the function"
            )
    return Collected(functions=own, containers=tuple(containers.values()))


_active: Collecting | None = None
_known: MutableMapping[str, AnyFunction] = weakref.WeakValueDictionary()


@contextmanager
def collecting(module: str) -> Iterator[Collecting]:
    """Collects what is defined while the module of this name is loaded for deploy.

    Calls and `wait_ready` raise meanwhile: a module that calls while it is loaded would call what is not
    deployed yet. Names defined before do not clash with those defined inside.

    Raises:
        DefinitionError: another module is being collected in this process.
    """
    global _active, _known
    if _active is not None:
        raise DefinitionError(f"{_active.module!r} is being loaded for deploy already")
    known, _known = _known, weakref.WeakValueDictionary()
    _active = current = Collecting(module)
    previous = session.refuse(lambda: _call_while_loading(module))
    try:
        yield current
    finally:
        session.refuse(previous)
        _active, _known = None, known


def active() -> Collecting | None:
    """The module load under way, None outside of a deploy."""
    return _active


def functions_of(module: str) -> list[AnyFunction]:
    """The functions of a module that this process knows, each in its latest definition."""
    return [function for function in _known.values() if function.module == module]


def register(function: AnyFunction) -> None:
    """Takes note of a function.

    Raises:
        DefinitionError: another function of this process has its name. One defined again replaces itself.
    """
    known = _known.get(function.name)
    if known is not None and not _same(known, function):
        raise DefinitionError(
            f"two functions are named {function.name!r}: {known.module}.{known.qualname} and "
            f"{function.module}.{function.qualname}; give one another name=..."
        )
    _known[function.name] = function
    if _active is not None:
        _active.functions = [entry for entry in _active.functions if entry.name != function.name]
        _active.functions.append(function)


def _same(known: AnyFunction, function: AnyFunction) -> bool:
    """Whether one is the other defined again: a cell run twice, or a script that is imported, too."""
    if known.qualname != function.qualname:
        return False
    return known.module == function.module or _file(known) == _file(function)


def _file(function: AnyFunction) -> str:
    return str(function.fn.__code__.co_filename)


def caller_frame(depth: int = 1) -> FrameType | None:
    """The nearest frame outside of Pelton, counted from the caller of the caller."""
    frame: FrameType | None = sys._getframe(depth + 1)
    while frame is not None and _is_ours(frame):
        frame = frame.f_back
    return frame


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return isinstance(name, str) and (name == "pelton" or name.startswith("pelton."))


def _call_while_loading(module: str) -> DefinitionError:
    """The refusal of a call at import, naming the line of the module that leads to it."""
    frame = caller_frame()
    nearest = frame
    while frame is not None and frame.f_globals.get("__name__") != module:
        frame = frame.f_back
    frame = frame or nearest
    where = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else module
    return DefinitionError(
        f"{where} calls a function while the module is loaded for deploy; "
        'put it under `if __name__ == "__main__":`'
    )

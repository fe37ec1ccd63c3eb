"""What user code does when its executor starts and stops: hooks of modules, objects of classes."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final, TypeVar

from pelton.errors import DefinitionError
from pelton.runtime.pickled import MAIN

F = TypeVar("F", bound=Callable[..., Any])
Hook = Callable[..., Any]

START: Final = "start"
STOP: Final = "stop"

OBJECT: Final = "__pelton_object__"
"""Attribute of a function made of a method: the `SharedObject` that it is called on."""

_MARK: Final = "__pelton_hook__"
_LOGGER: Final = logging.getLogger("pelton.runtime")
_hooks: Final[dict[str, list[Hook]]] = {START: [], STOP: []}


def on_start(fn: F) -> F:
    """Runs a function without arguments in each executor, before the first call it gets.

    At the top of a module, in the order of definition after the module was loaded; in a class of
    `@pelton.cls`, on its object. `def` or `async def`. What it raises is why the executor cannot start.

    Raises:
        DefinitionError: it is none, takes arguments, or is a generator.
    """
    return _noted(START, fn)


def on_stop(fn: F) -> F:
    """Runs a function without arguments in each executor that is told to stop, after its last call.

    In the reverse order of definition. An executor that is killed, crashes, or takes longer than its
    instance may take to end does not come to it. What it raises is logged.

    Raises:
        DefinitionError: it is none, takes arguments, or is a generator.
    """
    return _noted(STOP, fn)


class SharedObject:
    """The one object of a class in this process, made when it is first needed.

    Args:
        made_by: the class; called without arguments.
    """

    def __init__(self, made_by: type) -> None:
        self._made_by = made_by
        self._lock = threading.RLock()
        self._object: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Each process makes its own."""
        return (SharedObject, (self._made_by,))

    def get(self, loop: AbstractEventLoop | None = None) -> Any:
        """The object; hooks that start it have run."""
        if self._object is None:
            with self._lock:
                if self._object is None:
                    made = self._made_by()
                    for hook in hooks_of(self._made_by, START):
                        _run(functools.partial(hook, made), loop)
                    self._object = made
        return self._object

    def end(self, loop: AbstractEventLoop | None) -> None:
        """Runs the hooks that stop it, if it was made."""
        with self._lock:
            made, self._object = self._object, None
        if made is not None:
            for hook in reversed(hooks_of(self._made_by, STOP)):
                _run_last(functools.partial(hook, made), loop)


def start(function: Callable[..., Any], loop: AbstractEventLoop | None) -> None:
    """Runs what is to run before the first call of a function.

    Args:
        function: as the user wrote it.
        loop: runs hooks that are `async def`; None for a loop of their own.

    Raises:
        BaseException: whatever a hook raises.
    """
    for hook in _hooks[START]:
        _run(hook, loop)
    shared = getattr(function, OBJECT, None)
    if isinstance(shared, SharedObject):
        shared.get(loop)


def stop(function: Callable[..., Any], loop: AbstractEventLoop | None) -> None:
    """Runs what is to run after the last call of a function; logs what fails."""
    shared = getattr(function, OBJECT, None)
    if isinstance(shared, SharedObject):
        shared.end(loop)
    for hook in reversed(_hooks[STOP]):
        _run_last(hook, loop)


def of_main() -> tuple[list[Hook], list[Hook]]:
    """The hooks that the program of this process defines: they travel with its functions."""
    starts, stops = ([hook for hook in _hooks[when] if hook.__module__ == MAIN] for when in (START, STOP))
    return starts, stops


def adopt(starts: list[Hook], stops: list[Hook]) -> None:
    """Takes over hooks that came with the code of a function."""
    _hooks[START] += starts
    _hooks[STOP] += stops


def hooks_of(made_by: type, when: str) -> list[Hook]:
    """The hooks of a class, those of its bases first."""
    found: dict[str, Hook] = {}
    for one in reversed(made_by.__mro__):
        for name, value in vars(one).items():
            if getattr(value, _MARK, None) == when:
                found[name] = value
            elif name in found:
                del found[name]
    return list(found.values())


def _noted(when: str, fn: F) -> F:
    label = f"on_{when}: {getattr(fn, '__qualname__', repr(fn))}"
    if not isinstance(fn, FunctionType):
        raise DefinitionError(f"{label} is no Python function; decorate a `def`")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise DefinitionError(f"{label} is a generator; hooks run once and yield nothing")
    method = "." in fn.__qualname__.rpartition("<locals>.")[2]
    needed = [
        parameter.name
        for parameter in inspect.signature(fn).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(needed) != int(method):
        takes = "`self` alone" if method else "no arguments"
        raise DefinitionError(f"{label} takes {takes}, not {', '.join(needed) or 'nothing'}")
    if method:
        setattr(fn, _MARK, when)
    else:
        known = _hooks[when]
        # A cell that is run again defines its hook again.
        known[:] = [hook for hook in known if (hook.__module__, hook.__qualname__) != _place(fn)]
        known.append(fn)
    return fn


def _place(fn: FunctionType) -> tuple[str, str]:
    return fn.__module__, fn.__qualname__


def _run(hook: Callable[[], Any], loop: AbstractEventLoop | None) -> None:
    found = hook()
    if not inspect.iscoroutine(found):
        return
    if loop is not None and not loop.is_running():
        loop.run_until_complete(found)
        return
    # A loop may run in this thread, and cannot run another one: the hook gets a thread of its own.
    failed: list[BaseException] = []

    def drive() -> None:
        try:
            asyncio.run(found)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=drive, name="pelton-hook")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _run_last(hook: Callable[[], Any], loop: AbstractEventLoop | None) -> None:
    try:
        _run(hook, loop)
    except Exception:
        _LOGGER.exception("a hook of on_stop failed")

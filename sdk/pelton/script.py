"""What a script, a notebook or the REPL defines is deployed on first use, or when the script ended well."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from functools import partial
from opcode import opmap
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol

from pelton.client import ending, session
from pelton.client.notebook import in_notebook
from pelton.errors import DeployError, PeltonError
from pelton.loading import Collected, active, collect, functions_of
from pelton.runtime.pickled import MAIN
from pelton.transport.config import ConnectionConfig, find_context

if TYPE_CHECKING:
    from pelton.container import Container
    from pelton.decorators import Function

    AnyFunction = Function[Any, Any, Any, Any]

DEPLOYERS: Final = "pelton.deployers"
"""Entry points that deploy for a script; the platform brings one."""

_RETURNS: Final = frozenset(opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in opmap)
"""Instructions with which the code of a module ends, unless an exception ends it."""


class Deployer(Protocol):
    """Deploys what this process defines."""

    def __call__(self, collected: Collected, config: ConnectionConfig, main: ModuleType) -> None:
        """Deploys functions by their code and containers by the folder of the script; blocks until done.

        Raises:
            PeltonError: it could not; the message says why.
        """


class _Script:
    """What this process has defined and deployed.

    Attributes:
        waiting: names of functions that were defined and not deployed since.
        run: containers whose `run()` was reached, each once.
        frame: the running code of the script; None in notebooks and in the REPL.
        file: where the script is.
        child: this process was forked: it leaves deploying to its parent.
    """

    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self.run: list[Container] = []
        self.frame: FrameType | None = None
        self.file: str | None = None
        self.child = False
        self.deploying = threading.RLock()


_script = _Script()


def notice(function: AnyFunction) -> None:
    """Takes note of a function that was defined: one of a script will be deployed by this process."""
    if function.module != MAIN or active() is not None or not _deploys():
        return
    _script.waiting.add(function.name)
    function._before = partial(_deploy_first, function)
    if _script.frame is None and not _interactive():
        _script.frame = _module_frame()
        if _script.frame is not None:
            _script.file = _script.frame.f_globals.get("__file__")
            threading.Thread(target=_await_end, args=(_script.frame,), name="pelton-script").start()


def run(container: Container) -> ConnectionConfig:
    """Deploys a container, and all that the script has defined, at once; returns where.

    Raises:
        DeployError: this process does not deploy, or it could not.
    """
    if not _deploys():
        script = getattr(sys.modules.get(MAIN), "__file__", None) or "FILE"
        raise DeployError(
            f"container {container.name!r} was not deployed: neither tests nor child processes deploy; "
            f"run `pelton deploy {script}`"
        )
    with _script.deploying:
        if container not in _script.run:
            _script.run.append(container)
        return _deploy()


def _deploy_first(function: AnyFunction) -> None:
    """Deploys before the first use of a function."""
    with _script.deploying:
        if function._before is not None and not _script.child:
            _deploy()
        # Also of a definition that another one has replaced since: that one was deployed.
        function._before = None


def _deploy() -> ConnectionConfig:
    """Deploys all that is defined now; returns where."""
    functions = functions_of(MAIN)
    connection = session.open_connection()
    config = (connection.transport.config if connection is not None else None) or find_context()
    main = sys.modules[MAIN]
    _deployer()(collect(MAIN, functions, _script.run), config, main)
    for function in functions:
        function._before = None
    _script.waiting.clear()
    return config


def platform_part(group: str) -> Any:
    """What the platform offers for a purpose, by its entry points; None where there is no platform.

    Raises:
        DeployError: it is there in parts alone.
    """
    # Late: it takes longer to import than all of the SDK.
    from importlib.metadata import entry_points

    for point in entry_points(group=group):
        try:
            return point.load()
        except ImportError as error:
            raise DeployError(
                f"this Python environment has only a part of the platform ({error}): "
                "`pip install 'pelton[platform]'`"
            ) from error
    return None


def _deployer() -> Deployer:
    """What the platform offers for scripts."""
    loaded: Deployer | None = platform_part(DEPLOYERS)
    if loaded is None:
        raise DeployError("this Python environment cannot deploy: `pip install 'pelton[platform]'`")
    return loaded


def _await_end(frame: FrameType) -> None:
    """Waits for the end of the script and deploys what was not used before. The thread keeps the process."""
    threading.main_thread().join()
    with _script.deploying:
        if not _script.waiting:
            return
        names = ", ".join(sorted(_script.waiting))
        if not ended_well(frame):
            if not hasattr(sys, "last_value"):
                # Python has told of no exception: it was an exit.
                sys.stderr.write(f"pelton: not deployed, since the script ended by an exit: {names}\n")
            return
        if _script.file is not None:
            # Python takes it away when the script has ended, and code would not be what it was before.
            vars(sys.modules[MAIN]).setdefault("__file__", _script.file)
        try:
            _deploy()
        except (PeltonError, ValueError) as error:
            ending.fail(f"not deployed: {names}: {error}")
        except Exception:
            ending.fail(f"not deployed: {names}:\n{traceback.format_exc()}")


def ended_well(frame: FrameType) -> bool:
    """Whether the code of a module that has ended came to its end, and no exception or exit ended it."""
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] in _RETURNS


def _module_frame() -> FrameType | None:
    """The code of the script, as it runs now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == MAIN:
            return frame
        frame = frame.f_back
    return None


def _deploys() -> bool:
    """Whether this process deploys at all: tests do not, nor do children of a process."""
    testing = "_pytest.main" in sys.modules and "PYTEST_VERSION" in os.environ
    return not (testing or _script.child or session.is_provided())


def _interactive() -> bool:
    """Whether definitions come from a person, one after the other: nothing says which one is the last."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive or sys.flags.inspect) or in_notebook()


def _leave_to_parent() -> None:
    """In a forked child, whose threads are gone."""
    _script.child = True
    _script.deploying = threading.RLock()


os.register_at_fork(after_in_child=_leave_to_parent)

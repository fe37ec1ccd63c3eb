"""Containers: image, environment and scaling bounds that host functions or a plain program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pelton.errors import DefinitionError
from pelton.image import Image
from pelton.loading import active, caller_frame
from pelton.policies import (
    MAX_CONCURRENT_REQUESTS,
    MAX_INSTANCES,
    checked_bounds,
    checked_count,
    checked_env,
    checked_name,
    checked_words,
    refuse_unsupported,
)
from pelton.script import run as deploy_at_once
from pelton.secret import Secret, checked_secrets

_DEFAULT_IMAGE: Final = Image()


class Container:
    """Image, environment and scaling bounds; hosts functions, or runs a plain program.

    Functions name it with `container=`. With `entrypoint` it is a plain program, started in the folder of its
    source snapshot, and `run()` says that it is to be deployed.

    Args:
        image: what its environment needs; None for what the platform has.
        name: its name.
        cpu, memory, gpu, port: not in this version.
        env: variables for the user code, str to str.
        secrets: `Secret`s, each arriving in a variable.
        min_instances: instances kept alive; 0 stops them all when nothing waits. A plain program has one.
        max_instances: most instances at a time.
        max_concurrent_requests: attempts one instance runs at a time, per function.
        entrypoint: command of a plain program, e.g. `["python", "consumer.py"]`.

    Raises:
        DefinitionError: a value is wrong; the message names it and the fix.
        UnsupportedOption: a keyword this version does not have.
    """

    __slots__ = (
        "__weakref__",
        "entrypoint",
        "env",
        "image",
        "max_concurrent_requests",
        "max_instances",
        "min_instances",
        "module",
        "name",
        "secrets",
    )

    def __init__(
        self,
        *,
        image: Image | None = None,
        name: str,
        cpu: float | str | None = None,
        memory: int | str | None = None,
        gpu: str | int | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] | None = None,
        min_instances: int | None = None,
        max_instances: int | None = None,
        max_concurrent_requests: int | None = None,
        entrypoint: Sequence[str] | None = None,
        port: int | None = None,
    ) -> None:
        self.name: Final = checked_name("container", name)
        owner = f"container {self.name!r}"
        refuse_unsupported(owner, {"cpu": cpu, "memory": memory, "gpu": gpu, "port": port})
        if image is not None and not isinstance(image, Image):
            raise DefinitionError(f"{owner}: image is an Image, e.g. Image.debian_slim(), not {image!r}")
        self.image: Final = image or _DEFAULT_IMAGE
        self.env: Final = checked_env(owner, env)
        self.secrets: Final = checked_secrets(owner, secrets)
        self.entrypoint: Final = (
            self.image.command if entrypoint is None else checked_words(owner, "entrypoint", entrypoint)
        )
        if entrypoint is not None and not self.entrypoint:
            raise DefinitionError(f'{owner}: entrypoint is empty; give a command like ["python", "main.py"]')
        if self.entrypoint and max_concurrent_requests is not None:
            raise DefinitionError(
                f"{owner}: max_concurrent_requests bounds the calls of functions, and a program with an "
                "entrypoint hosts none; leave it out"
            )
        self.min_instances: Final = _count(owner, "min_instances", min_instances, bool(self.entrypoint), 0)
        self.max_instances: Final = _count(
            owner, "max_instances", max_instances, max(1, self.min_instances), 1
        )
        self.max_concurrent_requests: Final = checked_count(
            owner,
            "max_concurrent_requests",
            1 if max_concurrent_requests is None else max_concurrent_requests,
            low=1,
            high=MAX_CONCURRENT_REQUESTS,
        )
        checked_bounds(owner, self.min_instances, self.max_instances)
        if both := sorted({name for name, _ in self.env} & {secret.env for secret in self.secrets}):
            raise DefinitionError(f"{owner}: {', '.join(both)} is given by env and by a secret; drop one")
        frame = caller_frame()
        self.module: Final = "" if frame is None else str(frame.f_globals.get("__name__", ""))
        if (load := active()) is not None:
            load.defined.append(self)

    def run(self) -> None:
        """Deploys this container.

        Under `pelton deploy FILE` it is deployed with everything else the file defines; in a script, a
        notebook or the REPL at once, with everything that was defined there so far. At the top of a module
        that is only imported it does nothing: importing never deploys.

        Raises:
            DeployError: it was refused, or this process deploys nothing: a test, a child of another process.
            PlatformNotRunning: there is no platform.
        """
        frame = caller_frame(0)
        module = "" if frame is None else str(frame.f_globals.get("__name__", ""))
        load = active()
        if load is not None and module == load.module:
            if self not in load.run:
                load.run.append(self)
            return
        if module != "__main__" and frame is not None and frame.f_code.co_name == "<module>":
            return
        deploy_at_once(self)

    def __repr__(self) -> str:
        return f"Container(name={self.name!r})"


def _count(owner: str, keyword: str, value: object, default: int, low: int) -> int:
    if value is None:
        return int(default)
    return checked_count(owner, keyword, value, low=low, high=MAX_INSTANCES)

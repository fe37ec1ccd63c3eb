"""Where the platform keeps what: the layout of the home folder, and files that are whole and private."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelton.errors import DeployError, PeltonError

HOME_VARIABLE = "PELTON_PLATFORM_HOME"
"""Every process that a platform starts carries it, so that what a dead platform left behind can be found."""

_LOCK_S = 60.0
_LOOK_S = 0.02
_MARK = "pelton.home"
_MARK_TEXT = "This folder belongs to a Pelton platform. `pelton down --purge` empties it.\n"
# What other commands keep in the same folder, before and after `pelton up`.
_NEIGHBOURS = frozenset({"kafka"})


class HomeError(PeltonError):
    """The home folder cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Home:
    """The home folder of one platform; every path of it is made here.

    Attributes:
        root: The folder itself.
    """

    root: Path

    @property
    def context_file(self) -> Path:
        """What every other command reads to find the platform."""
        return self.root / "context.json"

    @property
    def keys(self) -> Path:
        """One key file per namespace."""
        return self.root / "keys"

    def key_file(self, namespace: str) -> Path:
        """The key file of a namespace."""
        return self.keys / f"{namespace}.json"

    @property
    def bundles(self) -> Path:
        """One folder and one signed manifest per source snapshot, named by its digest."""
        return self.root / "bundles"

    @property
    def images(self) -> Path:
        """One Python environment with its files per image."""
        return self.root / "images"

    @property
    def image_files(self) -> Path:
        """Local files of images, by the hash of their content."""
        return self.root / "image-files"

    @property
    def wheels(self) -> Path:
        """The platform's own wheel, for the environments of images."""
        return self.root / "wheels"

    @property
    def payloads(self) -> Path:
        """The object store of large payloads, where the settings name no other."""
        return self.root / "payloads"

    @property
    def secrets_file(self) -> Path:
        """Values of secrets, encrypted."""
        return self.root / "secrets.json"

    @property
    def secrets_key_file(self) -> Path:
        """The keys by which they are, the one in use first."""
        return self.root / "secrets.key"

    @property
    def secrets_lock(self) -> Path:
        """Held by whoever changes secrets."""
        return self.run / "secrets.lock"

    @property
    def env_file(self) -> Path:
        """Variables of all containers that were set by command."""
        return self.root / "env.json"

    @property
    def broker(self) -> Path:
        """Data and logs of the platform's own broker."""
        return self.root / "broker"

    @property
    def run(self) -> Path:
        """State of the processes that run now."""
        return self.root / "run"

    @property
    def lock_file(self) -> Path:
        """Held by the running supervisor for as long as it lives."""
        return self.run / "supervisor.lock"

    @property
    def supervisor_file(self) -> Path:
        """Who supervises, and what it started."""
        return self.run / "supervisor.json"

    @property
    def deployer_file(self) -> Path:
        """What the deployer has made of each container."""
        return self.run / "deployer.json"

    @property
    def deployer_config(self) -> Path:
        """How the supervisor tells the deployer what to do."""
        return self.run / "deployer-config.json"

    @property
    def deploy_lock(self) -> Path:
        """Held by a deploy, so that two of them do not both make the same version."""
        return self.run / "deploy.lock"

    @property
    def instances(self) -> Path:
        """One folder per live instance."""
        return self.run / "instances"

    @property
    def logs(self) -> Path:
        """Logs of supervisor and deployer, and one per instance."""
        return self.root / "logs"

    @property
    def instance_logs(self) -> Path:
        """Output of instances."""
        return self.logs / "instances"

    @property
    def pycache(self) -> Path:
        """Compiled Python of bundles: bundles themselves are never written to."""
        return self.root / "cache" / "pycache"

    def prepare(self) -> None:
        """Create the folder and those in it, for this user alone.

        Raises:
            HomeError: It cannot be created or written, or it is full of somebody else's files.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark = self.root / _MARK
            if not mark.exists():
                strangers = sorted({item.name for item in self.root.iterdir()} - _NEIGHBOURS)
                if strangers:
                    raise HomeError(
                        f"{self.root} is no home folder of Pelton and not empty (it holds {strangers[0]}): "
                        "name another one with PELTON_HOME"
                    )
                mark.write_text(_MARK_TEXT)
            for folder in (self.keys, self.bundles, self.instances, self.instance_logs, self.pycache):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HomeError(
                f"the home folder {self.root} cannot be used: {error.strerror}; "
                "name another one with PELTON_HOME"
            ) from error

    @property
    def is_ours(self) -> bool:
        """Whether this folder was made by `prepare`: nothing else is ever emptied."""
        return (self.root / _MARK).is_file()


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, as a whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data with `write_private`."""
    write_private(path, json.dumps(data, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what `write_json` wrote; None when there is no such file.

    Raises:
        HomeError: It holds something else.
    """
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise HomeError(f"{path} cannot be read ({error}); remove it") from error
    if not isinstance(data, dict):
        raise HomeError(f"{path} does not hold what it should; remove it")
    return data


@contextlib.contextmanager
def deploy_lock(home: Home) -> Iterator[None]:
    """Hold the lock of deploys: two of them at once would both make the same version.

    Raises:
        DeployError: Another one holds it for too long.
    """
    busy = f"another deploy has been running for {_LOCK_S:.0f} s; wait for it or end it"
    with waited_for(home.deploy_lock, _LOCK_S, lambda: DeployError(busy)):
        yield


@contextlib.contextmanager
def waited_for(
    path: Path,
    timeout_s: float = math.inf,
    refusal: Callable[[], Exception] = TimeoutError,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Hold a lock file, waiting for whoever holds it.

    Args:
        path: The file.
        timeout_s: How long to wait.
        refusal: Makes what is raised when that is over.
        on_wait: Told once when it has to wait.
    """
    deadline, pause, told = time.monotonic() + timeout_s, threading.Event(), False
    while True:
        with exclusive(path) as held:
            if held:
                yield
                return
        if time.monotonic() >= deadline:
            raise refusal()
        if not told:
            told = True
            on_wait()
        pause.wait(_LOOK_S)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold a lock file without waiting; gives False when somebody else holds it.

    The system releases it when the process ends, however it ends.
    """
    import fcntl

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)

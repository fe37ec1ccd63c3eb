"""The file that tells an instance who it is: written by a deployer, readable by its owner alone."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

from pelton.protocol.topics import check_name
from pelton.transport.config import ConnectionConfig
from pelton_platform.confinement import NO_LIMITS, Limits

LOG_LEVELS: Final = ("debug", "info", "warning", "error")


class InstanceFileError(ValueError):
    """The instance file is missing, readable by others, or says something that cannot be."""


@dataclass(frozen=True, slots=True)
class InstanceFile:
    """What an instance is told.

    Attributes:
        namespace: prefix of all topics and groups.
        bootstrap_servers: Kafka addresses.
        container: name of the container this is an instance of.
        instance: its id, unique.
        bundles: folder with one folder for each source bundle, named by digest.
        security: further settings of the Kafka client; secret.
        key_file: file with the namespace key.
        store, store_options: object store of large payloads, "" for none; the options are secret.
        env: environment of executors, without secrets.
        secrets: values of secrets by variable, which stand in no file.
        log_level: one of `LOG_LEVELS`.
        python: interpreter of executors.
        root: folder with the files of the image by their absolute paths, "" for none.
        workdir: working folder that the image sets, "" for the sources.
        limits: memory and CPU that each executor may use.
        path: where it was read from; the counters lie beside it.
    """

    namespace: str
    bootstrap_servers: str
    container: str
    instance: str
    bundles: Path
    key_file: Path
    path: Path
    security: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    store: str = ""
    store_options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    secrets: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    log_level: str = "info"
    python: str = sys.executable
    root: str = ""
    workdir: str = ""
    limits: Limits = NO_LIMITS

    @property
    def connection(self) -> ConnectionConfig:
        """How to reach Kafka."""
        return ConnectionConfig(
            self.bootstrap_servers,
            self.namespace,
            security=self.security,
            key_file=self.key_file,
            store=self.store,
            store_options=self.store_options,
        )

    @property
    def exchange_path(self) -> Path:
        """Folder by which executors hand over large payloads."""
        return self.path.with_name(self.path.name + ".payloads")

    @property
    def counters_path(self) -> Path:
        """Where the counters are written."""
        return self.path.with_name(self.path.name + ".counters.json")


def read_instance_file(path: Path, secrets: IO[str] = sys.stdin) -> InstanceFile:
    """Reads the file, and the values of secrets if it says that there are some.

    Args:
        path: the file.
        secrets: where the values are read from, a JSON object.

    Raises:
        InstanceFileError: it cannot be used; the message says what to do.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InstanceFileError(f"the instance file {path} cannot be read: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InstanceFileError(
            f"others may read the instance file {path}, which holds secrets: chmod 600 it"
        )
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InstanceFileError(f"the instance file {path} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise InstanceFileError(f"the instance file {path} holds no JSON object")
    try:
        return _instance(path, data, secrets)
    except (KeyError, ValueError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise InstanceFileError(f"the instance file {path}: {what}") from error


def _instance(path: Path, data: Mapping[str, Any], secrets: IO[str]) -> InstanceFile:
    level = _text(data, "log_level", "info").lower()
    if level not in LOG_LEVELS:
        raise ValueError(f"log_level is {level!r}; it is one of {', '.join(LOG_LEVELS)}")
    found = InstanceFile(
        namespace=_text(data, "namespace"),
        bootstrap_servers=_text(data, "bootstrap_servers"),
        container=check_name("container", _text(data, "container")),
        instance=_text(data, "instance"),
        bundles=Path(_text(data, "bundles")),
        key_file=Path(_text(data, "key_file")),
        path=path,
        security=_texts(data, "security"),
        store=str(data.get("store") or ""),
        store_options=_texts(data, "store_options"),
        env=_texts(data, "env"),
        secrets=_texts({"secrets": json.load(secrets)}, "secrets") if data.get("secrets") else {},
        log_level=level,
        python=_text(data, "python", sys.executable),
        root=str(data.get("root") or ""),
        workdir=str(data.get("workdir") or ""),
        limits=Limits(_count(data, "memory"), _count(data, "cpu")),
    )
    _ = found.connection  # refuses a namespace or a client setting that cannot be
    return found


def _text(data: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = data[name] if default is None else data.get(name, default)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a text that is not empty")
    return value


def _count(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be a number that is not negative")
    return value


def _texts(data: Mapping[str, Any], name: str) -> Mapping[str, str]:
    value = data.get(name) or {}
    if not isinstance(value, dict) or not all(
        isinstance(part, str) for item in value.items() for part in item
    ):
        raise ValueError(f"{name} must map texts to texts")
    return MappingProxyType(dict(value))

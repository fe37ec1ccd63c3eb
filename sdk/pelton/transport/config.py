"""Where the platform is: the settings of a connection, and the places in which they are looked for."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pelton.errors import PlatformNotRunning

DEFAULT_NAMESPACE: Final = "pelton"
"""Namespace of topics and groups when nothing names another."""

CONTEXT_FILE: Final = "context.json"
"""File in the home folder in which a running platform says how to reach it."""

KEYS_FOLDER: Final = "keys"
"""Folder in the home folder with one key file per namespace, `NAMESPACE.json`."""

PROJECT_FILE: Final = "pelton.toml"
"""Settings of a project, looked for in the working folder and the folders above it."""

_HOME: Final = "PELTON_HOME"
_SERVERS: Final = "PELTON_BOOTSTRAP_SERVERS"
_NAMESPACE: Final = "PELTON_NAMESPACE"
_KEY_FILE: Final = "PELTON_KEY_FILE"
_KAFKA: Final = "PELTON_KAFKA_"
_STORE: Final = "PELTON_STORE"
_STORE_OPTIONS: Final = "PELTON_STORE_OPTIONS"
_SCHEMES: Final = ("file", "s3", "gs", "az")
_NAMESPACE_PATTERN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
# Settings the transport decides itself; a connection that changed them would break a promise.
_RESERVED: Final = frozenset(
    {
        "acks",
        "auto.offset.reset",
        "bootstrap.servers",
        "enable.auto.commit",
        "enable.idempotence",
        "group.id",
        "linger.ms",
        "message.timeout.ms",
        "partitioner",
        "transactional.id",
    }
)


@dataclass(frozen=True, slots=True)
class ConnectionConfig:
    """How to reach one platform.

    Attributes:
        bootstrap_servers: Kafka addresses, `host:port[,host:port]`.
        namespace: prefix of all topics and groups.
        security: further settings of the Kafka client by librdkafka's names, e.g. `security.protocol`,
            `sasl.username`; values may be secret and are never shown.
        key_file: file with the namespace key, with which specs are verified; None for the one that the home
            folder has for the namespace (`home_key_file`). Where neither is, specs are taken as data:
            whoever may write to the registry topic decides over partitions and signatures of functions.
            Nothing in a spec is ever imported or run by a reader.
        home: folder in which a local platform keeps its state, None when it is not on this machine.
        store: object store of payloads above 512 KiB, `file:///folder` or `s3://bucket/prefix`; "" for none.
            A platform of this machine names its own in its context.
        store_options: further settings of the store by obstore's names, e.g. `endpoint`; values may be
            secret and are never shown. What they leave out the environment says, e.g. `AWS_REGION`.

    Raises:
        ValueError: no address, a namespace that cannot name topics, a reserved client setting, or an address
            that is none of a store.
    """

    bootstrap_servers: str
    namespace: str = DEFAULT_NAMESPACE
    security: Mapping[str, str] = field(default_factory=dict)
    key_file: Path | None = None
    home: Path | None = None
    store: str = ""
    store_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.bootstrap_servers or not self.bootstrap_servers.strip(" ,"):
            raise ValueError("bootstrap_servers is empty: give Kafka's address as host:port")
        if _NAMESPACE_PATTERN.fullmatch(self.namespace) is None:
            raise ValueError(
                f"{self.namespace!r} cannot be a namespace: it starts with a letter, then up to 62 letters, "
                "digits, `_` or `-`"
            )
        if taken := sorted(_RESERVED.intersection(self.security)):
            raise ValueError(f"{', '.join(taken)} cannot be set: Pelton's guarantees rest on its own values")
        if self.store:
            store_folder(self.store)
        object.__setattr__(self, "security", MappingProxyType(dict(self.security)))
        object.__setattr__(self, "store_options", MappingProxyType(dict(self.store_options)))

    def __repr__(self) -> str:
        """All but the values of the security settings."""
        return (
            f"ConnectionConfig(bootstrap_servers={self.bootstrap_servers!r}, namespace={self.namespace!r}, "
            f"security=<{', '.join(sorted(self.security)) or 'none'}>, key_file={str(self.key_file)!r}, "
            f"home={str(self.home)!r}, store={self.store!r}, "
            f"store_options=<{', '.join(sorted(self.store_options)) or 'none'}>)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its parts: a read-only mapping has no pickle of its own."""
        parts = (self.bootstrap_servers, self.namespace, dict(self.security), self.key_file, self.home)
        return (ConnectionConfig, (*parts, self.store, dict(self.store_options)))


def home_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The folder of the local platform: `$PELTON_HOME`, else `~/.pelton`."""
    given = (os.environ if environ is None else environ).get(_HOME)
    return Path(given).expanduser() if given else Path.home() / ".pelton"


def store_folder(url: str) -> Path | None:
    """The folder that an address of a store names, None when it names a bucket.

    Raises:
        ValueError: it names neither.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            f"{url!r} is no address of an object store: give file:///folder or s3://bucket/prefix"
        )
    if parts.scheme != "file":
        if not parts.netloc:
            raise ValueError(f"{url!r} names no bucket: give s3://bucket/prefix")
        return None
    folder = Path(unquote(parts.path))
    if parts.netloc or not folder.is_absolute():
        raise ValueError(f"{url!r} names no folder of this machine: give file:///folder")
    return folder


def home_key_file(config: ConnectionConfig) -> Path | None:
    """The key file that the home folder has for the namespace; None when there is none to be seen.

    The home folder is that of the connection, else `$PELTON_HOME`, else `~/.pelton`.
    """
    try:
        path = (config.home or home_folder()) / KEYS_FOLDER / f"{config.namespace}.json"
        return path if path.is_file() else None
    except (OSError, RuntimeError):  # a folder that is closed to this user, or a user without a home
        return None


def find_context(*, environ: Mapping[str, str] | None = None, folder: Path | None = None) -> ConnectionConfig:
    """Finds the platform: environment first, then `pelton.toml`, then the local platform's context.

    Args:
        environ: environment variables; None for those of the process.
        folder: where the search for `pelton.toml` starts; None for the working folder.

    Returns:
        The first context that names `bootstrap_servers`. `PELTON_NAMESPACE`, `PELTON_KEY_FILE`,
        `PELTON_STORE`, `PELTON_STORE_OPTIONS` (a JSON object) and `PELTON_KAFKA_*`
        (`PELTON_KAFKA_SASL_USERNAME` is `sasl.username`) win over what a file says.

    Raises:
        PlatformNotRunning: no context names a platform that can be running; the message names what was tried.
        ValueError: a file is there and cannot be read, or a value is none.
    """
    environ = os.environ if environ is None else environ
    tried: list[str] = []
    if environ.get(_SERVERS):
        return _with_environment({}, environ)
    tried.append(f"{_SERVERS} is not set")

    project = _project_file(folder or Path.cwd())
    if project is None:
        tried.append(f"no {PROJECT_FILE} in {folder or Path.cwd()} or above")
    else:
        settings = _read_project(project)
        if settings.get("bootstrap_servers"):
            return _with_environment(settings, environ)
        tried.append(f"{project} has no bootstrap_servers")

    path = home_folder(environ) / CONTEXT_FILE
    context, why_not = _read_context(path)
    if context is not None:
        return _with_environment(context, environ)
    tried.append(why_not)
    raise PlatformNotRunning(
        f"no Pelton platform is running here: {'; '.join(tried)}. "
        f"Start one with `pelton up`, or set {_SERVERS}."
    )


def _with_environment(settings: Mapping[str, Any], environ: Mapping[str, str]) -> ConnectionConfig:
    """A context with what the environment says on top."""
    security = {str(name): str(value) for name, value in (settings.get("security") or {}).items()}
    for name, value in environ.items():
        if name.startswith(_KAFKA) and len(name) > len(_KAFKA):
            security[name[len(_KAFKA) :].lower().replace("_", ".")] = value
    key_file = environ.get(_KEY_FILE) or settings.get("key_file")
    home = environ.get(_HOME) or settings.get("home")
    return ConnectionConfig(
        bootstrap_servers=environ.get(_SERVERS) or str(settings["bootstrap_servers"]),
        namespace=environ.get(_NAMESPACE) or str(settings.get("namespace") or DEFAULT_NAMESPACE),
        security=security,
        key_file=Path(key_file).expanduser() if key_file else None,
        home=Path(home).expanduser() if home else None,
        store=environ.get(_STORE) or str(settings.get("store") or ""),
        store_options=_store_options(settings, environ),
    )


def _store_options(settings: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    options = {str(name): str(value) for name, value in (settings.get("store_options") or {}).items()}
    given = environ.get(_STORE_OPTIONS)
    if given:
        try:
            options |= {str(name): str(value) for name, value in json.loads(given).items()}
        except (ValueError, AttributeError):
            # What it says may be secret.
            raise ValueError(f"{_STORE_OPTIONS} is no JSON object") from None
    return options


def _project_file(folder: Path) -> Path | None:
    folder = folder.absolute()
    for candidate in (folder, *folder.parents):
        path = candidate / PROJECT_FILE
        if path.is_file():
            return path
    return None


def _read_project(path: Path) -> dict[str, Any]:
    """Settings of a project; a relative key file is relative to the project."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    security = settings.get("security", {})
    if not isinstance(security, dict):
        raise ValueError(f"{path}: [security] must be a table of Kafka client settings")
    settings["security"] = dict(_flattened(security))
    if not isinstance(settings.get("store_options", {}), dict):
        raise ValueError(f"{path}: [store_options] must be a table of settings of the object store")
    if settings.get("key_file"):
        settings["key_file"] = path.parent / Path(str(settings["key_file"])).expanduser()
    return settings


def _flattened(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """TOML makes tables of `sasl.username = "x"` and booleans of `true`; the client takes names and texts."""
    flat: list[tuple[str, str]] = []
    for name, value in table.items():
        if isinstance(value, dict):
            flat.extend(_flattened(value, f"{prefix}{name}."))
        else:
            flat.append((prefix + name, str(value).lower() if isinstance(value, bool) else str(value)))
    return flat


def _read_context(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The context a running platform wrote, or None and the reason why there is none."""
    try:
        context = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, f"{path} does not exist"
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; `pelton up` writes it anew") from error
    if not isinstance(context, dict) or not context.get("bootstrap_servers"):
        raise ValueError(f"{path} names no bootstrap_servers; `pelton up` writes it anew")
    pid = context.get("pid")
    if isinstance(pid, int) and pid > 0 and not _process_exists(pid):
        return None, f"{path} was left by process {pid}, which is gone"
    return context, ""


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

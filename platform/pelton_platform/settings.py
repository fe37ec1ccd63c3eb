"""Every setting of the platform: its name, meaning and default, read from `PELTON_*` and `pelton.toml`."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from pelton.errors import PeltonError
from pelton.protocol.topics import check_name
from pelton.transport.config import store_folder

SETTINGS_FILE = "pelton.toml"
PREFIX = "PELTON_"
KAFKA_PREFIX = "PELTON_KAFKA_"

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*")
_TABLES = ("security", "env", "store_options")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SettingsError(PeltonError):
    """A setting has a value it cannot have; the message names the setting, the value and the source."""


_Port = Annotated[int, Meta(ge=1, le=65535)]


class PeltonSettings(Struct, frozen=True, kw_only=True):
    """Settings of one platform.

    A variable `PELTON_NAME` wins over `name` in `pelton.toml` (in the current folder or the nearest one
    above), which wins over the default. A word on the command line wins over all of them. Tables are put
    together name by name.
    """

    home: Annotated[
        Path,
        Meta(description="Folder that holds all state of the platform: broker data, bundles, keys, logs."),
    ] = Path("~/.pelton")
    namespace: Annotated[
        str,
        Meta(description="Prefix of every topic and group; platforms with different ones share one Kafka."),
    ] = "pelton"
    bootstrap_servers: Annotated[
        str | None,
        Meta(description="An existing Kafka, as `host:port[,host:port]`. Unset: `pelton up` starts its own."),
    ] = None
    port: Annotated[
        _Port | None,
        Meta(description="Port of the embedded broker. Unset: that of the last start, else 9092, else any."),
    ] = None
    gateway_port: Annotated[
        _Port | None,
        Meta(description="Port of the gateway. Unset: 8750, or any where that is taken."),
    ] = None
    java_flags: Annotated[
        str,
        Meta(
            pattern=r"^\s*(-\S+(\s+-\S+)*)?\s*$",
            description="Further flags of the Java that runs the embedded broker, as `-Xmx1g -Xss2m`.",
        ),
    ] = ""
    key_file: Annotated[
        Path | None,
        Meta(description="Key file of the namespace. Unset: one is made in the home folder."),
    ] = None
    security: Annotated[
        dict[str, str],
        Meta(description="Client settings by librdkafka's names: table `[security]`, or `PELTON_KAFKA_*`."),
    ] = field(default_factory=dict)
    store: Annotated[
        str,
        Meta(
            description="Object store of payloads above 512 KiB: `file:///folder` or `s3://bucket/prefix`. "
            "Unset: a folder in the home folder."
        ),
    ] = ""
    store_options: Annotated[
        dict[str, str],
        Meta(description="Settings of the object store by obstore's names, `endpoint`: `[store_options]`."),
    ] = field(default_factory=dict)
    deploy: Annotated[
        list[str],
        Meta(description="Files that `pelton deploy` takes when none is named, relative to `pelton.toml`."),
    ] = field(default_factory=list)
    sasl: Annotated[
        bool,
        Meta(description="Whether the embedded broker takes logins (SCRAM) on a second port: `--sasl`."),
    ] = False
    env: Annotated[
        dict[str, str],
        Meta(description="Variables given to every container, which its own `env=` overrides: `[env]`."),
    ] = field(default_factory=dict)
    keep_warm: Annotated[
        timedelta,
        Meta(description="How long the last instance stays after it was needed; `min_instances` stay."),
    ] = timedelta(seconds=30)
    cool_down: Annotated[
        timedelta,
        Meta(description="How long fewer must have been enough before some stop; at most `keep_warm`."),
    ] = timedelta(seconds=30)
    drain: Annotated[
        timedelta,
        Meta(description="How long a stopping instance may finish running calls before it hands them back."),
    ] = timedelta(seconds=30)
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        Meta(description="Least level of the platform's own log lines."),
    ] = "INFO"
    bundle_limit_mib: Annotated[
        int,
        Meta(ge=1, description="Largest source folder a deploy takes, in MiB."),
    ] = 64


SETTINGS: Final = {found.name: found for found in msgspec.structs.fields(PeltonSettings)}
"""Every setting by its name, with its type and default."""


def meaning_of(name: str) -> str:
    """Return the sentence that says what a setting means."""
    notes: tuple[Meta, ...] = SETTINGS[name].type.__metadata__
    return next(note.description for note in notes if note.description)


def load_settings(**given: Any) -> PeltonSettings:
    """Read the settings.

    Args:
        given: What the command line says; None means that it says nothing.

    Raises:
        SettingsError: A setting cannot have its value, or `pelton.toml` cannot be read.
    """
    found: dict[str, Any] = {"home": str(SETTINGS["home"].default)}
    for source in (_from_file(find_settings_file(Path.cwd())), _from_variables(os.environ), given):
        for name, value in source.items():
            if value is not None:
                found[name] = found.get(name, {}) | value if isinstance(value, dict) else value
    values: dict[str, Any] = {}
    complaints: list[str] = []
    for name, value in found.items():
        try:
            values[name] = _read(name, value)
        except _Unknown:
            complaints.append(f"{name!r} is no setting; the settings are {', '.join(SETTINGS)}")
        except (ValueError, TypeError) as error:
            where = f"{PREFIX}{name.upper()}, or {SETTINGS_FILE}"
            # Tables may hold secrets.
            shown = "this" if name in _TABLES else repr(value)
            complaints.append(f"setting {name!r} ({where}) cannot be {shown}: {error}")
    if complaints:
        raise SettingsError("; ".join(complaints))
    return PeltonSettings(**values)


def find_settings_file(folder: Path) -> Path | None:
    """Return the `pelton.toml` of a folder or of the nearest folder above it; None if there is none."""
    for candidate in (folder, *folder.parents):
        if (candidate / SETTINGS_FILE).is_file():
            return candidate / SETTINGS_FILE
    return None


def files_to_deploy(path: Path) -> list[str]:
    """Return the files that a `pelton.toml` lists for deploys.

    Raises:
        SettingsError: It cannot be read, or lists something else.
    """
    try:
        return list(msgspec.convert(_from_file(path).get("deploy", []), list[str]))
    except msgspec.ValidationError as error:
        raise SettingsError(f"the setting 'deploy' in {path} is a list of files: {error}") from error


def kafka_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the librdkafka settings that an environment names with `PELTON_KAFKA_*`."""
    return {
        name.removeprefix(KAFKA_PREFIX).lower().replace("_", "."): value
        for name, value in environ.items()
        if name.startswith(KAFKA_PREFIX) and name != KAFKA_PREFIX
    }


def _from_file(path: Path | None) -> dict[str, Any]:
    """Read `pelton.toml`; nothing without one."""
    if path is None:
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise SettingsError(f"the settings in {path} cannot be read: {error}") from error
    if isinstance(found.get("security"), dict):
        found["security"] = _flatten(found["security"])
    return found


def _flatten(table: Mapping[str, Any]) -> dict[str, str]:
    """Turn the tables that TOML makes of dotted names back into names, and its booleans into words."""
    flat: dict[str, str] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{rest}": found for rest, found in _flatten(value).items()}
        else:
            flat[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return flat


def _from_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """Read `PELTON_*`, where tables are JSON objects, and `PELTON_KAFKA_*`."""
    found: dict[str, Any] = {}
    for name in SETTINGS:
        value = environ.get(f"{PREFIX}{name.upper()}")
        if value is None:
            continue
        found[name] = value
        if name in _TABLES:
            try:
                found[name] = msgspec.json.decode(value, type=dict[str, str])
            except msgspec.MsgspecError as error:
                variable = f"{PREFIX}{name.upper()}"
                raise SettingsError(f"{variable} is a JSON object whose values are texts: {error}") from None
    security = found.get("security", {}) | kafka_variables(environ)
    return found | ({"security": security} if security else {})


class _Unknown(ValueError):
    """There is no setting of this name."""


def _read(name: str, value: object) -> object:
    """Return the value of a setting, checked, as what it is used as."""
    if name not in SETTINGS:
        raise _Unknown(name)
    kind = SETTINGS[name].type
    if kind.__origin__ is timedelta and isinstance(value, str) and (simple := _DURATION.fullmatch(value)):
        value = float(simple[1]) * _UNITS_S[simple[2] or "s"]
    read: Any = msgspec.convert(value, kind, strict=False, dec_hook=_path)
    match read:
        case timedelta() if read < timedelta(0):
            raise ValueError("it is at least 0")
        case Path():
            return read.expanduser().absolute()
    if name == "store" and read:
        store_folder(read)
    if name == "namespace":
        check_name("namespace", read)
    for variable in read if name == "env" else ():
        if not _VARIABLE.fullmatch(variable):
            raise ValueError(f"{variable!r} is no name of an environment variable")
    return read


def _path(_kind: type, value: object) -> Path:
    """Make what msgspec has no reading of its own for."""
    if not isinstance(value, str | Path):
        raise TypeError(f"expected a path, got {type(value).__name__}")
    return Path(value)

"""Every setting of the platform: its name, meaning and default, read from `PELTON_*` and `pelton.toml`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pelton.errors import PeltonError
from pelton.protocol.topics import check_name

SETTINGS_FILE = "pelton.toml"
KAFKA_PREFIX = "PELTON_KAFKA_"

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIMPLE_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SettingsError(PeltonError):
    """A setting has a value it cannot have; the message names the setting, the value and the source."""


def _read_duration(value: object) -> object:
    """Turn `30`, `"30"`, `"500ms"`, `"30s"`, `"5m"`, `"2h"`, `"1d"` into a duration; leave the rest alone."""
    if isinstance(value, str) and (match := _SIMPLE_DURATION.fullmatch(value)):
        return timedelta(seconds=float(match[1]) * _UNITS_S[match[2] or "s"])
    return value


def _flatten(table: object) -> object:
    """Turn the tables that TOML makes of dotted names back into names, and its booleans into words."""
    if not isinstance(table, dict):
        return table
    flat: dict[str, object] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            inner = _flatten(value)
            flat |= (
                {f"{name}.{rest}": found for rest, found in inner.items()} if isinstance(inner, dict) else {}
            )
        else:
            flat[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return flat


Duration = Annotated[timedelta, BeforeValidator(_read_duration)]
"""A length of time: a number of seconds, or a number with a unit (`ms`, `s`, `m`, `h`, `d`)."""


class _KafkaVariables(PydanticBaseSettingsSource):
    """Librdkafka settings from the environment: `PELTON_KAFKA_SASL_USERNAME` is `sasl.username`."""

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        raise AttributeError("this source gives the security table as a whole")

    def __call__(self) -> dict[str, Any]:
        found = kafka_variables(os.environ)
        return {"security": found} if found else {}


def kafka_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the librdkafka settings that an environment names with `PELTON_KAFKA_*`."""
    return {
        name.removeprefix(KAFKA_PREFIX).lower().replace("_", "."): value
        for name, value in environ.items()
        if name.startswith(KAFKA_PREFIX) and name != KAFKA_PREFIX
    }


def find_settings_file(folder: Path) -> Path | None:
    """Return the `pelton.toml` of a folder or of the nearest folder above it; None if there is none."""
    for candidate in (folder, *folder.parents):
        if (candidate / SETTINGS_FILE).is_file():
            return candidate / SETTINGS_FILE
    return None


class PeltonSettings(BaseSettings):
    """Settings of one platform.

    A variable `PELTON_NAME` wins over `name` in `pelton.toml` (in the current folder or the nearest one
    above), which wins over the default. A word on the command line wins over all of them.
    """

    model_config = SettingsConfigDict(env_prefix="PELTON_", extra="forbid", frozen=True)

    home: Path = Field(
        default=Path("~/.pelton"),
        description="Folder that holds all state of the platform: broker data, bundles, keys, logs.",
    )
    namespace: str = Field(
        default="pelton",
        description="Prefix of every topic and group; platforms with different namespaces share one Kafka.",
    )
    bootstrap_servers: str | None = Field(
        default=None,
        description="An existing Kafka, as `host:port[,host:port]`. Unset: `pelton up` starts its own.",
    )
    port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port of the embedded broker. Unset: that of the last start, else 9092, else a free one.",
    )
    java_flags: str = Field(
        default="",
        pattern=r"^\s*(-\S+(\s+-\S+)*)?\s*$",
        description="Further flags of the Java that runs the embedded broker, as `-Xmx1g -Xss2m`.",
    )
    key_file: Path | None = Field(
        default=None,
        description="Key file of the namespace. Unset: one is made in the home folder.",
    )
    security: Annotated[dict[str, str], BeforeValidator(_flatten)] = Field(
        default_factory=dict,
        description="Client settings by librdkafka's names: table `[security]`, or `PELTON_KAFKA_*`.",
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        description="Variables given to every container, which its own `env=` overrides: table `[env]`.",
    )
    keep_warm: Duration = Field(
        default=timedelta(seconds=30),
        ge=timedelta(0),
        description="How long an instance stays after it was last needed, down to `min_instances`.",
    )
    drain: Duration = Field(
        default=timedelta(seconds=30),
        ge=timedelta(0),
        description="How long a stopping instance may finish running calls before they are handed back.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO",
        description="Least level of the platform's own log lines.",
    )
    bundle_limit_mib: int = Field(
        default=64,
        ge=1,
        description="Largest source folder a deploy takes, in MiB.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: words given to the class, the environment, `pelton.toml`."""
        return (
            init_settings,
            env_settings,
            _KafkaVariables(settings_cls),
            TomlConfigSettingsSource(settings_cls, find_settings_file(Path.cwd())),
        )

    @field_validator("namespace")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        return check_name("namespace", value)

    @field_validator("home", "key_file")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("env")
    @classmethod
    def _are_variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return value


def load_settings(**given: Any) -> PeltonSettings:
    """Read the settings.

    Args:
        given: What the command line says; None means that it says nothing.

    Raises:
        SettingsError: A setting cannot have its value, or `pelton.toml` cannot be read.
    """
    try:
        return PeltonSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_complaint(item) for item in error.errors())) from None
    except (ValueError, OSError) as error:
        # Broken TOML, and variables that hold broken JSON for a table.
        raise SettingsError(f"the settings cannot be read ({SETTINGS_FILE} or PELTON_*): {error}") from error


def _complaint(item: Mapping[str, Any]) -> str:
    """Say in one sentence what is wrong with a setting and where it is set."""
    name = str(item["loc"][0]) if item["loc"] else "settings"
    if item["type"] == "extra_forbidden":
        known = ", ".join(PeltonSettings.model_fields)
        return f"{name!r} is no setting; the settings are {known}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return (
        f"setting {name!r} (PELTON_{name.upper()}, or {SETTINGS_FILE}) cannot be {item['input']!r}: {message}"
    )

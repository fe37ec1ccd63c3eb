"""What a supervisor is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # A supervisor in the background is given its settings, and starts sooner without what reads them.
    from pelton_platform.settings import PeltonSettings


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    """What a supervisor is told.

    Attributes:
        home: The home folder.
        namespace: The namespace.
        bootstrap_servers: An existing Kafka; None for an embedded one.
        port: Port of the embedded broker; None to choose.
        gateway_port: Port of the gateway; None to choose.
        java_flags: Further flags of its Java, apart by blanks.
        security: Further settings of Kafka clients; may be secret.
        key_file: Key file of the namespace; None for the one in the home folder.
        store: Object store of large payloads; "" for a folder in the home folder.
        store_options: Further settings of the store; may be secret.
        env: Default variables of containers.
        over: Those that the command line gave, which win.
        sasl: Whether the embedded broker takes logins too.
        keep_warm_ms: How long the last instance stays after it was needed.
        cool_down_ms: How long fewer instances must have been enough before some are stopped.
        drain_ms: How long a stopping instance may take.
        log_level: Least level of log lines.
    """

    home: Path
    namespace: str = "pelton"
    bootstrap_servers: str | None = None
    port: int | None = None
    gateway_port: int | None = None
    java_flags: str = ""
    security: Mapping[str, str] = field(default_factory=dict)
    key_file: Path | None = None
    store: str = ""
    store_options: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    over: Mapping[str, str] = field(default_factory=dict)
    sasl: bool = False
    keep_warm_ms: int = 30_000
    cool_down_ms: int = 30_000
    drain_ms: int = 30_000
    log_level: str = "INFO"

    @classmethod
    def of(cls, settings: PeltonSettings) -> SupervisorSettings:
        """Take what a supervisor needs of the settings."""
        return cls(
            home=settings.home,
            namespace=settings.namespace,
            bootstrap_servers=settings.bootstrap_servers,
            port=settings.port,
            gateway_port=settings.gateway_port,
            java_flags=settings.java_flags,
            security=settings.security,
            key_file=settings.key_file,
            store=settings.store,
            store_options=settings.store_options,
            env=settings.env,
            sasl=settings.sasl,
            keep_warm_ms=round(settings.keep_warm.total_seconds() * 1000),
            cool_down_ms=round(settings.cool_down.total_seconds() * 1000),
            drain_ms=round(settings.drain.total_seconds() * 1000),
            log_level=settings.log_level,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "home": str(self.home),
            "namespace": self.namespace,
            "bootstrap_servers": self.bootstrap_servers,
            "port": self.port,
            "gateway_port": self.gateway_port,
            "java_flags": self.java_flags,
            "security": dict(self.security),
            "key_file": None if self.key_file is None else str(self.key_file),
            "store": self.store,
            "store_options": dict(self.store_options),
            "env": dict(self.env),
            "over": dict(self.over),
            "sasl": self.sasl,
            "keep_warm_ms": self.keep_warm_ms,
            "cool_down_ms": self.cool_down_ms,
            "drain_ms": self.drain_ms,
            "log_level": self.log_level,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SupervisorSettings:
        """Read what `to_json` wrote."""
        key_file = data["key_file"]
        rest = {name: value for name, value in data.items() if name not in ("home", "key_file")}
        return cls(home=Path(data["home"]), key_file=None if key_file is None else Path(key_file), **rest)

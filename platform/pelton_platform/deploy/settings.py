"""What a deployer is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pelton.transport.config import ConnectionConfig
from pelton_platform.deploy.home import Home


@dataclass(frozen=True, slots=True)
class DeployerSettings:
    """What a deployer is told when it starts.

    Attributes:
        home: The home folder.
        config: How to reach Kafka.
        env: Default variables of containers.
        over: Those that the command line gave, which win over those set by `pelton env`.
        keep_warm_ms: How long an instance stays after it was last needed.
        drain_ms: How long a stopping instance may take.
        log_level: Least level of its own log lines and those of instances.
        cool_down_ms: How long fewer instances must have been enough before some are stopped.
    """

    home: Home
    config: ConnectionConfig
    env: Mapping[str, str]
    keep_warm_ms: int
    drain_ms: int
    log_level: str = "INFO"
    over: Mapping[str, str] = field(default_factory=dict)
    cool_down_ms: int = 30_000

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the file that the deployer reads."""
        return {
            "home": str(self.home.root),
            "bootstrap_servers": self.config.bootstrap_servers,
            "namespace": self.config.namespace,
            "security": dict(self.config.security),
            "key_file": str(self.config.key_file),
            "store": self.config.store,
            "store_options": dict(self.config.store_options),
            "env": dict(self.env),
            "keep_warm_ms": self.keep_warm_ms,
            "drain_ms": self.drain_ms,
            "log_level": self.log_level,
            "over": dict(self.over),
            "cool_down_ms": self.cool_down_ms,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeployerSettings:
        """Read what `to_json` wrote."""
        home = Path(data["home"])
        config = ConnectionConfig(
            bootstrap_servers=data["bootstrap_servers"],
            namespace=data["namespace"],
            security=data["security"],
            key_file=Path(data["key_file"]),
            home=home,
            store=data["store"],
            store_options=data["store_options"],
        )
        return cls(
            Home(home),
            config,
            data["env"],
            data["keep_warm_ms"],
            data["drain_ms"],
            data["log_level"],
            data["over"],
            data["cool_down_ms"],
        )

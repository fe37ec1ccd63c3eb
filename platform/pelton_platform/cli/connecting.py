"""How commands reach the platform: the context that is found, and its registry read once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pelton.protocol.signing import Keyring
    from pelton.transport.config import ConnectionConfig
    from pelton_platform.deploy.registry import Registry

READ_S = 15.0


@contextmanager
def open_registry() -> Iterator[tuple[ConnectionConfig, Registry]]:
    """Give the connection and the registry of the platform, read to its end.

    Raises:
        PlatformNotRunning: There is no platform in any of the contexts tried.
        TransportError: Kafka cannot be reached.
        SignatureError: The key of the namespace is missing or damaged.
    """
    from pelton.transport.config import find_context
    from pelton_platform.deploy.registry import Registry

    config = find_context()
    registry = Registry(config, keyring_of(config))
    try:
        registry.wait_end(READ_S)
        yield config, registry
    finally:
        registry.close()


def keyring_of(config: ConnectionConfig) -> Keyring:
    """Return the keys of the namespace of a connection.

    Raises:
        SignatureError: They are missing or damaged.
    """
    from pelton.protocol.signing import Keyring
    from pelton.transport.config import home_folder
    from pelton_platform.deploy.home import Home

    return Keyring.load(config.key_file or Home(config.home or home_folder()).key_file(config.namespace))


def not_deployed(function: str) -> Exception:
    """Return the error of a command that was given a function nobody knows."""
    from pelton.errors import FunctionNotFound

    return FunctionNotFound(f"function {function!r} is not deployed; see `pelton functions`")

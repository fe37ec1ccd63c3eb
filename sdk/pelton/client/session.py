"""The connection of this process: found on first use, made anew after a fork, flushed at the end."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from pelton.client import ending
from pelton.client.connection import CLOSE_SECONDS, Connection
from pelton.errors import PayloadCorrupt, UnsupportedOption
from pelton.protocol.claims import Claim
from pelton.transport.config import ConnectionConfig, find_context
from pelton.transport.ports import Transport

Refusal = Callable[[], Exception]
"""Makes the error that every use of the platform raises while it is refused."""

_connection: Connection | None = None
_connecting = threading.Lock()
_inherited: list[Connection] = []
"""Connections of parents: kept, since ending a client whose threads did not come along would hang."""
_refusal: Refusal | None = None
_opening: Callable[[], Connection] | None = None


def current() -> Connection:
    """The connection of this process, opened on first use.

    Raises:
        PlatformNotRunning: there is no platform in any of the contexts tried.
        TransportError: Kafka cannot be reached.
    """
    if _refusal is not None:
        raise _refusal()
    connection = _connection
    return connection if connection is not None and not connection.closed else _open(find_context)


def connect(
    bootstrap_servers: str | None = None,
    *,
    namespace: str | None = None,
    security: Mapping[str, str] | None = None,
    key_file: str | os.PathLike[str] | None = None,
    home: str | os.PathLike[str] | None = None,
    store: str | None = None,
    store_options: Mapping[str, str] | None = None,
) -> Connection:
    """Connects this process to a platform; without it the first call connects to the one that is found.

    An earlier connection of the process is closed.

    Args:
        bootstrap_servers: Kafka addresses, `host:port[,host:port]`; None for the platform that is found in
            the environment, in `pelton.toml`, or running on this machine.
        namespace: of the platform; None for what was found, "pelton" otherwise.
        security: further settings of the Kafka client by librdkafka's names, e.g. `sasl.username`.
        key_file: file with the namespace key.
        home: folder of a local platform.
        store: object store of payloads above 512 KiB, `file:///folder` or `s3://bucket/prefix`.
        store_options: further settings of the store by obstore's names, e.g. `endpoint`.

    Returns:
        The connection; `close()` it, or use it as a context manager, or leave it to the end of the program.

    Raises:
        PlatformNotRunning: there is no platform in any of the contexts tried.
        TransportError: Kafka cannot be reached.
        ValueError: a setting is wrong.
    """

    def config() -> ConnectionConfig:
        found = None if bootstrap_servers else find_context()
        return ConnectionConfig(
            bootstrap_servers=bootstrap_servers or (found.bootstrap_servers if found else ""),
            namespace=namespace or (found.namespace if found else "pelton"),
            security=security if security is not None else (found.security if found else {}),
            key_file=Path(key_file) if key_file else (found.key_file if found else None),
            home=Path(home) if home else (found.home if found else None),
            store=store or (found.store if found else ""),
            store_options=store_options
            if store_options is not None
            else (found.store_options if found else {}),
        )

    if _refusal is not None:
        raise _refusal()
    if _opening is not None:
        raise UnsupportedOption(
            "connect() in a function: functions call through the instance that runs them, so leave it out"
        )
    close()
    return _open(config)


def install(transport: Transport) -> Connection:
    """Makes a connection over this transport the one of the process; an earlier one is closed."""
    global _connection
    close()
    with _connecting:
        _connection = Connection(transport)
        _close_at_exit()
        return _connection


def close(timeout: float = CLOSE_SECONDS) -> int:
    """Closes the connection of this process, if there is one.

    Args:
        timeout: seconds to wait for sends that Kafka has not acknowledged.

    Returns:
        Sends that were not acknowledged in time; they are told on stderr as well.
    """
    global _connection
    with _connecting:
        connection, _connection = _connection, None
    return connection.close(timeout) if connection is not None else 0


def open_connection() -> Connection | None:
    """The connection of this process, None while there is none."""
    connection = _connection
    return connection if connection is not None and not connection.closed else None


def open_object(claim: Claim) -> int:
    """The descriptor of a file that is the object of a payload, from the store of this process's platform.

    Raises:
        PayloadCorrupt: there is no such object, or no store.
        PayloadUnavailable: the store cannot be reached.
    """
    store = current().transport.payloads
    if store is None:
        raise PayloadCorrupt(
            "the value lies in the object store, and nothing says where that is: set PELTON_STORE"
        )
    return store.open(claim)


def flush(timeout: float = CLOSE_SECONDS) -> int:
    """Waits until Kafka has answered every send of this process.

    Args:
        timeout: seconds to wait at most.

    Returns:
        Sends still without an answer.
    """
    connection = _connection
    return connection.flush(timeout) if connection is not None else 0


def refuse(refusal: Refusal | None) -> Refusal | None:
    """Refuses every use of the platform in this process with the error this makes; None allows it again.

    Returns:
        What was in force before.
    """
    global _refusal
    previous, _refusal = _refusal, refusal
    return previous


def provide(opening: Callable[[], Connection] | None) -> None:
    """Has the connection of this process made by `opening`, for processes that run user code.

    From here on `connect` is refused: what runs there has no way to a platform but the one of its instance.
    None undoes it.
    """
    global _opening
    _opening = opening


def is_provided() -> bool:
    """Whether this process runs user code for an instance."""
    return _opening is not None


def _open(config: Callable[[], ConnectionConfig]) -> Connection:
    global _connection
    with _connecting:
        if _connection is None or _connection.closed:
            if _opening is not None:
                _connection = _opening()
            else:
                # Late, so that importing the SDK loads no Kafka client.
                from pelton.transport.kafka.calls import KafkaTransport

                _connection = Connection(KafkaTransport(config()))
            _close_at_exit()
        return _connection


def _close_at_exit() -> None:
    """Makes sure that the end of the program closes the connection, and tells of sends not accepted."""
    # What was registered last runs first: the connection has to end before the clients it uses.
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)
    # Processes started by `multiprocessing` leave without running what `atexit` knows.
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _at_exit, exitpriority=100)


def _at_exit() -> None:
    """What was sent and not accepted is a failure of the program, as an exception would have been earlier."""
    connection = _connection
    close()
    if connection is not None and connection.unaccepted:
        ending.fail("")


def _forget_parent() -> None:
    """In a forked child: the parent's threads are gone and its producer never delivers, so connect anew."""
    global _connection, _connecting
    if _connection is not None:
        _inherited.append(_connection)
    _connection = None
    _connecting = threading.Lock()


os.register_at_fork(after_in_child=_forget_parent)

"""What an instance serves: the specs of its container and functions, read from the registry and verified."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pelton.core.spec import ContainerSpec, FunctionSpec
from pelton.errors import PeltonError, RecordError, SignatureError
from pelton.protocol.codec import decode_container_spec, decode_function_spec
from pelton.protocol.signing import Keyring
from pelton.protocol.topics import Control, Topics, spec_key
from pelton.runtime.pickled import file_name, purpose
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.table import CompactedTables


class NothingToServe(PeltonError):
    """The registry does not say, or not verifiably, what this instance should serve."""


@dataclass(frozen=True, slots=True)
class Served:
    """A container and the functions it hosts."""

    container: ContainerSpec
    functions: tuple[FunctionSpec, ...]


def read_specs(config: ConnectionConfig, keyring: Keyring, container: str, timeout_s: float) -> Served:
    """Reads and verifies the specs of a container, waiting for them to appear.

    Raises:
        NothingToServe: a spec is missing after `timeout_s`, or does not verify.
        TransportError: the broker cannot be reached.
    """
    topics = Topics(config.namespace)
    names = [topics.control(Control.CONTAINERS), topics.control(Control.FUNCTIONS)]
    changed = threading.Event()
    tables = CompactedTables(config, names, lambda topic, key, value: changed.set())
    deadline = time.monotonic() + timeout_s
    try:
        tables.wait_end(timeout_s)
        while True:
            changed.clear()
            found = _find(tables, names, keyring, container)
            if isinstance(found, Served):
                return found
            left = deadline - time.monotonic()
            if left <= 0 or not changed.wait(left):
                raise NothingToServe(f"the registry has no spec of {found}: deploy it again")
    finally:
        tables.close()


def check_code(bundles: Path, function: FunctionSpec, keyring: Keyring) -> None:
    """Makes sure that the code of a function that has no module was signed for it, and is what its spec says.

    Raises:
        NothingToServe: it is missing, or not signed in this namespace for this function.
    """
    if not function.code:
        return
    path = bundles / file_name(function.name, function.code)
    try:
        code = keyring.open(purpose(function.name), path.read_bytes())
        if hashlib.sha256(code).hexdigest() != function.code:
            raise SignatureError("it is the code of another version")
    except (OSError, SignatureError) as error:
        raise NothingToServe(
            f"the code of {function.name!r} does not verify and is not loaded: {error}; deploy it again"
        ) from error


def _find(tables: CompactedTables, names: list[str], keyring: Keyring, container: str) -> Served | str:
    """The specs, or what is missing in words."""
    sealed = tables.get(names[0], spec_key(container))
    if sealed is None:
        return f"the container {container!r}"
    spec = decode_container_spec(_open(keyring, "container-spec", container, sealed))
    functions: dict[str, FunctionSpec] = {}
    for name in spec.functions:
        sealed = tables.get(names[1], spec_key(name))
        if sealed is None:
            return f"the function {name!r}"
        functions[name] = decode_function_spec(_open(keyring, "function-spec", name, sealed))
    return _checked(spec, functions)


def _checked(spec: ContainerSpec, functions: Mapping[str, FunctionSpec]) -> Served:
    mine = tuple(function for function in functions.values() if function.container == spec.name)
    if not mine:
        raise NothingToServe(f"the container {spec.name!r} hosts no function: nothing to serve")
    return Served(spec, mine)


def _open(keyring: Keyring, purpose: str, name: str, sealed: bytes) -> bytes:
    try:
        return keyring.open(purpose, sealed)
    except (SignatureError, RecordError) as error:
        raise NothingToServe(
            f"the spec of {name!r} in the registry does not verify and is ignored: {error}"
        ) from error

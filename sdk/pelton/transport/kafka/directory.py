"""What is deployed, read from the registry topics and verified with the namespace key."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

from pelton.core.spec import ContainerSpec, FunctionSpec, InstanceStatus
from pelton.errors import PlatformNotRunning, RecordError, SignatureError, TransportError
from pelton.protocol.codec import decode_container_spec, decode_function_spec, decode_instance_status
from pelton.protocol.signing import Keyring, unverified_body
from pelton.protocol.topics import Control, Topics, parse_spec_key
from pelton.transport.config import ConnectionConfig, home_key_file
from pelton.transport.kafka import lifetime
from pelton.transport.kafka.clock import BrokerClock
from pelton.transport.kafka.table import CompactedTables, TopicsMissing
from pelton.transport.registry import Registry

FUNCTION_PURPOSE: Final = "function-spec"
CONTAINER_PURPOSE: Final = "container-spec"

_LOGGER: Final = logging.getLogger("pelton.transport")


class KafkaDirectory(Registry):
    """Implements `ports.Directory` from `control.functions`, `control.containers` and `control.instances`.

    With a key (`trusted_keys`), specs that are unsigned, altered, or signed for another name are ignored with
    an alarm and what was known before stays. Without any they are taken as data, unverified: they are decoded
    by their Avro contract and decide where calls are sent and which arguments fit; nothing in them is
    imported, unpickled or run.

    Args:
        config: the connection.
        now_ms: tells broker time; this machine's own when None.
        timeout_s: how long connecting and reading the registry may take.

    Raises:
        PlatformNotRunning: the broker answers and has no topics of this namespace.
        SignatureError: a key file is there and cannot be used.
        TransportError: the broker cannot be reached.
    """

    def __init__(
        self,
        config: ConnectionConfig,
        now_ms: Callable[[], int] | None = None,
        *,
        timeout_s: float = 15.0,
    ) -> None:
        super().__init__(now_ms or BrokerClock().now_ms)
        self._config = config
        self._timeout_s = timeout_s
        topics = Topics(config.namespace)
        self._functions_topic = topics.control(Control.FUNCTIONS)
        self._containers_topic = topics.control(Control.CONTAINERS)
        self._instances_topic = topics.control(Control.INSTANCES)
        self._keyring = trusted_keys(config)
        self._opening = threading.Lock()
        self._tables: CompactedTables | None = None
        self._closed = False
        self._open()
        lifetime.track(self)

    @property
    def keyring(self) -> Keyring | None:
        """The key of the namespace, None where there is none."""
        return self._keyring

    def function(self, name: str) -> FunctionSpec | None:
        """The latest verified spec, or None."""
        if self._tables is None:
            self._open()
        return super().function(name)

    def functions(self) -> Sequence[FunctionSpec]:
        """All functions, by name."""
        self._open()
        return super().functions()

    def container(self, name: str) -> ContainerSpec | None:
        """The container spec, or None."""
        self._open()
        return super().container(name)

    def containers(self) -> Sequence[ContainerSpec]:
        """All containers, by name."""
        self._open()
        return super().containers()

    def instances(self, container: str | None = None) -> Sequence[InstanceStatus]:
        """Live instances; `container=""` lists live deployers, None all."""
        self._open()
        return super().instances(container)

    def refresh(self, timeout_s: float = 5.0) -> bool:
        """Waits until all that is in the registry by now was read; False when time ran out.

        Raises:
            TransportError: the broker cannot be reached.
        """
        return self._open().wait_end(timeout_s, refresh=True)

    def close(self) -> None:
        """Stops reading; what is known stays. Idempotent."""
        self._closed = True
        if self._tables is not None:
            self._tables.close()
        lifetime.untrack(self)

    def abandon(self) -> None:
        """In a forked child: the registry is read anew when it is next asked."""
        self._opening = threading.Lock()
        self._changed = threading.Condition()
        self._tables = None

    def _open(self) -> CompactedTables:
        """The tables being read; in a child made by fork they are opened on first use."""
        tables = self._tables
        if tables is not None:
            return tables
        with self._opening:
            if self._tables is None:
                if self._closed:
                    raise TransportError("the connection is closed")
                self._tables = self._read()
            lifetime.track(self)
            return self._tables

    def _read(self) -> CompactedTables:
        topics = [self._functions_topic, self._containers_topic, self._instances_topic]
        try:
            tables = CompactedTables(self._config, topics, self._changed_in)
        except TopicsMissing as error:
            raise PlatformNotRunning(
                f"no Pelton platform has the namespace {self._config.namespace!r} at "
                f"{self._config.bootstrap_servers}: {error}. Start one with `pelton up`."
            ) from error
        if not tables.wait_end(self._timeout_s):
            tables.close()
            raise TransportError(
                f"the registry at {self._config.bootstrap_servers} could not be read within "
                f"{self._timeout_s:g} s"
            )
        return tables

    # --- the reading thread ---

    def _changed_in(self, topic: str, key: bytes, value: bytes | None) -> None:
        try:
            if topic == self._instances_topic:
                self.put_instance(key, decode_instance_status(value) if value is not None else None)
                return
            name = parse_spec_key(key)
            if name is None:
                return  # other parts of a name are their services' own
            if topic == self._functions_topic:
                self._take_function(name, value)
            else:
                self._take_container(name, value)
        except (SignatureError, RecordError) as error:
            where = key.decode("utf-8", "replace")
            _LOGGER.error("ignored the entry %r of %s: %s%s", where, topic, error, self._advice(error))

    def _advice(self, error: SignatureError | RecordError) -> str:
        """What to do when the key that nobody named is not the one of this platform."""
        if self._keyring is None or self._config.key_file is not None or isinstance(error, RecordError):
            return ""
        return f" (verified with {home_key_file(self._config)}; PELTON_KEY_FILE names another key file)"

    def _take_function(self, name: str, value: bytes | None) -> None:
        if value is None:
            self.put_function(name, None)
            return
        spec = decode_function_spec(self._body(FUNCTION_PURPOSE, value))
        if spec.name != name:
            raise SignatureError(f"a spec of function {spec.name!r} under the key of {name!r}")
        self.put_function(name, spec)

    def _take_container(self, name: str, value: bytes | None) -> None:
        if value is None:
            self.put_container(name, None)
            return
        spec = decode_container_spec(self._body(CONTAINER_PURPOSE, value))
        if spec.name != name:
            raise SignatureError(f"a spec of container {spec.name!r} under the key of {name!r}")
        self.put_container(name, spec)

    def _body(self, purpose: str, value: bytes) -> bytes:
        return self._keyring.open(purpose, value) if self._keyring else unverified_body(purpose, value)


def trusted_keys(config: ConnectionConfig) -> Keyring | None:
    """The keys that specs are verified with.

    Returns:
        Those of the configured key file; else those that the home folder has for the namespace; None when
        there are none: then nothing can be verified.

    Raises:
        SignatureError: the file cannot be read, is open to others, or the configured one is of another
            namespace.
    """
    path = config.key_file or home_key_file(config)
    if path is None:
        return None
    keyring = Keyring.load(path)
    if keyring.namespace == config.namespace:
        return keyring
    if config.key_file is None:
        return None
    raise SignatureError(
        f"the key file {path} is of namespace {keyring.namespace!r}, not {config.namespace!r}"
    )

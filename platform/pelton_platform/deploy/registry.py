"""The registry as a deployer reads and writes it: signed specs, statuses of instances, nothing unsigned."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pelton.core.spec import ContainerSpec, FunctionSpec, InstanceStatus
from pelton.errors import RecordError, SignatureError, TransportError
from pelton.protocol import codec
from pelton.protocol.signing import Keyring
from pelton.protocol.topics import Control, Topics, instance_key, parse_spec_key, spec_key
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.producer import RecordProducer
from pelton.transport.kafka.table import CompactedTables
from pelton.transport.log import KafkaFailure
from pelton_platform import telemetry

FUNCTION_PURPOSE = "function-spec"
CONTAINER_PURPOSE = "container-spec"

_log = telemetry.get_logger(__name__)


class Registry:
    """The registry topics in memory, verified, and told of every change.

    Attributes:
        functions: Specs by name.
        containers: Specs by name.
        statuses: Statuses of instances by (container, instance).
        refused: Why a spec of the registry is not taken, by `functions/NAME` or `containers/NAME`.
    """

    def __init__(
        self, config: ConnectionConfig, keyring: Keyring, on_change: Callable[[], None] | None = None
    ) -> None:
        """Start reading.

        Raises:
            TransportError: The broker cannot be reached, or the topics do not exist.
        """
        self.functions: dict[str, FunctionSpec] = {}
        self.containers: dict[str, ContainerSpec] = {}
        self.statuses: dict[tuple[str, str], InstanceStatus] = {}
        self.refused: dict[str, str] = {}
        self._lock = threading.Lock()
        self._keyring = keyring
        self._on_change = on_change
        topics = Topics(config.namespace)
        self._functions = topics.control(Control.FUNCTIONS)
        self._containers = topics.control(Control.CONTAINERS)
        self._instances = topics.control(Control.INSTANCES)
        self._tables = CompactedTables(
            config, [self._functions, self._containers, self._instances], self._take
        )

    def wait_end(self, timeout_s: float, *, refresh: bool = False) -> None:
        """Wait until everything that is in the topics was read.

        Args:
            timeout_s: How long.
            refresh: Also what was written since reading began.

        Raises:
            TransportError: It took longer.
        """
        if not self._tables.wait_end(timeout_s, refresh=refresh):
            raise TransportError(f"the registry could not be read within {timeout_s:.0f} s")

    def snapshot(
        self,
    ) -> tuple[dict[str, FunctionSpec], dict[str, ContainerSpec], dict[tuple[str, str], InstanceStatus]]:
        """Return copies of functions, containers and statuses as they are now."""
        with self._lock:
            return dict(self.functions), dict(self.containers), dict(self.statuses)

    def close(self) -> None:
        """Stop reading."""
        self._tables.close()

    def _take(self, topic: str, key: bytes, value: bytes | None) -> None:
        with self._lock:
            if topic == self._instances:
                self._take_status(key, value)
            else:
                name = parse_spec_key(key)
                if name is None:
                    return
                self._take_spec(topic, name, value)
        if self._on_change is not None:
            self._on_change()

    def _take_spec(self, topic: str, name: str, value: bytes | None) -> None:
        is_function = topic == self._functions
        known: dict[str, Any] = self.functions if is_function else self.containers
        where = f"{'functions' if is_function else 'containers'}/{name}"
        self.refused.pop(where, None)
        if value is None:
            known.pop(name, None)
            return
        try:
            spec: FunctionSpec | ContainerSpec
            if is_function:
                spec = codec.decode_function_spec(self._keyring.open(FUNCTION_PURPOSE, value))
            else:
                spec = codec.decode_container_spec(self._keyring.open(CONTAINER_PURPOSE, value))
            if spec.name != name:
                raise RecordError(f"the spec of {spec.name!r} under the key of {name!r}")
            known[name] = spec
        except (SignatureError, RecordError) as error:
            # What was verified before stays in force: writing junk takes no function away.
            self.refused[where] = str(error)
            telemetry.alarm(_log, "spec-refused", spec=where, reason=str(error))

    def _take_status(self, key: bytes, value: bytes | None) -> None:
        container, _, instance = key.decode("utf-8", "replace").partition("/")
        place = ("" if container == "deployer" else container, instance)
        if value is None:
            self.statuses.pop(place, None)
            return
        try:
            status = codec.decode_instance_status(value)
        except RecordError as error:
            _log.warning("status-unreadable", instance=f"{container}/{instance}", reason=str(error))
            return
        self.statuses[place] = status


class RegistryWriter:
    """Writes specs and statuses; each key has one writer."""

    def __init__(self, namespace: str, producer: RecordProducer, keyring: Keyring | None = None) -> None:
        self._topics = Topics(namespace)
        self._producer = producer
        self._keyring = keyring

    def write_specs(
        self,
        functions: Mapping[str, FunctionSpec],
        containers: Mapping[str, ContainerSpec],
        timeout_s: float,
        *,
        removed: Sequence[str] = (),
        removed_functions: Sequence[str] = (),
    ) -> None:
        """Write specs, functions first, and wait until Kafka has acknowledged them all.

        Args:
            functions: Function specs by name.
            containers: Container specs by name.
            timeout_s: How long Kafka may take.
            removed: Containers whose spec is deleted.
            removed_functions: Functions whose spec is deleted, after those containers.

        Raises:
            TransportError: One was not acknowledged; the registry may hold some of them.
            SignatureError: This writer has no key.
        """
        if self._keyring is None:
            raise SignatureError("specs can only be written with the key of the namespace")
        failures: list[str] = []
        records: list[tuple[Control, str, bytes | None]] = []
        for name, function in functions.items():
            body = codec.encode_function_spec(function)
            records.append((Control.FUNCTIONS, name, self._keyring.seal(FUNCTION_PURPOSE, body)))
        for name, container in containers.items():
            body = codec.encode_container_spec(container)
            records.append((Control.CONTAINERS, name, self._keyring.seal(CONTAINER_PURPOSE, body)))
        records += [(Control.CONTAINERS, name, None) for name in removed]
        records += [(Control.FUNCTIONS, name, None) for name in removed_functions]
        for control, name, value in records:

            def report(failure: KafkaFailure | None, *_: int, name: str = name) -> None:
                if failure is not None:
                    failures.append(f"{name}: {failure}")

            self._producer.send(self._topics.control(control), value, key=spec_key(name), on_report=report)
        left = self._producer.flush(timeout_s)
        if left or failures:
            raise TransportError("; ".join(failures) or f"Kafka did not acknowledge {left} specs")

    def write_status(self, status: InstanceStatus) -> None:
        """Write a status; it is repeated anyway, so a lost one is only logged."""
        self._send_status(status.container, status.instance, codec.encode_instance_status(status))

    def remove_status(self, container: str, instance: str) -> None:
        """Write the tombstone of a status."""
        self._send_status(container, instance, None)

    def _send_status(self, container: str, instance: str, value: bytes | None) -> None:
        def report(failure: KafkaFailure | None, *_: int) -> None:
            if failure is not None:
                _log.warning("status-not-written", instance=instance, reason=str(failure))

        topic = self._topics.control(Control.INSTANCES)
        try:
            self._producer.send(topic, value, key=instance_key(container, instance), on_report=report)
        except TransportError as error:
            _log.warning("status-not-written", instance=instance, reason=str(error))

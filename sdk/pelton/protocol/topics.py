"""Names of topics, groups and registry keys, made and parsed here alone, and how each topic is created."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pelton.core.call import InputTopic
from pelton.core.spec import RESULTS_PARTITIONS, RETRIES_PARTITIONS, FunctionSpec

NAME_PATTERN: Final = r"[A-Za-z][A-Za-z0-9_-]{0,62}"
"""Namespaces, functions and containers. No dots: Kafka takes `.` and `_` for the same in places."""

CONTROL_PARTITIONS: Final = 16
"""For ever: the keys of a compacted topic must stay on their partitions."""

MAX_RECORD_BYTES: Final = 2 * 1024 * 1024
"""Largest record a topic takes: room for a payload of 512 KiB, and for a dead letter that quotes 900 KiB."""

SEGMENT_BYTES: Final = 64 * 1024 * 1024
"""Disk of finished calls comes back by whole segments."""

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS

RESULT_TTL_MS: Final = _DAY_MS
"""How long results are kept."""

DEAD_LETTER_TTL_MS: Final = 30 * _DAY_MS
"""How long dead letters are kept."""

CANCELLATION_TTL_MS: Final = 7 * _DAY_MS
"""How long a cancellation is kept: the longest a call may take."""

_NAME = re.compile(NAME_PATTERN)


class TopicKind(StrEnum):
    """What a topic holds; the value is the last part of its name for topics of functions."""

    INVOCATIONS = "invocations"
    RETRIES = "retries"
    RESULTS = "results"
    DEAD_LETTERS = "dead-letters"
    CONTROL = "control"


class Control(StrEnum):
    """The control topics; the value is the last part of the name."""

    FUNCTIONS = "functions"
    CONTAINERS = "containers"
    SCHEDULES = "schedules"
    LIMITS = "limits"
    INSTANCES = "instances"
    TIMERS = "timers"
    CANCELLATIONS = "cancellations"
    LIMIT_REQUESTS = "limit-requests"
    LOGS = "logs"


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """How one topic is created.

    Attributes:
        name: full name.
        partitions: number of partitions.
        replication_factor: copies.
        configs: topic settings, as Kafka names them.
    """

    name: str
    partitions: int
    replication_factor: int
    configs: Mapping[str, str] = field(default_factory=dict)


def check_name(kind: str, name: str) -> str:
    """Returns `name` when it may name a namespace, function or container.

    Args:
        kind: what it names, for the message: "function", "container", "namespace".
        name: the name.

    Raises:
        ValueError: it may not; the message says what names look like.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} cannot name a {kind}: a name is a letter, then up to 62 letters, digits, `_` or `-`"
        )
    return name


def spec_key(name: str) -> bytes:
    """Key of a spec in `control.functions` and `control.containers`."""
    return f"{name}/spec".encode()


def parse_spec_key(key: bytes | None) -> str | None:
    """The name in a spec key; None for any other key."""
    if key is None or not key.endswith(b"/spec"):
        return None
    try:
        name = key[:-5].decode("ascii")
    except UnicodeDecodeError:
        return None
    return name if _NAME.fullmatch(name) else None


def timer_key(call_id: bytes, attempt: int) -> bytes:
    """The key of a timer: the call and the attempt it is for."""
    return call_id + attempt.to_bytes(4, "big")


def instance_key(container: str, instance: str) -> bytes:
    """Key of a status in `control.instances`; `container` is "" for a deployer."""
    return f"{container or 'deployer'}/{instance}".encode()


class Topics:
    """The names in one namespace.

    Raises:
        ValueError: the namespace, or a function name given to a method, is no name.
    """

    __slots__ = ("namespace",)

    def __init__(self, namespace: str) -> None:
        self.namespace = check_name("namespace", namespace)

    def invocations(self, function: str) -> str:
        """Topic of the calls of a function."""
        return self._of(function, TopicKind.INVOCATIONS)

    def retries(self, function: str) -> str:
        """Topic of attempts that wait for their due time."""
        return self._of(function, TopicKind.RETRIES)

    def results(self, function: str) -> str:
        """Topic of chunks and outcomes."""
        return self._of(function, TopicKind.RESULTS)

    def dead_letters(self, function: str) -> str:
        """Topic of calls that were given up."""
        return self._of(function, TopicKind.DEAD_LETTERS)

    def input(self, function: str, topic: InputTopic) -> str:
        """One of the topics that workers of a function take records from."""
        return self.retries(function) if topic == InputTopic.RETRIES else self.invocations(function)

    def group(self, function: str) -> str:
        """Consumer group of the workers of a function."""
        return f"{self.namespace}.fn.{check_name('function', function)}"

    def service_group(self, service: str) -> str:
        """Consumer group of a service of the platform."""
        return f"{self.namespace}.service.{service}"

    def control(self, topic: Control) -> str:
        """One of the control topics."""
        return f"{self.namespace}.control.{Control(topic).value}"

    def parse(self, topic: str) -> tuple[TopicKind, str]:
        """What a topic of this namespace is: its kind, and its function or (for CONTROL) the `Control`.

        Raises:
            ValueError: it is no topic of this namespace.
        """
        parts = topic.split(".")
        try:
            if parts[0] == self.namespace:
                if len(parts) == 4 and parts[1] == "fn" and parts[3] != TopicKind.CONTROL:
                    return TopicKind(parts[3]), check_name("function", parts[2])
                if len(parts) == 3 and parts[1] == "control":
                    return TopicKind.CONTROL, Control(parts[2])
        except ValueError:
            pass
        raise ValueError(f"{topic!r} is no topic of the namespace {self.namespace!r}")

    def topic_plans_for_function(self, spec: FunctionSpec, brokers: int) -> list[TopicPlan]:
        """The topics a function needs.

        Args:
            spec: its spec; `partitions` sizes the invocations topic.
            brokers: number of live brokers; topics get min(3, brokers) copies.
        """
        kept = {
            "cleanup.policy": "delete",
            "retention.ms": "-1",  # waiting calls never expire; the owner deletes what is finished
            "retention.bytes": "-1",
            "segment.bytes": str(SEGMENT_BYTES),
        }
        results = {
            "cleanup.policy": "delete",
            "retention.ms": str(RESULT_TTL_MS),
            "retention.bytes": "-1",
            "segment.bytes": str(SEGMENT_BYTES),
            "segment.ms": str(_HOUR_MS),
        }
        letters = {
            "cleanup.policy": "delete",
            "retention.ms": str(DEAD_LETTER_TTL_MS),
            "retention.bytes": "-1",
            "segment.bytes": str(SEGMENT_BYTES),
        }
        name = spec.name
        return [
            _plan(self.invocations(name), spec.partitions, brokers, kept),
            _plan(self.retries(name), RETRIES_PARTITIONS, brokers, kept),
            _plan(self.results(name), RESULTS_PARTITIONS, brokers, results),
            _plan(self.dead_letters(name), 1, brokers, letters),
        ]

    def control_topic_plans(self, brokers: int) -> list[TopicPlan]:
        """All control topics; `brokers` as in `topic_plans_for_function`."""
        return [
            _plan(self.control(topic), CONTROL_PARTITIONS, brokers, _control_configs(topic))
            for topic in Control
        ]

    def _of(self, function: str, kind: TopicKind) -> str:
        return f"{self.namespace}.fn.{check_name('function', function)}.{kind.value}"


def _control_configs(topic: Control) -> dict[str, str]:
    """Settings of a control topic beyond those every topic has."""
    if topic in (Control.LOGS, Control.LIMIT_REQUESTS):
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(_DAY_MS),
            "retention.bytes": "-1",
            "segment.bytes": str(SEGMENT_BYTES),
            "segment.ms": str(_HOUR_MS),
        }
    compacted = {
        "cleanup.policy": "compact",
        # Only closed segments are compacted, and readers start with the whole topic: close and clean early.
        "segment.ms": str(_HOUR_MS),
        "min.cleanable.dirty.ratio": "0.1",
        # A reader that was away for a day still sees every deletion.
        "delete.retention.ms": str(_DAY_MS),
    }
    if topic is Control.CANCELLATIONS:
        compacted |= {"cleanup.policy": "compact,delete", "retention.ms": str(CANCELLATION_TTL_MS)}
    return compacted


def _plan(name: str, partitions: int, brokers: int, configs: Mapping[str, str]) -> TopicPlan:
    """A plan with the settings that every topic has."""
    if brokers < 1:
        raise ValueError("a cluster has at least one broker")
    copies = min(3, brokers)
    everywhere = {
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(MAX_RECORD_BYTES),
        "min.insync.replicas": "2" if copies == 3 else "1",
        "unclean.leader.election.enable": "false",
    }
    return TopicPlan(name, partitions, copies, {**everywhere, **configs})

"""Scaling of plain programs by what they have not read yet."""

from __future__ import annotations

import re
from typing import Final

from pelton.core.spec import LagSpec
from pelton.errors import DefinitionError
from pelton.policies import checked_count

_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_MOST: Final = 1_000_000_000


class KafkaLag:
    """Scales a plain program by the records of a topic that its consumer group has not committed.

    There is one instance for each `per_instance` of them, between `min_instances` and `max_instances`, and
    never more than the topic has partitions: the others would read nothing.

    Args:
        topic: name of a topic in the Kafka of the platform.
        group: the consumer group (`group.id`) by which the program reads.
        per_instance: unread records for each instance.

    Raises:
        DefinitionError: a value is wrong.
    """

    __slots__ = ("spec",)

    def __init__(self, topic: str, group: str, per_instance: int = 1_000) -> None:
        if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
            raise DefinitionError(f"KafkaLag: topic is the name of a topic, not {topic!r}")
        if not isinstance(group, str) or not group or "\0" in group:
            raise DefinitionError(f"KafkaLag: group is the id of a consumer group, not {group!r}")
        count = checked_count("KafkaLag", "per_instance", per_instance, low=1, high=_MOST)
        self.spec: Final = LagSpec(topic, group, count)

    def __repr__(self) -> str:
        return f"KafkaLag({self.spec.topic!r}, {self.spec.group!r}, {self.spec.per_instance})"

"""Administering a cluster: topics, the deletion of finished records, offsets of groups, brokers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from confluent_kafka.cimpl import NewPartitions, NewTopic

from pelton.errors import TransportError
from pelton.protocol.topics import TopicPlan
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka import lifetime
from pelton.transport.kafka.failures import error_of, is_passing, transport_error
from pelton.transport.kafka.offsets import GroupOffsets
from pelton.transport.kafka.ranges import EARLIEST, LATEST, RangeReader
from pelton.transport.kafka.settings import ClientLog, connection_settings
from pelton.transport.log import Place

TIMEOUT_S: Final = 15.0
"""How long an administrative request is tried."""

CREATE_TIMEOUT_S: Final = 60.0
"""How long creating topics may take: a small busy broker makes the logs of many partitions one by one."""

_ASK_AGAIN_S: Final = 0.1
_SCRAM_ITERATIONS: Final = 8192  # what Kafka's own tool takes
Answer = TypeVar("Answer")


class GroupMember(NamedTuple):
    """A member of a consumer group.

    Attributes:
        member_id: id the broker gave it.
        client_id: id it gave itself.
        host: where it connects from.
        partitions: what it is assigned.
    """

    member_id: str
    client_id: str
    host: str
    partitions: tuple[Place, ...]


class Admin:
    """Requests of deployers and coordinators to the cluster; all methods block, from any thread.

    Raises:
        TransportError: every method, when the broker cannot be reached or refuses.
    """

    def __init__(self, config: ConnectionConfig) -> None:
        self._servers = config.bootstrap_servers
        self._client = AdminClient(connection_settings(config), logger=ClientLog())
        self._offsets_of_groups = GroupOffsets(config)
        # Offsets are asked for by a consumer as well: the library's admin request for them has the same flaw.
        self._ranges = RangeReader(config)
        lifetime.track(self)

    def create_topics(self, plans: Iterable[TopicPlan], timeout_s: float = CREATE_TIMEOUT_S) -> list[str]:
        """Creates the topics that do not exist yet, and waits until all of them can be written and read.

        Returns:
            Names of those that were created now.
        """
        plans = list(plans)
        topics = [
            NewTopic(
                plan.name,
                num_partitions=plan.partitions,
                replication_factor=plan.replication_factor,
                config=dict(plan.configs),
            )
            for plan in plans
        ]
        if not topics:
            return []
        created: list[str] = []

        def create() -> None:
            for name, future in self._client.create_topics(topics, request_timeout=timeout_s).items():
                if self._done(f"creating topic {name}", future, timeout_s, KafkaError.TOPIC_ALREADY_EXISTS):
                    created.append(name)

        self._ask_while_unsettled(create, timeout_s)
        self._await_shown({plan.name: plan.partitions for plan in plans}, timeout_s)
        # Leaders are named before their logs are there: an answered question about offsets proves the logs.
        self.ends([(plan.name, number) for plan in plans for number in range(plan.partitions)], timeout_s)
        return created

    def set_login(self, username: str, password: str, timeout_s: float = TIMEOUT_S) -> None:
        """Makes a login for SCRAM-SHA-256, or gives it another password; the broker keeps a salted hash."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, _SCRAM_ITERATIONS)
        wanted = UserScramCredentialUpsertion(username, info, password=password.encode())
        for future in self._client.alter_user_scram_credentials([wanted]).values():
            self._answer("making a login", future, timeout_s)

    def grow_topics(self, partitions: Mapping[str, int], timeout_s: float = CREATE_TIMEOUT_S) -> None:
        """Gives topics more partitions, and waits until those can be written and read.

        Args:
            partitions: how many each topic shall have; one that has as many stays.
            timeout_s: how long it may take.
        """
        if not partitions:
            return
        wanted = [NewPartitions(name, count) for name, count in partitions.items()]

        def grow() -> None:
            for name, future in self._client.create_partitions(wanted, request_timeout=timeout_s).items():
                self._done(f"growing topic {name}", future, timeout_s, KafkaError.INVALID_PARTITIONS)

        self._ask_while_unsettled(grow, timeout_s)
        self._await_shown(partitions, timeout_s)
        self.ends(
            [(name, number) for name, count in partitions.items() for number in range(count)], timeout_s
        )

    def delete_groups(self, groups: Sequence[str], timeout_s: float = TIMEOUT_S) -> None:
        """Deletes the offsets of groups that have no members; those that do not exist are passed over."""
        for group in groups:
            futures = self._client.delete_consumer_groups([group], request_timeout=timeout_s)
            self._done(f"deleting group {group}", futures[group], timeout_s, KafkaError.GROUP_ID_NOT_FOUND)

    def delete_topics(self, names: Sequence[str], timeout_s: float = TIMEOUT_S) -> None:
        """Deletes topics; those that do not exist are passed over."""
        if names:
            for name, future in self._client.delete_topics(list(names), request_timeout=timeout_s).items():
                self._done(f"deleting topic {name}", future, timeout_s, KafkaError.UNKNOWN_TOPIC_OR_PART)

    def topics(self, timeout_s: float = TIMEOUT_S) -> dict[str, int]:
        """All topics of the cluster and their numbers of partitions."""
        known = self._metadata(timeout_s).topics
        return {name: len(topic.partitions) for name, topic in known.items()}

    def brokers(self, timeout_s: float = TIMEOUT_S) -> dict[int, str]:
        """Live brokers: id and address."""
        known = self._metadata(timeout_s).brokers
        return {number: f"{broker.host}:{broker.port}" for number, broker in known.items()}

    def delete_records(self, offsets: Mapping[Place, int], timeout_s: float = TIMEOUT_S) -> dict[Place, int]:
        """Deletes the records below an offset.

        Returns:
            Start of the log by partition, afterwards.
        """
        if not offsets:
            return {}
        wanted = [TopicPartition(*place, offset) for place, offset in offsets.items()]
        futures = self._client.delete_records(wanted, request_timeout=timeout_s)
        starts: dict[Place, int] = {}
        for where, future in futures.items():
            deleted = self._answer(f"deleting records of {where.topic}/{where.partition}", future, timeout_s)
            starts[where.topic, where.partition] = deleted.low_watermark
        return starts

    def watermarks(
        self, places: Sequence[Place], timeout_s: float = TIMEOUT_S
    ) -> dict[Place, tuple[int, int]]:
        """Start and end of the log by partition; two requests for any number of them."""
        starts = self._ranges.ask(places, EARLIEST, timeout_s)
        ends = self._ranges.ask(places, LATEST, timeout_s)
        return {place: (starts[place], ends[place]) for place in places}

    def ends(self, places: Sequence[Place], timeout_s: float = TIMEOUT_S) -> dict[Place, int]:
        """End of the log by partition; one request for any number of them."""
        return self._ranges.ask(places, LATEST, timeout_s)

    def committed(
        self, group: str, places: Sequence[Place], timeout_s: float = TIMEOUT_S
    ) -> dict[Place, tuple[int, str]]:
        """Committed offset and metadata of a group by partition; those without a commit are left out."""
        return self._offsets_of_groups.committed(group, places, timeout_s) if places else {}

    def commit_for_idle_group(
        self, group: str, offsets: Mapping[Place, tuple[int, str]], timeout_s: float = TIMEOUT_S
    ) -> None:
        """Commits offsets with metadata for a group that has no members.

        Raises:
            TransportError: also when the group has members, which commit for themselves.
        """
        if offsets:
            self._offsets_of_groups.commit(group, offsets, timeout_s)

    def group_members(self, group: str, timeout_s: float = TIMEOUT_S) -> list[GroupMember]:
        """Members of a group; empty when there is no such group.

        Not for processes that have to survive their broker: see `offsets` for what the library does when the
        broker goes away during such a request.
        """
        deadline = time.monotonic() + timeout_s
        described: Any = None
        while described is None:
            futures = self._client.describe_consumer_groups([group], request_timeout=timeout_s)
            try:
                described = futures[group].result(timeout=timeout_s + 5.0)
            except KafkaException as error:
                trouble = error_of(error)
                if trouble.code() == KafkaError.GROUP_ID_NOT_FOUND:
                    return []
                if not is_passing(trouble) or time.monotonic() >= deadline:
                    raise transport_error(f"asking for group {group}", trouble, self._servers) from error
                time.sleep(_ASK_AGAIN_S)
        return [
            GroupMember(
                member.member_id,
                member.client_id,
                member.host,
                tuple((part.topic, part.partition) for part in member.assignment.topic_partitions),
            )
            for member in described.members
        ]

    def close(self) -> None:
        """Ends the clients. Idempotent."""
        self._offsets_of_groups.close()
        self._ranges.close()
        lifetime.untrack(self)

    def abandon(self) -> None:
        """In a forked child: the inherited client is never used and never destroyed."""
        lifetime.keep_for_ever(self._client)

    # --- requests ---

    def _metadata(self, timeout_s: float) -> Any:
        try:
            return self._client.list_topics(timeout=timeout_s)
        except KafkaException as error:
            raise transport_error("asking for metadata", error_of(error), self._servers) from error

    def _await_shown(self, partitions: Mapping[str, int], timeout_s: float) -> None:
        """Waits until the metadata shows these topics with a leader for each partition."""

        def shown() -> bool:
            known = self._metadata(timeout_s).topics
            return all(
                name in known
                and len(known[name].partitions) >= count
                and all(part.leader >= 0 for part in known[name].partitions.values())
                for name, count in partitions.items()
            )

        deadline = time.monotonic() + timeout_s
        while not shown():
            if time.monotonic() >= deadline:
                raise TransportError(f"topics created at {self._servers} did not become known in time")
            time.sleep(_ASK_AGAIN_S)

    def _ask_while_unsettled(self, ask: Callable[[], Answer], timeout_s: float) -> Answer:
        """Asks again while leaders and group coordinators are on the move, and while no broker may lead."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return ask()
            except TransportError as error:
                cause = error.__cause__
                if not isinstance(cause, KafkaException) or time.monotonic() >= deadline:
                    raise
                if not is_passing(error_of(cause)):
                    raise
            time.sleep(_ASK_AGAIN_S)

    def _answer(self, what: str, future: Future[Any], timeout_s: float) -> Any:
        try:
            return future.result(timeout=timeout_s + 5.0)
        except KafkaException as error:
            raise transport_error(what, error_of(error), self._servers) from error
        except TimeoutError as error:
            raise TransportError(f"{what} failed at {self._servers}: no answer in time") from error

    def _done(self, what: str, future: Future[Any], timeout_s: float, fine: int) -> bool:
        """Whether the request did something; an error of the code `fine` says there was nothing to do."""
        try:
            future.result(timeout=timeout_s + 5.0)
        except KafkaException as error:
            if error_of(error).code() == fine:
                return False
            raise transport_error(what, error_of(error), self._servers) from error
        return True

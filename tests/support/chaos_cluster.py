"""Two brokers and a controller, to show what becomes of records and groups when one of the brokers dies."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from pelton.protocol.topics import TopicPlan
from pelton.transport.kafka.readiness import cluster_ready
from pelton_platform import process
from pelton_platform.embedded import resolve
from pelton_platform.embedded.cache import Installation, java_environment
from pelton_platform.embedded.jvm import BROKER_CLASS, archive_flags, java_command
from pelton_platform.embedded.properties import RECORDS_FOLDER, broker_properties, render
from pelton_platform.embedded.storage import format_storage, new_id
from support.freezing import freeze
from support.worker_instance import wait_until

HOST: Final = "127.0.0.1"

SETTINGS: Final[Mapping[str, str]] = {
    # Long enough to freeze a follower without anybody noticing, short enough to wait for.
    "broker.session.timeout.ms": "8000",
    "broker.heartbeat.interval.ms": "500",
    "replica.lag.time.max.ms": "30000",
}


class Node:
    """One process of the cluster.

    Args:
        installation: what it runs from.
        folder: its records.
        number: its id.
        properties: its settings.
    """

    def __init__(
        self, installation: Installation, folder: Path, number: int, properties: Mapping[str, str]
    ) -> None:
        self.number = number
        self.folder = folder
        self._installation = installation
        self._properties = {**properties, "node.id": str(number)}
        self.child: subprocess.Popen[bytes] | None = None

    def format(self, cluster: str) -> None:
        """Makes its folder of records; the controller's says who the cluster is."""
        self.folder.mkdir(parents=True)
        (self.folder / "tmp").mkdir()
        format_storage(self._installation, self.folder, self._properties, str)
        (self.folder / RECORDS_FOLDER / "meta.properties").write_text(
            f"cluster.id={cluster}\ndirectory.id={new_id()}\nnode.id={self.number}\nversion=1\n"
        )

    def start(self) -> None:
        """Starts it; does not wait."""
        settings = self.folder / "server.properties"
        settings.write_text(render(self._properties), encoding="latin-1")
        command = java_command(
            self._installation,
            BROKER_CLASS,
            [settings.name],
            temporary=self.folder / "tmp",
            heap="256m",
            flags=archive_flags(self._installation),
        )
        with (self.folder / "kafka.log").open("ab") as log:
            self.child = process.spawn(
                command,
                cwd=self.folder,
                env=java_environment(),
                stdout=log,
                stderr=log,
                die_with_parent=True,
            )

    def freeze(self) -> None:
        """It stands still; SIGCONT lets it go on."""
        assert self.child is not None
        freeze(self.child.pid)

    def signal(self, number: signal.Signals) -> None:
        """To its process."""
        assert self.child is not None
        self.child.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        if self.child is not None and self.child.poll() is None:
            self.child.kill()
            self.child.wait(10)


class Cluster:
    """A controller, and two brokers that replicate for each other.

    Args:
        folder: for records and logs.
        settings: of all three, beside those that every cluster here has.

    Attributes:
        leader: the broker started first: it leads what `lead_first` makes, and keeps the offsets of groups.
        follower: the other one.
        bootstrap_servers: both brokers.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        installation = resolve()
        control, first, second = process.free_ports(3)
        nodes = []
        for number, name, port in ((1, "controller", 0), (2, "leader", first), (3, "follower", second)):
            properties = broker_properties(
                host=HOST, port=port or 1, controller_port=control, overrides={**SETTINGS, **settings}
            )
            properties["controller.quorum.voters"] = f"1@{HOST}:{control}"
            if port:
                properties["process.roles"] = "broker"
                properties["listeners"] = f"PLAINTEXT://{HOST}:{port}"
            else:
                properties["process.roles"] = "controller"
                properties["listeners"] = f"CONTROLLER://{HOST}:{control}"
                del properties["advertised.listeners"], properties["inter.broker.listener.name"]
            nodes.append(Node(installation, folder / name, number, properties))
        self.controller, self.leader, self.follower = nodes
        self._ports = {2: first, 3: second}
        self.bootstrap_servers = f"{HOST}:{first},{HOST}:{second}"
        cluster = new_id()
        for node in nodes:
            node.format(cluster)

    def lead_first(self, plans: Iterable[TopicPlan]) -> None:
        """Makes topics that both brokers have and the first one leads."""
        self.led_by(self.leader, plans)

    def led_by(self, node: Node, plans: Iterable[TopicPlan]) -> None:
        """Makes topics that both brokers have and this one leads."""
        other = self.follower if node is self.leader else self.leader
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        topics = [
            NewTopic(
                plan.name,
                plan.partitions,
                replica_assignment=[[node.number, other.number]] * plan.partitions,
                config=dict(plan.configs),
            )
            for plan in plans
        ]
        for future in admin.create_topics(topics).values():
            future.result(20)

    def leaders(self, topic: str, asked: Node | None = None) -> set[int]:
        """Who leads the partitions of a topic, says a broker: the follower unless another one is asked."""
        port = self._ports[(asked or self.follower).number]
        admin = AdminClient({"bootstrap.servers": f"{HOST}:{port}"})
        return {part.leader for part in admin.list_topics(topic, 5).topics[topic].partitions.values()}

    def coordinator(self, group: str) -> Node:
        """The broker that keeps the members and offsets of a group."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        number = admin.describe_consumer_groups([group])[group].result(20).coordinator.id
        return {node.number: node for node in (self.leader, self.follower)}[number]

    def in_sync(self, topic: str) -> bool:
        """Whether both brokers have all of a topic."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        return all(
            len(part.isrs) == 2 for part in admin.list_topics(topic, 5).topics[topic].partitions.values()
        )

    def await_broker(self, node: Node) -> None:
        """Waits until a broker answers."""
        address = f"{HOST}:{self._ports[node.number]}"
        wait_until(lambda: cluster_ready(address, 1.0), 60, f"broker {node.number} answers")

    def close(self) -> None:
        """Ends all processes."""
        for node in (self.leader, self.follower, self.controller):
            with suppress(AssertionError):
                node.signal(signal.SIGCONT)
            node.kill()


@contextmanager
def running_cluster(folder: Path, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[Cluster]:
    """A cluster of which controller and leader run; `cluster.follower.start()` brings the rest."""
    cluster = Cluster(folder, settings)
    try:
        cluster.controller.start()
        cluster.leader.start()
        cluster.await_broker(cluster.leader)
        yield cluster
    finally:
        cluster.close()

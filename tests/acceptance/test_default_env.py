"""Variables that every container gets, and logins at the embedded broker, as people use them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from pelton.protocol.topics import TopicPlan
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton_platform.deploy.home import Home
from pelton_platform.deploy.secret_store import SecretStore
from support.local_platform import LocalPlatform, local_platform, wait_for

# Processes of a whole platform start and stop here, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)

PROGRAM = """
    import os, signal
    from confluent_kafka import Consumer, Producer
    login = {
        "bootstrap.servers": os.environ["KAFKA_BROKERS"],
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": os.environ["KAFKA_USERNAME"],
        "sasl.password": os.environ["KAFKA_PASSWORD"],
    }
    producer = Producer(login)
    producer.produce("orders", b"one")
    left = producer.flush(20)
    consumer = Consumer({**login, "group.id": "orders", "auto.offset.reset": "earliest"})
    consumer.subscribe(["orders"])
    message = consumer.poll(30)
    print("left", left, "read", message and message.value(), flush=True)
    print(login, flush=True)
    signal.pause()
"""
DEPLOY = """
    import os, pelton
    secrets = [pelton.Secret(name) for name in ("KAFKA_BROKERS", "KAFKA_USERNAME", "KAFKA_PASSWORD")]
    pelton.Container(name="orders", secrets=secrets, entrypoint=["python", "orders.py"]).run()

    @pelton.function(env={"OWN": "container"})
    def show() -> dict[str, str]:
        return {name: os.environ.get(name, "-") for name in ("TOML", "BOTH", "LINE", "OWN")}
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """A platform with logins, and variables from three places."""
    settings = {"PELTON_ENV": '{"TOML": "t", "BOTH": "t", "LINE": "t", "OWN": "t"}', "PELTON_KEEP_WARM": "1s"}
    with local_platform(tmp_path_factory.mktemp("env"), settings, up=False) as made:
        made.run("env", "set", "BOTH=set", "LINE=set", "OWN=set")
        made.run("up", "--detach", "--sasl", "--env", "LINE=a=b")
        yield made


def test_logins_are_secrets_of_programs(platform: LocalPlatform) -> None:
    """A program with the three secrets produces and consumes; none of them is in what it prints."""
    state = json.loads(platform.home.context_file.read_text())
    admin = Admin(ConnectionConfig(state["bootstrap_servers"], state["namespace"]))
    admin.create_topics([TopicPlan("orders", 1, 1)])
    admin.close()
    platform.write("orders/orders.py", PROGRAM)
    platform.json("deploy", str(platform.write("orders/deploy_orders.py", DEPLOY)))
    wait_for(lambda: "left 0 read b'one'" in platform.run("logs", "orders").stdout, "it has read", 60)
    said = platform.run("logs", "orders").stdout
    store = SecretStore(Home(platform.home.root))
    assert "[secret KAFKA_PASSWORD]" in said
    assert not [name for name in store.names() if store.value(name) in said]


def test_logins_with_another_password_are_refused(platform: LocalPlatform) -> None:
    """The broker checks them."""
    store = SecretStore(Home(platform.home.root))
    settings = {
        "bootstrap.servers": store.value("KAFKA_BROKERS"),
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": store.value("KAFKA_USERNAME"),
    }
    right = AdminClient({**settings, "sasl.password": store.value("KAFKA_PASSWORD")})
    assert "orders" in right.list_topics(timeout=20).topics
    wrong = AdminClient({**settings, "sasl.password": "guessed", "log_level": 0})
    with pytest.raises(KafkaException):
        wrong.list_topics(timeout=5)


def test_variables_of_all_containers(platform: LocalPlatform) -> None:
    """The command line wins over `pelton env`, that over the settings; a container's own over all."""
    assert platform.json("call", "show")["value"] == {
        "TOML": "t",
        "BOTH": "set",
        "LINE": "a=b",
        "OWN": "container",
    }
    rows = {row["name"]: (row["value"], row["from"]) for row in platform.json("env", "ls")}
    assert rows["BOTH"] == ("set", "pelton env")
    assert rows["TOML"] == ("t", "pelton.toml")
    platform.run("env", "set", "BOTH=later")
    platform.run("env", "rm", "OWN")
    wait_for(lambda: not platform.instances("show"), "no instance is left", 60)
    assert platform.json("call", "show")["value"]["BOTH"] == "later"
    assert "`pelton env ls` says where" in platform.run("env", "rm", "TOML", code=1).stderr
    assert "is not NAME=VALUE" in platform.run("env", "set", "BOTH", code=2).stderr


def test_logins_stay_the_same(platform: LocalPlatform, tmp_path: Path) -> None:
    """The next start has the same name, password and port; an existing Kafka is not given logins."""
    store = SecretStore(Home(platform.home.root))
    before = [store.value(name) for name in ("KAFKA_BROKERS", "KAFKA_USERNAME", "KAFKA_PASSWORD")]
    platform.run("down")
    told = platform.run("up", "--detach", "--sasl").stderr
    assert "logins (SCRAM-SHA-256) at 127.0.0.1:" in told
    assert before[2] not in told
    assert [store.value(name) for name in ("KAFKA_BROKERS", "KAFKA_USERNAME", "KAFKA_PASSWORD")] == before
    elsewhere = LocalPlatform(tmp_path)
    refused = elsewhere.run("up", "--sasl", "--bootstrap-servers", "127.0.0.1:9", code=1)
    assert "logins are made at the embedded broker alone" in refused.stderr

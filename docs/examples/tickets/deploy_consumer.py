"""Deploys the consumer beside the workers: a plain program in a container of its own.

`python deploy_consumer.py` and `pelton deploy deploy_consumer.py` do the same.
"""

from __future__ import annotations

import os

from pelton import Container, Image, KafkaLag, Secret

TOPIC, GROUP = "support-tickets", "ticket-consumer"

consumer = Container(
    name="ticket-consumer",
    image=(
        Image.debian_slim()
        .pip_install(["confluent-kafka>=2.13,<3"])
        .add_local_file("consumer.py", "/app/consumer.py")
        .workdir("/app")
    ),
    entrypoint=["python", "/app/consumer.py"],
    env={
        "TICKETS_TOPIC": TOPIC,
        "TICKETS_GROUP": GROUP,
        "TICKETS_BATCH": os.environ.get("TICKETS_BATCH", "20"),
    },
    # `pelton up --sasl` has put these into the store of the platform.
    secrets=[Secret(name="KAFKA_BROKERS"), Secret(name="KAFKA_USERNAME"), Secret(name="KAFKA_PASSWORD")],
    min_instances=2,
    max_instances=5,
    memory="256Mi",
    scale_on=KafkaLag(TOPIC, GROUP, per_instance=500),
).run()

if __name__ == "__main__":
    print(consumer.wait(timeout=120).status)

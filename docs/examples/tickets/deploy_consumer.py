"""Deploys the consumer beside the workers: a plain program in a container of its own."""

from __future__ import annotations

from pelton import Container

Container(
    name="ticket-consumer",
    entrypoint=["python", "consumer.py"],
    min_instances=1,
    max_instances=1,
).run()

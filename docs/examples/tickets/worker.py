"""Classifies support tickets with a small text classifier, trained when its executor starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from database import open_database
from model import train

import pelton
from pelton import Container, Image, Secret

DATABASE = os.environ.get("TICKETS_DATABASE", str(Path.cwd() / "tickets.sqlite3"))
SECRETS = [Secret.from_env("DATABASE_URL")] if os.environ.get("DATABASE_URL") else []

container = Container(
    name="ticket-workers",
    image=Image.debian_slim().pip_install(["scikit-learn>=1.6,<2", "psycopg[binary]>=3.2,<4"]),
    env={"TICKETS_DATABASE": DATABASE},
    secrets=SECRETS,
    max_instances=3,
    max_concurrent_requests=8,
)

# Module state is made once per executor, before its first call.
classifier = train()
database = open_database()


@pelton.function(name="classify-ticket", container=container)
def classify_ticket(ticket: dict[str, Any]) -> str:
    """Labels one ticket from its text alone; returns the label."""
    call = pelton.context()
    database.begin(ticket["id"], call.call_id, call.attempt)
    label = classifier.label(ticket["text"])
    database.finish(ticket["id"], ticket["text"], label, call.call_id)
    return label

"""A login at the embedded broker for programs that want one, and the secrets by which they get it."""

from __future__ import annotations

import secrets

from pelton.transport.kafka.admin import Admin
from pelton_platform import process
from pelton_platform.deploy.secret_store import SecretStore

BROKERS = "KAFKA_BROKERS"
USERNAME = "KAFKA_USERNAME"
PASSWORD = "KAFKA_PASSWORD"

MECHANISM = "SCRAM-SHA-256"
"""The broker keeps a salted hash, so the password stands nowhere but among the secrets."""


def choose_port(store: SecretStore) -> int:
    """Return the port that programs know from the last start if it is free, else another one."""
    known = store.value(BROKERS).rpartition(":")[2] if BROKERS in store.names() else ""
    return int(known) if known.isdigit() and process.port_is_free(int(known)) else process.free_port()


def provide_login(store: SecretStore, admin: Admin, port: int) -> str:
    """Make the login at the broker, and keep address, name and password as secrets.

    A login that was made before keeps its name and password.

    Args:
        store: The secrets of the platform.
        admin: To the broker.
        port: Its port for logins.

    Returns:
        The name.
    """
    names = store.names()
    # Not a word of everyday output: it is taken out of that like every secret.
    username = store.value(USERNAME) if USERNAME in names else f"app-{secrets.token_hex(4)}"
    password = store.value(PASSWORD) if PASSWORD in names else secrets.token_urlsafe(24)
    admin.set_login(username, password)
    wanted = {BROKERS: f"{process.LOOPBACK}:{port}", USERNAME: username, PASSWORD: password}
    for name, value in wanted.items():
        if name not in names or store.value(name) != value:
            store.store(name, value)
    return username

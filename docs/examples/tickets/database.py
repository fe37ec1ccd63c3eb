"""Where labels go: an SQLite file by default, PostgreSQL when DATABASE_URL names one."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from typing import Any

TABLES = (
    """CREATE TABLE IF NOT EXISTS attempts (
        ticket TEXT NOT NULL, call_id TEXT NOT NULL, attempt INTEGER NOT NULL,
        pid INTEGER NOT NULL, at DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS labels (
        ticket TEXT NOT NULL, call_id TEXT NOT NULL, label TEXT NOT NULL, text TEXT NOT NULL,
        pid INTEGER NOT NULL, at DOUBLE PRECISION NOT NULL)""",
)

LOCKED_S = 60.0
"""How long a statement waits for others who write to the SQLite file."""


class Database:
    """One connection per thread; every attempt and every label is a row of its own, so that nothing hides."""

    def __init__(self, url: str | None, path: str) -> None:
        self._url = url
        self._path = path
        self._mark = "%s" if url else "?"
        self._local = threading.local()

    def begin(self, ticket: str, call_id: str, attempt: int) -> None:
        """Notes that an attempt began."""
        self._insert("attempts", (ticket, call_id, attempt, os.getpid(), time.time()))

    def finish(self, ticket: str, text: str, label: str, call_id: str) -> None:
        """Writes the label and the ticket."""
        self._insert("labels", (ticket, call_id, label, text, os.getpid(), time.time()))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Reads."""
        cursor = self._connection().cursor()
        cursor.execute(query)
        return list(cursor.fetchall())

    def create(self) -> None:
        """Makes the tables where they are missing."""
        connection = self._connection()
        cursor = connection.cursor()
        if self._url:
            # CREATE TABLE IF NOT EXISTS of two sessions at once can collide in PostgreSQL.
            cursor.execute("SELECT pg_advisory_xact_lock(7215003)")
        for table in TABLES:
            cursor.execute(table)
        connection.commit()

    def _insert(self, table: str, values: tuple[Any, ...]) -> None:
        connection = self._connection()
        marks = ", ".join([self._mark] * len(values))
        connection.cursor().execute(f"INSERT INTO {table} VALUES ({marks})", values)
        connection.commit()

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        return connection

    def _connect(self) -> Any:
        if self._url:
            import psycopg

            return psycopg.connect(self._url)
        connection = sqlite3.connect(self._path, timeout=LOCKED_S)
        deadline = time.monotonic() + LOCKED_S
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError:
                # Two who make a new file at once: this statement alone does not wait for the other's lock.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection


def open_database() -> Database:
    """The database that the environment names, with its tables."""
    database = Database(os.environ.get("DATABASE_URL"), os.environ.get("TICKETS_DATABASE", "tickets.sqlite3"))
    database.create()
    return database

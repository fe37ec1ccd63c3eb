"""Object stores for tests: a folder, and a bucket of a server on loopback that speaks S3."""

from __future__ import annotations

import io
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from moto.server import ThreadedMotoServer

# Nothing may look for credentials elsewhere: the client would ask a link-local address for them.
CREDENTIALS = {"access_key_id": "testing", "secret_access_key": "testing", "region": "us-east-1"}


@dataclass(frozen=True)
class Place:
    """Where a store is.

    Attributes:
        url: its address.
        options: its settings.
    """

    url: str
    options: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def bucket() -> Iterator[Place]:
    """A bucket, empty, on a server of this process."""
    # All servers of a process share what they hold.
    name = f"b{uuid.uuid4().hex}"
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with redirect_stdout(io.StringIO()):
        server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=30):
            pass
        yield Place(f"s3://{name}/of/tests", {**CREDENTIALS, "endpoint": endpoint})
    finally:
        server.stop()


@contextmanager
def place_of_kind(kind: str, folder: Path) -> Iterator[Place]:
    """A store: "folder" or "bucket"."""
    if kind == "bucket":
        with bucket() as place:
            yield place
    else:
        yield Place((folder / "store").as_uri())

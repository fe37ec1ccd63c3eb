"""Who is in a consumer group, asked over a socket of our own.

The library's request for this ends the whole process when the broker goes away at the wrong moment (see
`pelton.transport.kafka.offsets`), so that a test which kills brokers asks for itself: Kafka's DescribeGroups
in its first version, of the first broker named.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final

_DESCRIBE_GROUPS: Final = 15
_TIMEOUT_S: Final = 5.0


def partitions_held(bootstrap_servers: str, groups: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many partitions each member of each stable group holds, by the id the broker gave it.

    A group in the middle of a rebalance is left out, and all are when the broker does not answer.
    """
    host, _, port = bootstrap_servers.split(",")[0].rpartition(":")
    request = struct.pack(">hhih", _DESCRIBE_GROUPS, 0, 1, -1) + struct.pack(">i", len(groups))
    request += b"".join(struct.pack(">h", len(group)) + group.encode() for group in groups)
    try:
        with socket.create_connection((host, int(port)), _TIMEOUT_S) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _receive(connection, 4))
            return _described(_Reader(_receive(connection, size)))
    except OSError:
        return {}


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the broker hung up")
        data += more
    return data


class _Reader:
    """Takes values off the front of an answer."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, code: str) -> int:
        value: int = struct.unpack_from(f">{code}", self._data, self._at)[0]
        self._at += struct.calcsize(code)
        return value

    def some(self, code: str) -> bytes:
        size = max(0, self.number(code))
        self._at += size
        return self._data[self._at - size : self._at]


def _described(answer: _Reader) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    answer.number("i")
    for _ in range(answer.number("i")):
        error, group, state = answer.number("h"), answer.some("h").decode(), answer.some("h")
        answer.some("h"), answer.some("h")
        held = {}
        for _ in range(answer.number("i")):
            member = answer.some("h").decode()
            answer.some("h"), answer.some("h"), answer.some("i")
            held[member] = _partitions(answer.some("i"))
        if error == 0 and state == b"Stable":
            found[group] = held
    return found


def _partitions(assignment: bytes) -> int:
    """Partitions in an assignment: version, then topics with partitions."""
    if not assignment:
        return 0
    reader, total = _Reader(assignment), 0
    reader.number("h")
    for _ in range(reader.number("i")):
        reader.some("h")
        count = reader.number("i")
        total += count
        for _ in range(count):
            reader.number("i")
    return total

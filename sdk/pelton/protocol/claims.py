"""Claim checks: what stands in a record for a payload that lies in the object store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
from msgspec.msgpack import Ext

from pelton.errors import PayloadCorrupt
from pelton.protocol.extensions import Extension, extension_code
from pelton.protocol.topics import check_name

MARK: Final = b"PLC1"
"""In every claim check, word for word: records that name an object are found by it without decoding."""

_ID: Final = slice(4, 20)
_SIZE: Final = slice(20, 28)
_DIGEST: Final = slice(28, 60)
_LONGEST: Final = 512
_NAMED: Final = re.compile(re.escape(MARK) + rb"(.{16})", re.DOTALL)
_pack = msgspec.msgpack.Encoder().encode


class Claim(NamedTuple):
    """Names an object.

    Attributes:
        function: name of the function whose arguments or result it holds.
        id: 16 random bytes.
        size: of the object, in bytes.
        digest: BLAKE2b of the object, 32 bytes.
    """

    function: str
    id: bytes
    size: int
    digest: bytes

    @property
    def path(self) -> str:
        """Where the object lies in its store."""
        return f"{self.function}/{self.id.hex()}"


def is_claim(data: bytes) -> bool:
    """Whether a payload is a claim check."""
    return extension_code(data) == Extension.CLAIM


def may_claim(data: bytes) -> bool:
    """Whether a payload may be a claim check, pickled parts behind it or not; True at a glance."""
    return len(data) < _LONGEST and MARK in data


def encode_claim(claim: Claim) -> bytes:
    """The payload that stands for the object."""
    size = claim.size.to_bytes(8, "big")
    return _pack(
        Ext(Extension.CLAIM, b"".join((MARK, claim.id, size, claim.digest, claim.function.encode())))
    )


def decode_claim(data: bytes) -> Claim:
    """The claim check that is this payload.

    Raises:
        PayloadCorrupt: it is none.
    """
    try:
        found = msgspec.msgpack.decode(data)
        content = bytes(found.data)
        # The name becomes a part of a path.
        function = check_name("function", content[_DIGEST.stop :].decode("ascii"))
    except (msgspec.MsgspecError, AttributeError, ValueError) as error:
        raise PayloadCorrupt(f"a claim check that cannot be read: {error}") from error
    if found.code != Extension.CLAIM or content[:4] != MARK:
        raise PayloadCorrupt("a claim check that names no object")
    return Claim(function, content[_ID], int.from_bytes(content[_SIZE], "big"), content[_DIGEST])


def named_in(value: bytes) -> Iterator[bytes]:
    """Ids of the objects that a record may name, by its bytes alone; never too few."""
    return (found[1] for found in _NAMED.finditer(value))

"""Avro's zigzag varints: the shortest bytes of a 64-bit number, and a reader that trusts nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from pelton.errors import RecordError

MIN_LONG: Final = -(2**63)
MAX_LONG: Final = 2**63 - 1

_MAX_VARINT_BYTES: Final = 10
"""64 bits in groups of seven."""


def _encode(number: int) -> bytes:
    """Zigzag varint of any 64-bit number."""
    rest = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


SMALL: Final = 1024
"""Numbers below it are looked up."""

SMALL_LONGS: Final = tuple(_encode(number) for number in range(SMALL))
"""Numbers from 0 to `SMALL` - 1 as Avro `long`."""


_FIRST_TIME: Final = 2**35
_LAST_TIME: Final = 2**41 - 1
"""Milliseconds since the epoch from 1971 to 2039 lie between them, and take six groups of seven bits each."""


@lru_cache(maxsize=256)
def _upper_bytes(number: int) -> bytes:
    """The upper four groups of a time, the same for all times of about eight seconds."""
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14 & 0x7F | 0x80, number >> 21))


@lru_cache(maxsize=256)
def _upper_number(groups: bytes) -> int:
    """The upper four groups of a time, shifted into place; 0 when they are none."""
    if len(groups) != 4 or groups[3] > 0x7F or min(groups[:3]) < 0x80:
        return 0
    return ((groups[0] & 0x7F) | (groups[1] & 0x7F) << 7 | (groups[2] & 0x7F) << 14 | groups[3] << 21) << 13


def encode_long(number: int) -> bytes:
    """A number as Avro `long`.

    Raises:
        RecordError: it has more than 64 bits.
    """
    if 0 <= number < SMALL:
        return SMALL_LONGS[number]
    if _FIRST_TIME <= number <= _LAST_TIME:
        return bytes((number << 1 & 0x7F | 0x80, number >> 6 & 0x7F | 0x80)) + _upper_bytes(number >> 13)
    if not MIN_LONG <= number <= MAX_LONG:
        raise RecordError(f"{number} does not fit 64 bits")
    return _encode(number)


def decode_long(data: bytes, at: int) -> tuple[int, int]:
    """Reads an Avro `long`.

    Returns:
        The number, and where the next field starts.

    Raises:
        IndexError: the data ends inside it.
        RecordError: it has more than 64 bits.
    """
    byte = data[at]
    at += 1
    if byte < 0x80:
        return (byte >> 1) ^ -(byte & 1), at
    z = byte & 0x7F
    byte = data[at]
    if byte < 0x80:
        z |= byte << 7
        return (z >> 1) ^ -(z & 1), at + 1
    if not z & 1 and (upper := _upper_number(data[at + 1 : at + 5])):
        return upper | (byte & 0x7F) << 6 | z >> 1, at + 5
    shift = 7
    end = at + _MAX_VARINT_BYTES - 1
    while at < end:
        byte = data[at]
        at += 1
        if byte < 0x80:
            z |= byte << shift
            if z > 0xFFFF_FFFF_FFFF_FFFF:
                break
            return (z >> 1) ^ -(z & 1), at
        z |= (byte & 0x7F) << shift
        shift += 7
    raise RecordError("a number of more than 64 bits")

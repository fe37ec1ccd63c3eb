"""Avro's zigzag varints: the shortest bytes of a 64-bit number, and a reader that trusts nothing."""

from __future__ import annotations

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

_SMALL_LONGS: Final = tuple(_encode(number) for number in range(SMALL))


def encode_long(number: int) -> bytes:
    """A number as Avro `long`.

    Raises:
        RecordError: it has more than 64 bits.
    """
    if 0 <= number < SMALL:
        return _SMALL_LONGS[number]
    if 0x3FFFFFFFF < number < 0x20000000000:
        # Milliseconds since the epoch, from 1970-07 to 2039: six groups.
        z = number << 1
        return bytes(
            (
                z & 0x7F | 0x80,
                z >> 7 & 0x7F | 0x80,
                z >> 14 & 0x7F | 0x80,
                z >> 21 & 0x7F | 0x80,
                z >> 28 & 0x7F | 0x80,
                z >> 35,
            )
        )
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

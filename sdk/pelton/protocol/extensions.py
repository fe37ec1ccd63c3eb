"""The MessagePack extension types of payloads, and how values of the standard library travel in them."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from msgspec.msgpack import Ext

from pelton.errors import PayloadCorrupt


class Extension:
    """Extension codes; a code never changes its meaning."""

    TUPLE: Final = 1
    """Array of items."""
    SET: Final = 2
    """Array of items, sorted by their bytes."""
    FROZENSET: Final = 3
    """As SET."""
    PAIRS: Final = 4
    """A dict whose keys are not all str: array of key, value, key, value, ..."""
    INTEGER: Final = 5
    """Two's complement, big-endian: integers of more than 64 bits."""
    BYTEARRAY: Final = 6
    """The bytes."""
    COMPLEX: Final = 7
    """Two doubles, big-endian."""
    DATETIME: Final = 8
    """[year, month, day, hour, minute, second, microsecond, fold, zone]; zone as in `_Zone`."""
    DATE: Final = 9
    """[year, month, day]."""
    TIME: Final = 10
    """[hour, minute, second, microsecond, fold, zone]."""
    TIMEDELTA: Final = 11
    """[days, seconds, microseconds]."""
    DECIMAL: Final = 12
    """ASCII, as `str` gives it."""
    UUID: Final = 13
    """16 bytes."""
    RECORD: Final = 14
    """[module, qualified name, field, value, field, value, ...]: a dataclass or Enum member."""
    NUMPY_ARRAY: Final = 15
    """[dtype, shape, bytes in C order]."""
    NUMPY_SCALAR: Final = 16
    """[dtype, bytes]."""
    ARROW_TABLE: Final = 17
    """An Arrow IPC stream."""
    ARROW_BATCH: Final = 18
    """An Arrow IPC stream of one record batch."""
    PICKLED: Final = 19
    """A payload with pickled parts, signed; only as a whole payload."""
    PICKLE: Final = 20
    """A cloudpickle; only inside of PICKLED."""
    CLAIM: Final = 21
    """A claim check, see `pelton.protocol.claims`; only as a whole payload, or as what PICKLED holds."""
    SEGMENT: Final = 22
    """[code, offset, length, ...]: a value that lies elsewhere in the same object."""
    PARTS: Final = 23
    """[code, offset, length, offset, length, ...]: arrays in the same object, together that of a value."""


_CODE_AT: Final = {0xC7: 2, 0xC8: 3, 0xC9: 5, 0xD4: 1, 0xD5: 1, 0xD6: 1, 0xD7: 1, 0xD8: 1}
"""Where an extension has its code, by its first byte."""


def extension_code(data: bytes) -> int:
    """The code of the extension that a payload is as a whole, -1 for any other payload."""
    at = _CODE_AT.get(data[0], 0) if data else 0
    return data[at] if 0 < at < len(data) else -1


class Refusal(Exception):
    """A value that does not travel; containers add where it is on the way up.

    Attributes:
        reason: the rest of a sentence that starts with the place.
        path: keys and indexes, innermost first.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []


_Zone = None | str | tuple[int, str | None]
"""Naive; key of a `zoneinfo.ZoneInfo`; or offset in microseconds and name of a `datetime.timezone`."""

_pack = msgspec.msgpack.Encoder().encode
_read_datetime = msgspec.msgpack.Decoder(tuple[int, int, int, int, int, int, int, int, _Zone]).decode
_read_date = msgspec.msgpack.Decoder(tuple[int, int, int]).decode
_read_time = msgspec.msgpack.Decoder(tuple[int, int, int, int, int, _Zone]).decode
_COMPLEX = struct.Struct(">dd")
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,3}")
_DECIMAL = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?(?:E[+-][0-9]{1,19})?|Infinity|s?NaN[0-9]*)")
_MICROSECOND = timedelta(microseconds=1)


def _lower_zone(zone: tzinfo | None) -> Any:
    """A time zone as plain data."""
    if zone is None:
        return None
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        return (offset // _MICROSECOND, None if name == timezone(offset).tzname(None) else name)
    if type(zone) is ZoneInfo and zone.key is not None and _ZONE_KEY.fullmatch(zone.key):
        return zone.key
    raise Refusal(
        f"has the time zone {zone!r}: zones travel as `datetime.timezone` or `zoneinfo.ZoneInfo` with a key"
    )


def _raise_zone(zone: Any) -> tzinfo | None:
    """A time zone back; a key is looked up among the zones of this machine and nowhere else."""
    if zone is None:
        return None
    if isinstance(zone, str):
        if not _ZONE_KEY.fullmatch(zone):
            raise PayloadCorrupt(f"{zone[:64]!r} is no key of a time zone")
        try:
            return ZoneInfo(zone)
        except (LookupError, ValueError, OSError) as error:
            raise PayloadCorrupt(
                f"the time zone {zone!r} is not known here; installing tzdata may help"
            ) from error
    offset, name = zone
    if not offset and name is None:
        return UTC
    span = timedelta(microseconds=offset)
    return timezone(span) if name is None else timezone(span, name)


def _lower_datetime(value: datetime) -> Ext:
    zone = _lower_zone(value.tzinfo)
    return Ext(
        Extension.DATETIME,
        _pack(
            (
                value.year,
                value.month,
                value.day,
                value.hour,
                value.minute,
                value.second,
                value.microsecond,
                value.fold,
                zone,
            )
        ),
    )


def _raise_datetime(data: memoryview) -> datetime:
    year, month, day, hour, minute, second, microsecond, fold, zone = _read_datetime(data)
    return datetime(year, month, day, hour, minute, second, microsecond, _raise_zone(zone), fold=fold)


def _lower_time(value: time) -> Ext:
    zone = _lower_zone(value.tzinfo)
    fields = (value.hour, value.minute, value.second, value.microsecond, value.fold, zone)
    return Ext(Extension.TIME, _pack(fields))


def _raise_time(data: memoryview) -> time:
    hour, minute, second, microsecond, fold, zone = _read_time(data)
    return time(hour, minute, second, microsecond, _raise_zone(zone), fold=fold)


def _lower_date(value: date) -> Ext:
    return Ext(Extension.DATE, _pack((value.year, value.month, value.day)))


def _raise_date(data: memoryview) -> date:
    return date(*_read_date(data))


def _lower_timedelta(value: timedelta) -> Ext:
    return Ext(Extension.TIMEDELTA, _pack((value.days, value.seconds, value.microseconds)))


def _raise_timedelta(data: memoryview) -> timedelta:
    return timedelta(*_read_date(data))


def _raise_decimal(data: memoryview) -> Decimal:
    text = bytes(data).decode("ascii")
    if not _DECIMAL.fullmatch(text):
        raise PayloadCorrupt(f"{text[:64]!r} is no decimal")
    return Decimal(text)


def _lower_integer(value: int) -> int | Ext:
    if -(2**63) <= value < 2**64:
        return value
    return Ext(Extension.INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _lower_text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal("is a str with a lone surrogate, which no UTF-8 can carry") from None
    return value


LOWER: Final[dict[type, Callable[[Any], Any]]] = {
    int: _lower_integer,
    str: _lower_text,
    bytearray: lambda value: Ext(Extension.BYTEARRAY, bytes(value)),
    complex: lambda value: Ext(Extension.COMPLEX, _COMPLEX.pack(value.real, value.imag)),
    datetime: _lower_datetime,
    date: _lower_date,
    time: _lower_time,
    timedelta: _lower_timedelta,
    Decimal: lambda value: Ext(Extension.DECIMAL, str(value).encode("ascii")),
    UUID: lambda value: Ext(Extension.UUID, value.bytes),
}
"""From an exact type to plain data or an extension; raises `Refusal`."""

RAISE: Final[dict[int, Callable[[memoryview], Any]]] = {
    Extension.INTEGER: lambda data: int.from_bytes(data, "big", signed=True),
    Extension.BYTEARRAY: bytearray,
    Extension.COMPLEX: lambda data: complex(*_COMPLEX.unpack(data)),
    Extension.DATETIME: _raise_datetime,
    Extension.DATE: _raise_date,
    Extension.TIME: _raise_time,
    Extension.TIMEDELTA: _raise_timedelta,
    Extension.DECIMAL: _raise_decimal,
    Extension.UUID: lambda data: UUID(bytes=bytes(data)),
}
"""From the bytes of an extension back to the value; raises ValueError, TypeError or their like."""

"""Requests for limits and the leases that answer them, to bytes and back, with their keys."""

from __future__ import annotations

from typing import Final

from pelton.core.limits import Lease, LimitRequest
from pelton.errors import RecordError
from pelton.protocol.avro import Subject, Values

LIMIT_REQUEST: Final = Subject("limit_request")
LEASE: Final = Subject("lease")

_SEPARATOR: Final = b"\0"


def encode_limit_request(request: LimitRequest) -> bytes:
    """A request.

    Raises:
        RecordError: a value does not fit its field.
    """
    return LIMIT_REQUEST.encode(request._asdict())


def decode_limit_request(data: bytes | None) -> LimitRequest:
    """Reads a request.

    Raises:
        RecordError: it is none.
    """
    values = LIMIT_REQUEST.decode(data)
    _check_positive("limit_request", values)
    return LimitRequest(**values)


def encode_lease(lease: Lease) -> bytes:
    """A lease.

    Raises:
        RecordError: a value does not fit its field.
    """
    return LEASE.encode({**lease._asdict(), "windows": list(lease.windows)})


def decode_lease(data: bytes | None) -> Lease:
    """Reads a lease.

    Raises:
        RecordError: it is none.
    """
    values = LEASE.decode(data)
    _check_positive("lease", values)
    if min(values["windows"], default=0) < 0:
        raise RecordError("a lease with a token of a negative time")
    return Lease(**{**values, "windows": tuple(values["windows"])})


def lease_key(limit: str, instance: str) -> bytes:
    """The key of a lease in `control.limits`."""
    return limit.encode() + _SEPARATOR + instance.encode()


def parse_lease_key(key: bytes | None) -> tuple[str, str] | None:
    """The limit and the instance in the key of a lease; None for any other key."""
    limit, found, instance = (key or b"").rpartition(_SEPARATOR)
    try:
        return (limit.decode(), instance.decode()) if found else None
    except UnicodeDecodeError:
        return None


def _check_positive(name: str, values: Values) -> None:
    for field, value in values.items():
        if type(value) is int and value < 0:
            raise RecordError(f"a {name} with {field} {value}")

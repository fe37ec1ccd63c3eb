"""Values of records to bytes and back, every kind there is: the door to the Avro contracts."""

from __future__ import annotations

from typing import Final

from pelton.protocol.avro import PREFIX_BYTES, Subject
from pelton.protocol.invocation import INVOCATION, INVOCATION_PREFIX, decode_invocation, encode_invocation
from pelton.protocol.limits import (
    LEASE,
    LIMIT_REQUEST,
    decode_lease,
    decode_limit_request,
    encode_lease,
    encode_limit_request,
)
from pelton.protocol.records import (
    CANCELLATION,
    DEAD_LETTER,
    LOG_RECORD,
    TIMER,
    decode_cancellation,
    decode_dead_letter,
    decode_log,
    decode_timer,
    encode_cancellation,
    encode_dead_letter,
    encode_log,
    encode_timer,
)
from pelton.protocol.registry import (
    CONTAINER_SPEC,
    FUNCTION_SPEC,
    INSTANCE_STATUS,
    decode_container_spec,
    decode_function_spec,
    decode_instance_status,
    encode_container_spec,
    encode_function_spec,
    encode_instance_status,
)
from pelton.protocol.result import RESULT, decode_result, encode_result

SUBJECTS: Final[dict[str, Subject]] = {
    subject.name: subject
    for subject in (
        INVOCATION,
        RESULT,
        DEAD_LETTER,
        FUNCTION_SPEC,
        CONTAINER_SPEC,
        INSTANCE_STATUS,
        LOG_RECORD,
        CANCELLATION,
        TIMER,
        LIMIT_REQUEST,
        LEASE,
    )
}
"""The contracts by name."""


def is_invocation(data: bytes | None) -> bool:
    """Whether the first ten bytes are those of an invocation; all a relay looks at."""
    return data is not None and (data.startswith(INVOCATION_PREFIX) or INVOCATION.knows(data))


__all__ = [
    "PREFIX_BYTES",
    "SUBJECTS",
    "decode_cancellation",
    "decode_container_spec",
    "decode_dead_letter",
    "decode_function_spec",
    "decode_instance_status",
    "decode_invocation",
    "decode_lease",
    "decode_limit_request",
    "decode_log",
    "decode_result",
    "decode_timer",
    "encode_cancellation",
    "encode_container_spec",
    "encode_dead_letter",
    "encode_function_spec",
    "encode_instance_status",
    "encode_invocation",
    "encode_lease",
    "encode_limit_request",
    "encode_log",
    "encode_result",
    "encode_timer",
    "is_invocation",
]

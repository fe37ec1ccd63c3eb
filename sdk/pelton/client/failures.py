"""What a caller raises for a call that failed."""

from __future__ import annotations

from typing import Final

from pelton.core.call import Failure
from pelton.errors import CallCancelled, CallFailed, CallRejected, CallTimeout, CallUnavailable, FunctionError

_CLASSES: Final[dict[str, type[CallFailed]]] = {
    "CANCELLED": CallCancelled,
    "DEADLINE_EXCEEDED": CallTimeout,
    "UNAVAILABLE": CallUnavailable,
    "INVALID_ARGUMENT": CallRejected,
    "DATA_LOSS": CallRejected,
    "FAILED_PRECONDITION": CallRejected,
    "RESOURCE_EXHAUSTED": CallRejected,
}
"""By gRPC code, of failures that user code did not raise; every other code means that it did."""

# With these codes, exceptions have tracebacks, too, where no line of user code ran, or none that counts.
_NOT_RAISED: Final = ("CANCELLED", "INVALID_ARGUMENT")
_OUR_TYPES: Final = ("pelton.errors.PayloadUnavailable",)


def error_of(failure: Failure, call_id: str, attempts: int = 0) -> CallFailed:
    """The exception for a failure.

    Args:
        failure: the failure of the outcome.
        call_id: id of the call, UUID text.
        attempts: attempts the call used; the one that failed when the failure does not say it.

    Returns:
        An exception with the remote traceback as a note: an uncaught one shows where user code failed.
    """
    raised = failure.traceback and failure.code not in _NOT_RAISED and failure.type not in _OUR_TYPES
    kind = FunctionError if raised else _CLASSES.get(failure.code, FunctionError)
    attempt = failure.attempt or attempts
    error = kind(
        failure.message,
        code=failure.code,
        type=failure.type,
        traceback=failure.traceback,
        call_id=call_id,
        attempt=attempt,
    )
    if failure.traceback:
        error.add_note(f"Remote traceback (call {call_id}, attempt {attempt}):\n{failure.traceback.rstrip()}")
    else:
        error.add_note(f"Call {call_id}, attempt {attempt}")
    return error

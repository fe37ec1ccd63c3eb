"""The error tree of Pelton; every class says whether trying again may help.

PeltonError
├── DefinitionError (TypeError)          a function, container or image is declared wrongly
│   └── UnsupportedOption                a keyword whose meaning this version does not have
├── PlatformNotRunning                   no platform in any of the contexts tried
├── TransportError                       Kafka could not be reached or refused                       retriable
│   ├── SubmitFailed                     the record was certainly not accepted                       retriable
│   ├── AcceptanceUnknown                the record may or may not be in the log
│   └── PayloadUnavailable               the object store cannot be reached                          retriable
├── FunctionNotFound (LookupError)       not in the registry
├── CallTooDeep (RecursionError)         more than 64 calls nested
├── NotReady (TimeoutError)              `wait_ready` ran out of time; carries the reasons           retriable
├── CallNotFound (LookupError)           attach: no such call
├── CallExpired (LookupError)            attach: older than the result TTL
├── PayloadError (ValueError)            a value cannot travel
│   ├── PayloadTooLarge                  above 1 GiB, or above 512 KiB without an object store
│   ├── UnsupportedType (TypeError)      a value of a type that does not travel
│   └── PayloadCorrupt                   bytes that are no payload
├── RecordError (ValueError)             a record that cannot be read (becomes a dead letter)
├── SignatureError                       a signed thing whose signature does not verify
├── DataLoss                             the reader's start lies below the log start
├── DeployError                          a deploy was refused
├── Retry                                raised by functions: try this call again                    retriable
└── CallFailed
    ├── FunctionError (RuntimeError)     user code raised
    ├── CallCancelled                    somebody cancelled it, or a call above it (CANCELLED)
    ├── CallTimeout (TimeoutError)       the attempt ran out of time (DEADLINE_EXCEEDED)             retriable
    ├── CallUnavailable                  instances were lost, attempts used up (UNAVAILABLE)         retriable
    └── CallRejected                     the record could not be processed (INVALID_ARGUMENT, DATA_LOSS, ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta


class PeltonError(Exception):
    """Root of all errors raised by Pelton."""

    retriable: bool = False


class DefinitionError(PeltonError, TypeError):
    """A function, container, image or secret is declared wrongly; the message names it and the fix."""


class UnsupportedOption(DefinitionError):
    """A keyword whose meaning this version does not have; nothing is accepted and ignored."""


class PlatformNotRunning(PeltonError):
    """No platform was found in any of the contexts tried; the message names them and `pelton up`."""


class TransportError(PeltonError):
    """Kafka could not be reached, or refused."""

    retriable = True


class SubmitFailed(TransportError):
    """The record of the call was certainly not accepted; it may be submitted again."""


class AcceptanceUnknown(TransportError):
    """The acknowledgement never came: the record may or may not be in the log."""

    retriable = False


class FunctionNotFound(PeltonError, LookupError):
    """The function is not in the registry; nothing was sent."""


class CallTooDeep(PeltonError, RecursionError):
    """Functions called functions more than 64 deep; nothing was sent."""


class NotReady(PeltonError, TimeoutError):
    """`wait_ready` ran out of time.

    Attributes:
        reasons: what was still missing, one sentence each.
    """

    retriable = True

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reasons = tuple(reasons)


class CallNotFound(PeltonError, LookupError):
    """No record of that call exists."""


class CallExpired(PeltonError, LookupError):
    """The call is older than the time results are kept."""


class PayloadError(PeltonError, ValueError):
    """A value cannot travel as arguments or result."""


class PayloadTooLarge(PayloadError):
    """The encoded value is above 1 GiB, or above 512 KiB where there is no object store."""


class PayloadUnavailable(TransportError):
    """The object store that holds large payloads cannot be reached, or is full."""


class UnsupportedType(PayloadError, TypeError):
    """A value of a type that does not travel; the message says where in the value it is."""


class PayloadCorrupt(PayloadError):
    """Bytes that are no payload: truncated, nested too deeply, or of an unknown extension."""


class RecordError(PeltonError, ValueError):
    """A record that cannot be read: unknown fingerprint, truncated, mismatching headers."""


class SignatureError(PeltonError):
    """A spec or bundle whose signature is missing or does not verify."""


class DataLoss(PeltonError):
    """Records that a reader needed lie below the start of the log."""


class DeployError(PeltonError):
    """A deploy was refused before anything changed; the message says why and what to do."""


class Retry(PeltonError):
    """Raised by a function that wants its call to be tried again, whatever its retry policy is.

    It counts as an attempt like any other: without a policy a call has three of them.

    Args:
        message: why, for people.
        after: how long to wait, seconds or a `timedelta`, up to 7 days; None leaves it to the policy.

    Attributes:
        after_ms: the same in milliseconds, -1 for None.

    Raises:
        ValueError: `after` is negative, no number, or above 7 days.
    """

    retriable = True

    def __init__(self, message: str = "", *, after: float | timedelta | None = None) -> None:
        super().__init__(message)
        seconds = after.total_seconds() if isinstance(after, timedelta) else after
        if seconds is not None and not 0 <= seconds <= 7 * 86_400:
            raise ValueError(f"after is a time of 0 s to 7 days, not {after!r}")
        self.after_ms = -1 if seconds is None else round(seconds * 1000)


class CallFailed(PeltonError):
    """A call ended without a value.

    Attributes:
        code: gRPC status name.
        type: qualified name of the original exception type, as text.
        message: the original message.
        traceback: remote traceback as text, "" when there is none.
        call_id: id of the call as UUID text.
        attempt: the attempt that failed, 0 when none ran.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        type: str = "",
        traceback: str = "",
        call_id: str = "",
        attempt: int = 0,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.type = type
        self.message = message
        self.traceback = traceback
        self.call_id = call_id
        self.attempt = attempt


class FunctionError(CallFailed, RuntimeError):
    """User code raised; `str()` is `ValueError: message`."""

    def __str__(self) -> str:
        """The original type and message."""
        name = self.type.rpartition(".")[2] or "Exception"
        return f"{name}: {self.message}" if self.message else name


class CallCancelled(CallFailed):
    """The call was cancelled, or one that it is part of (CANCELLED); the message says by whom."""


class CallTimeout(CallFailed, TimeoutError):
    """The attempt ran out of its time (DEADLINE_EXCEEDED)."""

    retriable = True


class CallUnavailable(CallFailed):
    """Executors or instances were lost and the attempts are used up (UNAVAILABLE)."""

    retriable = True


class CallRejected(CallFailed):
    """The record could not be processed, e.g. INVALID_ARGUMENT or DATA_LOSS."""

"""The ports: what a caller needs of a transport, and what a transport says back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from pelton.core.call import CallId, Invocation, Result
from pelton.core.spec import ContainerSpec, FunctionSpec, InstanceStatus
from pelton.transport.config import ConnectionConfig
from pelton.transport.payloads import PayloadStore

OnAccepted = Callable[[Exception | None], None]
"""Called once: None when Kafka acknowledged the record, else `SubmitFailed` or `AcceptanceUnknown`."""

OnResults = Callable[[Sequence[Result]], None]
"""Called with the results of one call in log order, on the transport's reading thread; must not block."""


class AttachState(Enum):
    """What a transport can say of a call id that another process submitted."""

    PENDING = "pending"
    FINISHED = "finished"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


class Directory(Protocol):
    """What is deployed, as known now; kept in memory and fed by the registry topics."""

    def function(self, name: str) -> FunctionSpec | None:
        """The latest verified spec, or None."""

    def functions(self) -> Sequence[FunctionSpec]:
        """All functions."""

    def container(self, name: str) -> ContainerSpec | None:
        """The container spec, or None."""

    def containers(self) -> Sequence[ContainerSpec]:
        """All containers."""

    def instances(self, container: str | None = None) -> Sequence[InstanceStatus]:
        """Live instances (seen within 10 s); `container=""` lists live deployers, None all."""

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until `ready()` holds, checking it on every change; False when time ran out."""


class Transport(Protocol):
    """A caller's way to the platform: kafka, memory, and the frame channel inside executors implement it."""

    def now_ms(self) -> int:
        """Broker time in milliseconds."""

    @property
    def directory(self) -> Directory:
        """What is deployed."""

    @property
    def config(self) -> ConnectionConfig | None:
        """Where the platform is, for who wants to reach it in another way; None where there is none."""

    @property
    def payloads(self) -> PayloadStore | None:
        """Where payloads above the limit of a record are kept; None where they cannot be."""

    def prepare(self, function: str) -> int:
        """Makes sure the replies of this function are being read; returns the reply partition. Blocks.

        Raises:
            FunctionNotFound: not in the registry.
            TransportError: the broker cannot be reached.
        """

    def submit(
        self, invocation: Invocation, spec: FunctionSpec, on_accepted: OnAccepted, on_results: OnResults
    ) -> None:
        """Sends a call whose id was minted with the partition `prepare` returned.

        Blocks only for backpressure. Results may come before acceptance. `on_results` is called until
        `forget`; after `SubmitFailed` nothing comes any more.

        Raises:
            SubmitFailed: backpressure did not end in time; nothing was sent, `on_accepted` is not called.
            TransportError: closed, or the broker cannot be reached; nothing was sent.
        """

    def attach(self, function: str, call_id: CallId, on_results: OnResults, timeout_s: float) -> AttachState:
        """Replays the results of a call from its first record, then follows it.

        Blocks until it can say the state; the replay comes on the calling thread. For EXPIRED and UNKNOWN
        nothing is registered.

        Raises:
            FunctionNotFound: not in the registry.
            DataLoss: the first records of the call are no longer in the log.
            TransportError: no answer within `timeout_s`.
        """

    def cancel(self, call_id: CallId, reason: str, on_accepted: OnAccepted) -> None:
        """Asks for the end of a call and of all calls below it, whoever made them.

        What becomes of it its results say. `on_accepted` is called once, as for `submit`.

        Args:
            call_id: any id; what belongs to no call does nothing.
            reason: who asks for it, for people.
            on_accepted: told when Kafka has acknowledged the request, or why not.

        Raises:
            SubmitFailed, TransportError: as for `submit`.
        """

    def forget(self, call_id: CallId, on_results: OnResults | None = None) -> None:
        """No more results wanted for this call: by this receiver, or by all with None. Idempotent."""

    def pause(self, call_id: CallId, on_results: OnResults) -> None:
        """This receiver wants no more results for now; others are not slowed down. Idempotent.

        What is on its way may still come. May be called by the receiver itself.
        """

    def resume(self, call_id: CallId, on_results: OnResults, timeout_s: float) -> bool:
        """Goes on for a paused receiver where it stood, by a way of its own: a stretch of bounded size.

        Blocks; results may come on the calling thread.

        Returns:
            Whether the receiver has caught up: from now on results come as they are appended. If not, it is
            still paused, and the next stretch comes with the next `resume`.

        Raises:
            DataLoss: what comes next is no longer in the log.
            TransportError: the broker cannot be reached, or it took longer than `timeout_s`.
        """

    def close(self, timeout_s: float) -> int:
        """Flushes what was not acknowledged, stops threads; returns the number still unacknowledged."""

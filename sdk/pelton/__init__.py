"""Run Python functions on events: the public face of Pelton.

Names are loaded on first use, so that `import pelton` loads no Kafka client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from pelton._version import __version__

if TYPE_CHECKING:
    from pelton import errors
    from pelton.client.calls import Acceptance
    from pelton.client.connection import Connection
    from pelton.client.futures import BlockingCallWarning, CallFuture
    from pelton.client.mapping import gather
    from pelton.client.session import close, connect, flush
    from pelton.client.streams import Stream
    from pelton.container import Container
    from pelton.decorators import Function, function
    from pelton.errors import Retry
    from pelton.handle import ContainerInfo, ExecResult, Handle, InstanceInfo
    from pelton.hooks import on_start, on_stop
    from pelton.image import Image
    from pelton.lag import KafkaLag
    from pelton.logs import chalk_logger, logger
    from pelton.methods import cls, method
    from pelton.probe import Probe
    from pelton.protocol.record import Record
    from pelton.references import FunctionRef, function_ref
    from pelton.retries import RetryPolicy
    from pelton.runtime.context import Context, context
    from pelton.secret import Secret

_HOMES: Final = {
    "Acceptance": "pelton.client.calls",
    "BlockingCallWarning": "pelton.client.futures",
    "CallFuture": "pelton.client.futures",
    "Connection": "pelton.client.connection",
    "Container": "pelton.container",
    "ContainerInfo": "pelton.handle",
    "Context": "pelton.runtime.context",
    "ExecResult": "pelton.handle",
    "Function": "pelton.decorators",
    "FunctionRef": "pelton.references",
    "Handle": "pelton.handle",
    "Image": "pelton.image",
    "InstanceInfo": "pelton.handle",
    "KafkaLag": "pelton.lag",
    "Probe": "pelton.probe",
    "Record": "pelton.protocol.record",
    "Retry": "pelton.errors",
    "RetryPolicy": "pelton.retries",
    "Secret": "pelton.secret",
    "Stream": "pelton.client.streams",
    "chalk_logger": "pelton.logs",
    "close": "pelton.client.session",
    "cls": "pelton.methods",
    "connect": "pelton.client.session",
    "context": "pelton.runtime.context",
    "flush": "pelton.client.session",
    "function": "pelton.decorators",
    "function_ref": "pelton.references",
    "gather": "pelton.client.mapping",
    "logger": "pelton.logs",
    "method": "pelton.methods",
    "on_start": "pelton.hooks",
    "on_stop": "pelton.hooks",
}
"""Public name to the module that has it."""

__all__ = [
    "Acceptance",
    "BlockingCallWarning",
    "CallFuture",
    "Connection",
    "Container",
    "ContainerInfo",
    "Context",
    "ExecResult",
    "Function",
    "FunctionRef",
    "Handle",
    "Image",
    "InstanceInfo",
    "KafkaLag",
    "Probe",
    "Record",
    "Retry",
    "RetryPolicy",
    "Secret",
    "Stream",
    "__version__",
    "chalk_logger",
    "close",
    "cls",
    "connect",
    "context",
    "errors",
    "flush",
    "function",
    "function_ref",
    "gather",
    "logger",
    "method",
    "on_start",
    "on_stop",
]


def __getattr__(name: str) -> Any:
    """Loads a public name on first use."""
    if name == "errors":
        return import_module("pelton.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'pelton' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted({*globals(), *__all__})

"""Probes: how the platform asks an instance of a plain program whether it is well."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from pelton.core.spec import ProbeSpec
from pelton.errors import DefinitionError
from pelton.policies import checked_count, checked_port, checked_timeout, checked_words

_PERIOD: Final = 2.0
_TIMEOUT: Final = 1.0
_FAILURES: Final = 3
_MAX_FAILURES: Final = 1_000


class Probe:
    """A question to an instance of a plain program; made by `http`, `tcp` or `exec`.

    As `readiness=` of a `Container` it says when an instance is ready: it counts as started, and is sent
    requests, once the first probe succeeds. As `liveness=` it says when one is to be started again.

    Attributes:
        spec: what the registry is told.
    """

    __slots__ = ("spec",)

    def __init__(self, spec: ProbeSpec) -> None:
        self.spec: Final = spec

    @classmethod
    def http(
        cls,
        path: str = "/",
        *,
        port: int | None = None,
        period: timedelta | float = _PERIOD,
        timeout: timedelta | float = _TIMEOUT,
        failures: int = _FAILURES,
    ) -> Probe:
        """Asks by HTTP GET; status codes from 200 to 399 are well.

        Args:
            path: path to ask for, with its query.
            port: TCP port; None for the one that the instance was given in `PORT`.
            period: seconds, or a `timedelta`, between two probes.
            timeout: how long one may take.
            failures: so many failures in a row count.

        Raises:
            DefinitionError: a value is wrong.
        """
        if not isinstance(path, str) or not path.startswith("/") or any(sign <= " " for sign in path):
            raise DefinitionError(f"probe: path is a path like '/healthz', not {path!r}")
        return cls(_spec("http", port, period, timeout, failures, path=path))

    @classmethod
    def tcp(
        cls,
        *,
        port: int | None = None,
        period: timedelta | float = _PERIOD,
        timeout: timedelta | float = _TIMEOUT,
        failures: int = _FAILURES,
    ) -> Probe:
        """Connects to a port; arguments as for `http`.

        Raises:
            DefinitionError: a value is wrong.
        """
        return cls(_spec("tcp", port, period, timeout, failures))

    @classmethod
    def exec(
        cls,
        command: Sequence[str],
        *,
        period: timedelta | float = _PERIOD,
        timeout: timedelta | float = _TIMEOUT,
        failures: int = _FAILURES,
    ) -> Probe:
        """Runs a command in the environment of the instance; exit code 0 is well.

        Args:
            command: program and arguments, e.g. `["python", "check.py"]`.
            period, timeout, failures: as for `http`.

        Raises:
            DefinitionError: a value is wrong.
        """
        words = checked_words("probe", "command", command)
        if not words:
            raise DefinitionError('probe: command is empty; give one like ["python", "check.py"]')
        return cls(_spec("exec", None, period, timeout, failures, command=words))

    def __repr__(self) -> str:
        return f"Probe({self.spec})"


def _spec(
    kind: str,
    port: int | None,
    period: timedelta | float,
    timeout: timedelta | float,
    failures: int,
    *,
    path: str = "",
    command: tuple[str, ...] = (),
) -> ProbeSpec:
    return ProbeSpec(
        kind=kind,
        port=checked_port("probe", port),
        path=path,
        command=command,
        period_ms=checked_timeout("probe", period, "period"),
        timeout_ms=checked_timeout("probe", timeout),
        failures=checked_count("probe", "failures", failures, low=1, high=_MAX_FAILURES),
    )

"""The Avro contracts of Pelton, data only: one folder per subject, one `.avsc` file per version."""

from __future__ import annotations

import re
from typing import Final

SUBJECTS: Final = (
    "invocation",
    "result",
    "dead_letter",
    "function_spec",
    "container_spec",
    "instance_status",
    "log_record",
    "cancellation",
    "timer",
    "limit_request",
    "lease",
)
"""Every kind of record value there is a contract for."""

_VERSION = re.compile(r"v([1-9][0-9]*)\.avsc")


def versions(subject: str) -> dict[int, str]:
    """All versions of a contract ever written, as Avro schema text by version number, oldest first.

    Raises:
        KeyError: there is no such subject.
    """
    from importlib.resources import files  # costs more than all other imports of the hot contracts together

    if subject not in SUBJECTS:
        raise KeyError(f"no contract {subject!r}; there are {', '.join(SUBJECTS)}")
    found = {}
    for entry in files(__name__).joinpath(subject).iterdir():
        if match := _VERSION.fullmatch(entry.name):
            found[int(match[1])] = entry.read_text(encoding="utf-8")
    return dict(sorted(found.items()))

"""Taking the values of secrets out of text before it is written down."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from pelton.core.call import Failure

SHORTEST = 4
"""Shorter values are left alone: `1` or `yes` as a secret would take away half of every line."""

_SHORTEST_LINE = 8  # of a value of several lines, such as a private key: output is cut into lines


class Redactor:
    """Replaces the values of secrets by the names of their variables.

    A value is found as it is, as `repr` and JSON write it, and each longer line of one that has several.

    Args:
        secrets: Variable to value.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._names = {form: name for name, value in secrets.items() for form in _forms(value)}
        # Of values that contain each other the longer one is meant.
        forms = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, forms))) if forms else None
        self._bytes = re.compile(b"|".join(re.escape(form.encode()) for form in forms)) if forms else None

    @property
    def has_values(self) -> bool:
        """Whether there is anything to look for."""
        return self._pattern is not None

    def __call__(self, text: str) -> str:
        """Return the text without values."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: f"[secret {self._names[found[0]]}]", text)

    def of_bytes(self, data: bytes) -> bytes:
        """Return what a program wrote without values."""
        if self._bytes is None:
            return data
        return self._bytes.sub(lambda found: f"[secret {self._names[found[0].decode()]}]".encode(), data)

    def of_failure(self, failure: Failure) -> Failure:
        """Return a failure without values in message and traceback."""
        if self._pattern is None:
            return failure
        return replace(failure, message=self(failure.message), traceback=self(failure.traceback))


NOTHING = Redactor({})
"""For containers without secrets."""


def _forms(value: str) -> Iterator[str]:
    if len(value) < SHORTEST:
        return
    yield from {
        value,
        repr(value)[1:-1],
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
    }
    lines = value.splitlines()
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _SHORTEST_LINE)

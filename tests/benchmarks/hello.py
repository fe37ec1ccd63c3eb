"""What is deployed to measure how soon a platform answers after its start: one function that does nothing."""

from __future__ import annotations

import pelton


@pelton.function(name="bench-hello")
def hello(value: str) -> str:
    """Returns what it is given."""
    return value

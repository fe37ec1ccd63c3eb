"""Functions that call what is not always there, and say how often and how soon to try again."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

import pelton

SHOP = os.environ.get("SHOP_URL", "http://127.0.0.1:9")


class SoldOut(Exception):
    """Nothing is left; there may be more tomorrow."""


def busy(error: BaseException) -> bool:
    """Whether an error says that the other side has too much to do."""
    return "busy" in str(error)


@pelton.function(retries=2)
def status(order: str) -> str:
    """Asks the shop; when it does not answer, the call is tried twice more."""
    with urllib.request.urlopen(f"{SHOP}/orders/{order}", timeout=5) as answer:
        return str(answer.read().decode())


@pelton.function(
    retry_policy=pelton.RetryPolicy(
        max_retries=8, initial=0.2, multiplier=2, max_wait=60, jitter=0.5, retry_on=[SoldOut, busy]
    )
)
def reserve(order: str, folder: str) -> int:
    """Succeeds at the third attempt; each is counted in a file, since a retry starts from nothing."""
    attempt = pelton.context().attempt
    with Path(folder, order).open("a") as journal:
        journal.write(f"{attempt}\n")
    if attempt == 1:
        raise SoldOut("come back later")
    if attempt == 2:
        raise pelton.Retry("the warehouse closes for a moment", after=0.5)
    return attempt

"""Bookings that must not overtake each other: one key per account."""

from __future__ import annotations

import pelton

accounts = pelton.Container(name="accounts", max_instances=2, max_concurrent_requests=8)


@pelton.function(ordering="key", container=accounts)
def book(account: str, cents: int) -> str:
    """Books an amount on an account; bookings of one account start in order."""
    print(f"{account} {cents:+}", flush=True)
    return f"{account}: {cents:+}"


if __name__ == "__main__":
    for cents in (500, -200, 50):
        book.options(key="alice").submit("alice", cents)
    print(book.options(key="alice")("alice", -350))

"""The times of a worker instance, all in one table, in the order that its promises rest on."""

from __future__ import annotations

from typing import Final

MESSAGE_TIMEOUT_MS: Final = 4_000
"""A record not acknowledged by then is given up: what a frozen owner queued dies with its ownership."""

SESSION_TIMEOUT_MS: Final = 6_000
"""The broker takes the partitions of an instance it has not heard of for so long."""

LEASE_MS: Final = 8_000
"""How long a lease of the governor lasts at its holder."""

GOVERNOR_EXPIRY_MS: Final = 9_000
"""How long the governor counts a lease as held that was not renewed."""

PROOF_MS: Final = 10_000
"""An instance that has not been heard of for so long is gone for every purpose."""

IN_ORDER: Final = (MESSAGE_TIMEOUT_MS, SESSION_TIMEOUT_MS, LEASE_MS, GOVERNOR_EXPIRY_MS, PROOF_MS)
"""Each must be over before the next one is."""

HEARTBEAT_MS: Final = 1_500
"""How often an instance is heard of: four times in a session."""

REVOKE_BUDGET_S: Final = 5.0
"""A revoke callback never lasts longer, and so never as long as a session."""

MAX_POLL_MS: Final = 300_000
"""Longest time between two polls. Generous: no user code runs on a poll thread, so only a bug is slow."""

DEAF_AFTER_S: Final = 30.0
"""An instance whose poll thread has not polled for so long says so and ends: it would take no call again."""

STATUS_EVERY_S: Final = 2.0
"""How often an instance says what it does."""

STATUS_SETTLE_S: Final = 0.2
"""Changes are told at most this often."""

COUNTERS_EVERY_S: Final = 1.0
"""How often the counters file is written."""

BUSY_TICK_S: Final = 0.02
"""How often the engine is told the time while calls are open: retries and timeouts are late by this."""

IDLE_TICK_S: Final = 0.2
"""How often it is told the time otherwise."""

SOON_MS: Final = 500
"""What is due within this time is waited for with the short step."""

FAILED_SEND_PAUSE_MS: Final = 250
"""A send that failed is answered after so long, since whoever hears of it sends again at once."""

DRAIN_SECONDS: Final = 30.0
"""How long running calls may go on after SIGTERM."""

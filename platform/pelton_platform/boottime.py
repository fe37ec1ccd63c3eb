"""The clock that leases are counted with: it does not step, and goes on while the machine sleeps."""

from __future__ import annotations

import time


def boot_ms() -> int:
    """Milliseconds since the machine was started."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

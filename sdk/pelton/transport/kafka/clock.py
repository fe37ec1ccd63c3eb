"""Broker time: the offset between this machine's clock and the broker's, learned from append times."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

SAMPLES: Final = 32
"""So many of the latest samples count; more would hold on to an offset that drift has made wrong."""


class BrokerClock:
    """This machine's clock moved by what is known of the broker's.

    A sample is an acknowledged append: somewhere between sending and the acknowledgement the broker's clock
    showed the append time, so the offset is known to half the round trip. The sample with the smallest round
    trip counts.
    """

    __slots__ = ("_lock", "_offset_ms", "_samples")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: deque[tuple[int, float]] = deque(maxlen=SAMPLES)
        self._offset_ms = 0.0

    def now_ms(self) -> int:
        """Broker time in milliseconds since the epoch; this machine's own time before the first sample."""
        return int(time.time_ns() / 1e6 + self._offset_ms)

    def sample(self, sent_wall_ns: int, appended_ms: int, round_trip_ns: int) -> None:
        """Learns from one acknowledged append.

        Args:
            sent_wall_ns: this machine's wall clock when the record was handed to the client.
            appended_ms: append time the broker gave the record.
            round_trip_ns: time from there to the acknowledgement, by a monotonic clock.
        """
        # The broker cuts its time to whole milliseconds: on average the append was half a millisecond later.
        offset_ms = appended_ms + 0.5 - (sent_wall_ns + round_trip_ns / 2) / 1e6
        with self._lock:
            self._samples.append((round_trip_ns, offset_ms))
            self._offset_ms = min(self._samples)[1]

    @property
    def offset_ms(self) -> float:
        """Broker time minus this machine's wall clock."""
        return self._offset_ms

    @property
    def round_trip_ms(self) -> float | None:
        """Round trip of the sample that counts, None before the first; half of it bounds the error."""
        with self._lock:
            return min(self._samples)[0] / 1e6 if self._samples else None

    @property
    def synchronized(self) -> bool:
        """Whether there is a sample."""
        return bool(self._samples)

"""What a call's results say before a fence: read from the log and folded as every reader folds them."""

from __future__ import annotations

from typing import Final, NamedTuple

from pelton.core.call import CallId, call_time_ms, reply_partition
from pelton.core.fold import Fold
from pelton.core.spec import RESULTS_PARTITIONS
from pelton.errors import RecordError
from pelton.protocol.codec import decode_result
from pelton.protocol.headers import decode_result_id
from pelton.transport.kafka.ranges import EARLIEST, RangeReader

LOOK_BACK_MS: Final = 60_000
"""The clock that minted a call id may be ahead of the broker's by less than this."""

TIMEOUT_S: Final = 10.0


class Seen(NamedTuple):
    """What lies before the fence: final for every reader, since later lower tokens are ignored."""

    chunks: int
    outcome: bool


def results_partition(call_id: CallId) -> int:
    """The partition of the results topic that a call's records go to; total for ids that nobody minted."""
    return reply_partition(call_id) % RESULTS_PARTITIONS


def read_before(ranges: RangeReader, topic: str, call_id: CallId, end_offset: int) -> Seen:
    """Reads the results of a call from its start up to, not including, `end_offset`. Blocks.

    Raises:
        TransportError: the broker does not answer.
        DataLoss: the log was cut while it was read.
    """
    place = (topic, results_partition(call_id))
    start = ranges.ask([place], max(0, call_time_ms(call_id) - LOOK_BACK_MS), TIMEOUT_S)[place]
    if start < 0:
        return Seen(0, False)  # nothing as young as the call is there
    start = max(start, ranges.ask([place], EARLIEST, TIMEOUT_S)[place])
    fold = Fold()
    for batch in ranges.read({place: (start, end_offset)}, TIMEOUT_S):
        for record in batch:
            if decode_result_id(record.headers) != call_id:
                continue
            try:
                fold.feed(decode_result(record.value))
            except RecordError:
                continue  # no reader can read it, so that none counts it
    return Seen(fold.seen, fold.ended)

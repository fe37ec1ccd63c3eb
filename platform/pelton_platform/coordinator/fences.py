"""What a call's results say before a fence: read from the log and folded as every reader folds them."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from pelton.core.call import CallId, ResultKind, call_time_ms, reply_partition
from pelton.core.fold import Fold
from pelton.core.spec import RESULTS_PARTITIONS
from pelton.errors import DataLoss, RecordError
from pelton.protocol.codec import decode_result
from pelton.protocol.headers import decode_result_id
from pelton.transport.kafka.ranges import EARLIEST, LATEST, RangeReader

LOOK_BACK_MS: Final = 60_000
"""The clock that minted a call id may be ahead of the broker's by less than this."""

TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """What lies before the fence: final for every reader, since later lower tokens are ignored.

    Attributes:
        chunk: a reader has accepted a chunk, or may have: what could tell is gone from the log for good.
        outcome: the call has ended.
    """

    chunk: bool
    outcome: bool


def results_partition(call_id: CallId) -> int:
    """The partition of the results topic that a call's records go to; total for ids that nobody minted."""
    return reply_partition(call_id) % RESULTS_PARTITIONS


def read_before(ranges: RangeReader, topic: str, call_id: CallId, end_offset: int) -> Seen:
    """Reads the results of a call from its start up to, not including, `end_offset`. Blocks.

    A log that no longer holds what lay there will not hold it at the next try either. A stream that may have
    been read counts as read then: a failure can be seen and repaired, a chunk that comes twice cannot.

    Args:
        ranges: reads the log.
        topic: the results topic of the function.
        call_id: the call.
        end_offset: offset at which its `reset` was acknowledged: the fence.

    Raises:
        TransportError: the broker does not answer.
    """
    place = (topic, results_partition(call_id))
    first = ranges.ask([place], EARLIEST, TIMEOUT_S)[place]
    if first > end_offset or ranges.ask([place], LATEST, TIMEOUT_S)[place] <= end_offset:
        return _gone(place, end_offset, "the fence itself is not in the log any more")
    start = ranges.ask([place], max(0, call_time_ms(call_id) - LOOK_BACK_MS), TIMEOUT_S)[place]
    if start < 0:
        return Seen(False, False)  # nothing as young as the call is there
    start = max(start, first)
    fold, torn = Fold(), False
    try:
        for batch in ranges.read({place: (start, end_offset)}, TIMEOUT_S):
            for record in batch:
                if decode_result_id(record.headers) != call_id:
                    continue
                try:
                    result = decode_result(record.value)
                except RecordError:
                    continue  # no reader can read it, so that none counts it
                if not fold.feed(result) and result.kind in (ResultKind.CHUNK, ResultKind.OUTCOME):
                    torn = True
    except DataLoss as error:
        return _gone(place, end_offset, str(error))
    if torn and not fold.seen and not fold.ended and start == first > 0:
        return _gone(place, end_offset, "its first records were before the start of the log")
    return Seen(fold.seen > 0, fold.ended)


def _gone(place: tuple[str, int], end_offset: int, reason: str) -> Seen:
    """The answer when the log cannot tell any more."""
    _log.warning(
        "a stream counts as begun: its results in %s/%d before offset %d are gone: %s",
        *place,
        end_offset,
        reason,
    )
    return Seen(True, False)

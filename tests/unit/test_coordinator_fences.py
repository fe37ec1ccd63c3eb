"""What a coordinator learns of a stream before its fence, also from a log that lost some of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest

from pelton.core.call import Result, ResultKind, Token, mint_call_id
from pelton.errors import DataLoss, TransportError
from pelton.protocol.codec import encode_result
from pelton.protocol.headers import encode_result as result_headers
from pelton.transport.kafka.ranges import EARLIEST, LATEST
from pelton.transport.log import LogRecord, Place
from pelton_platform.coordinator.fences import Seen, read_before

CALL = mint_call_id(1_000_000, 0, bytes(8))
OTHER = mint_call_id(1_000_000, 0, b"12345678")
FIRST, SECOND = Token(1, 1, 0, 0, 1), Token(1, 2, 0, 0, 1)
PLACE = ("results", 0)


class Log:
    """One partition of a results topic: records from some offset on, all as young as the call."""

    def __init__(self, *records: Result, start: int = 0, fence: bool = True) -> None:
        self.records = [*records, *([Result(CALL, SECOND, ResultKind.RESET)] if fence else [])]
        self.start = start
        self.end = start + len(self.records)
        self.trouble: Exception | None = None

    @property
    def fence(self) -> int:
        """Where the `reset` lies."""
        return self.end - 1

    def ask(self, places: Sequence[Place], at: int, timeout_s: float) -> dict[Place, int]:
        assert list(places) == [PLACE]
        return {PLACE: self.end if at == LATEST else self.start if at == EARLIEST or self.records else -1}

    def read(self, ranges: Mapping[Place, tuple[int, int]], timeout_s: float) -> Iterator[list[LogRecord]]:
        ((place, (start, end)),) = ranges.items()
        assert self.start <= start <= end <= self.end
        for offset in range(start, end):
            result = self.records[offset - self.start]
            headers = result_headers(result.call_id, result.token)
            yield [LogRecord(*place, offset, 0, None, encode_result(result), headers)]
        if self.trouble is not None:
            raise self.trouble


def seen(log: Log, fence: int | None = None) -> Seen:
    """What lies before the fence."""
    return read_before(log, "results", CALL, log.fence if fence is None else fence)  # type: ignore[arg-type]


def chunk(first: int, call: bytes = CALL) -> Result:
    """A chunk of the first execution."""
    return Result(call, FIRST, ResultKind.CHUNK, first, (b"x",))


def outcome(first: int) -> Result:
    """An outcome of the first execution."""
    return Result(CALL, FIRST, ResultKind.OUTCOME, first, (b"x",))


def test_a_whole_log_says_what_readers_have() -> None:
    """Chunks and outcomes of the call count, those of others do not, and nothing is nothing."""
    assert seen(Log()) == Seen(False, False)
    assert seen(Log(chunk(0, OTHER))) == Seen(False, False)
    assert seen(Log(chunk(0), chunk(1))) == Seen(True, False)
    assert seen(Log(chunk(0), outcome(1))) == Seen(True, True)
    assert seen(Log(chunk(0, OTHER), start=7)) == Seen(False, False)


def test_a_chunk_whose_predecessor_expired_on_its_way_was_read_by_nobody() -> None:
    """In a log that begins before the call a gap is no chunk that a reader took: the stream may run."""
    assert seen(Log(chunk(1))) == Seen(False, False)


@pytest.mark.parametrize("later", [chunk(1), outcome(5)])
def test_records_whose_first_ones_were_cut_off_count_as_begun(later: Result) -> None:
    """The start of the log has passed the first chunks: readers have them though nobody can see them now."""
    assert seen(Log(later, start=7)).chunk


def test_a_log_that_was_cut_while_it_was_read_counts_as_begun() -> None:
    """What is gone stays gone: the answer is the safe one, not another try."""
    log = Log(chunk(0, OTHER), start=7)
    log.trouble = DataLoss("results/0 cannot be read from offset 7: it lies outside the log")
    assert seen(log) == Seen(True, False)


def test_a_log_without_the_fence_counts_as_begun() -> None:
    """The log starts behind the fence, or ends before it: what lay before it cannot be known any more."""
    assert seen(Log(start=9), fence=8) == Seen(True, False)
    assert seen(Log(chunk(0, OTHER), fence=False), fence=1) == Seen(True, False)
    assert seen(Log(fence=False), fence=40) == Seen(True, False)


def test_a_broker_that_does_not_answer_is_asked_again() -> None:
    """No answer says nothing of the log: the error leaves the decision for the next try."""
    log = Log()
    log.trouble = TransportError("reading took too long")
    with pytest.raises(TransportError):
        seen(log)

"""The fold: how every reader of a call's results comes to the same values and the same outcome."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pelton.core.call import Result, ResultKind, Token

_LOWEST = Token(0, 0, 0, 0, 0)
_CHUNK = ResultKind.CHUNK
_OUTCOME = ResultKind.OUTCOME


class Fold:
    """Folds the records of one call, in log order, into chunks and one outcome.

    The rule: a token lower than the highest seen is ignored; inside one token the next sequence is accepted,
    item by item (lower: skipped; gap: the record is ignored); the first outcome not ignored ends the call,
    and everything after it is ignored. All records of a call lie in one partition, so every reader folds to
    the same end.

    Attributes:
        token: the highest token seen.
        next: sequence expected next within that token.
        seen: chunks accepted so far over all tokens.
        restarts: how often the stream began again after chunks had been seen: those count no more.
        outcome: the record that ended the call, None while it is open.
        started: whether any record of an execution was seen.
        moved: target of the last `moved` record, "" when there was none.
        alias: payload of an alias record naming the winner, None when there was none.
    """

    __slots__ = ("_stale", "alias", "moved", "next", "outcome", "restarts", "seen", "started", "token")

    def __init__(self) -> None:
        self.token = _LOWEST
        self.next = 0
        self.seen = 0
        self.outcome: Result | None = None
        self.started = False
        self.moved = ""
        self.alias: bytes | None = None
        self.restarts = 0
        self._stale = False

    @property
    def ended(self) -> bool:
        """Whether the outcome is known."""
        return self.outcome is not None

    def feed(self, result: Result) -> Sequence[bytes]:
        """Takes the next record; returns the chunks it adds, in order."""
        if self.outcome is not None or result.token < self.token:
            return ()
        if result.token > self.token:
            self.token = result.token
            self._stale = self._stale or self.next > 0
            self.next = 0
        kind = result.kind
        if kind is _OUTCOME:
            if result.first == self.next:
                self.outcome = result
                self.started = True
                if self._stale and result.failure is None:
                    self._restart()
            return ()
        if kind is _CHUNK:
            return self._chunks(result)
        if kind is ResultKind.MOVED:
            self.moved = result.moved_to
        elif kind is ResultKind.ALIAS:
            self.alias = result.items[0] if result.items else None
        else:
            self.started = True
        return ()

    def _chunks(self, result: Result) -> Sequence[bytes]:
        self.started = True
        known = self.next - result.first
        if known < 0 or known >= len(result.items):
            return ()
        if self._stale:
            self._restart()
        fresh = result.items[known:]
        self.next += len(fresh)
        self.seen += len(fresh)
        return fresh

    def _restart(self) -> None:
        """What another execution goes on with, or ends well with, stands for the whole of the stream."""
        self._stale = False
        self.restarts += 1


def fold(results: Iterable[Result]) -> tuple[list[bytes], Result | None]:
    """Folds a whole history: the chunks in order and the outcome, None while the call is open."""
    state = Fold()
    chunks: list[bytes] = []
    for result in results:
        restarts = state.restarts
        fresh = state.feed(result)
        if state.restarts > restarts:
            chunks.clear()
        chunks.extend(fresh)
    return chunks, state.outcome

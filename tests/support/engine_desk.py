"""A desk to drive one engine by hand: what it asked for, and the answers a coordinator would give."""

from __future__ import annotations

from typing import Any, TypeVar

from pelton.core.call import InputHeaders, InputPartition, InputTopic
from pelton.core.cancelling import Cancellations
from pelton.core.decisions import (
    Action,
    Commit,
    CommitOutcome,
    InputRecord,
    ReadCancellations,
    SendResult,
    Start,
)
from pelton.core.engine import Engine
from pelton.core.offsets import CommitMeta, decode_metadata, encode_metadata
from pelton.core.runs import EngineSettings

A = TypeVar("A")

P0 = InputPartition(InputTopic.INVOCATIONS, 0)
P1 = InputPartition(InputTopic.INVOCATIONS, 1)


def call_id(number: int) -> bytes:
    """The id of the nth call."""
    return number.to_bytes(16, "big")


def record(
    offset: int, number: int | None = None, *, key: bytes | None = None, **headers: Any
) -> InputRecord:
    """A record at an offset; its call has the offset's number unless told, and no ordering key."""
    identity = call_id(offset if number is None else number)
    return InputRecord(offset, InputHeaders(identity, "f", **headers), b"body", key or identity)


class Desk:
    """One engine, its clock and everything it asked for."""

    def __init__(self, **settings: Any) -> None:
        self.cancellations = Cancellations()
        self.engine = Engine(EngineSettings("w1", **settings), cancellations=self.cancellations)
        self.now_ms = 1_000_000
        self.engine.capacity(self.now_ms, 8)
        self.asked: list[Action] = []

    def own(
        self, partition: InputPartition = P0, offset: int = 0, meta: CommitMeta | None = None, end: int = 0
    ) -> None:
        """Gives it a partition and acknowledges its epoch."""
        committed = (offset, encode_metadata(meta or CommitMeta(), offset))
        self.engine.assigned(self.now_ms, partition, committed, 0, max(end, offset))
        self.acknowledge_commits()
        self.read_cancellations()

    def read_cancellations(self) -> None:
        """Answers that all requests to cancel were read."""
        for asked in self.asked_for(ReadCancellations):
            self.engine.cancellations_read(self.now_ms, asked.partition, asked.epoch)
        self.take()

    def cancel(self, *call_ids: bytes) -> None:
        """Requests to cancel come in."""
        self.cancellations.add(dict.fromkeys(call_ids, "somebody asked"))
        self.engine.cancelled(self.now_ms)
        self.take()

    def records(self, *records: InputRecord, partition: InputPartition = P0) -> None:
        """Hands records over."""
        self.engine.records(self.now_ms, partition, records)
        self.take()

    def take(self) -> None:
        """Notes what the engine asks for."""
        self.asked.extend(self.engine.take())

    def asked_for(self, kind: type[A]) -> list[A]:
        """Everything of one kind it asked for so far, oldest first; and forgets it."""
        found: list[A] = [action for action in self.asked if isinstance(action, kind)]
        self.asked = [action for action in self.asked if not isinstance(action, kind)]
        return found

    def starts(self) -> list[Start]:
        """Attempts to start."""
        return self.asked_for(Start)

    def results(self) -> list[SendResult]:
        """Result records to send."""
        return self.asked_for(SendResult)

    def acknowledge(self, send_id: int, offset: int = 7, *, ok: bool = True) -> None:
        """A delivery report."""
        self.engine.reported(self.now_ms, send_id, ok, offset)
        self.take()

    def acknowledge_commits(self, outcome: CommitOutcome = CommitOutcome.OK) -> list[Commit]:
        """Answers every commit asked for, also those that follow; returns them."""
        self.take()
        answered: list[Commit] = []
        while commits := self.asked_for(Commit):
            for commit in commits:
                answered.append(commit)
                self.engine.committed(self.now_ms, commit.commit_id, outcome)
            if outcome is not CommitOutcome.OK:
                break
            self.take()
        return answered

    def after(self, milliseconds: int) -> None:
        """Time passes."""
        self.now_ms += milliseconds
        self.engine.tick(self.now_ms)
        self.take()

    def committed(self, commits: list[Commit], partition: InputPartition = P0) -> tuple[int, CommitMeta]:
        """Offset and metadata of the last commit of a partition."""
        offset, text = [commit for commit in commits if partition in commit.offsets][-1].offsets[partition]
        meta = decode_metadata(text)
        assert meta is not None
        return offset, meta

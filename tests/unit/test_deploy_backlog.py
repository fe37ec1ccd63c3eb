"""The count of unfinished calls while a call moves from one partition to another."""

from __future__ import annotations

from collections.abc import Sequence

from pelton.core.offsets import CommitMeta, encode_metadata
from pelton.core.spec import FunctionKind, FunctionSpec
from pelton.protocol.topics import Topics
from pelton.transport.log import Place
from pelton_platform.deploy.backlog import Backlog

SPEC = FunctionSpec("f", 1, "c", FunctionKind.SYNC, (), "m", "f", "b", partitions=2)
TOPICS = Topics("ns")
SOURCE, KEPT = (TOPICS.invocations("f"), 0), (TOPICS.invocations("f"), 1)


class Moving:
    """A broker at which the only call is copied, and its original committed, between any two questions."""

    def __init__(self, moves_before: int) -> None:
        self.questions = 0
        self.moves_before = moves_before

    @property
    def moved(self) -> bool:
        """Whether the copy is there and the original finished."""
        self.questions += 1
        return self.questions > self.moves_before

    def ends(self, places: Sequence[Place], timeout_s: float = 5.0) -> dict[Place, int]:
        """Where the next record goes."""
        ends = {**dict.fromkeys(places, 0), SOURCE: 1}
        return {**ends, KEPT: 1} if self.moved else ends

    def committed(self, group: str, places: Sequence[Place]) -> dict[Place, tuple[int, str]]:
        """Committed offsets."""
        return {**dict.fromkeys(places, self.at(0)), SOURCE: self.at(int(self.moved))}

    @staticmethod
    def at(offset: int) -> tuple[int, str]:
        """A commit of an offset with nothing finished above it."""
        return offset, encode_metadata(CommitMeta(), offset)


def test_a_call_that_moves_is_never_missed() -> None:
    """Whenever it moves, it is counted at least once."""
    for moves_before in range(5):
        admin = Moving(moves_before)
        found = Backlog(admin, TOPICS).look({"f": SPEC})["f"]  # type: ignore[arg-type]
        assert found >= 1, f"moved before question {moves_before}"

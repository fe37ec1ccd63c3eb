"""What the engine keeps in memory and in commit metadata stays bounded, whatever never ends."""

from __future__ import annotations

from pelton.core.decisions import Pause, Resume
from pelton.core.offsets import CommitMeta
from support.engine_desk import P0, Desk, call_id, record


def test_intake_is_bounded() -> None:
    """Past the window intake pauses; half empty, it resumes."""
    desk = Desk(window=10)
    desk.engine.capacity(desk.now_ms, 1)
    desk.own()
    desk.records(*(record(x) for x in range(20)))
    assert desk.asked_for(Pause) == [Pause(P0)]
    for _ in range(15):
        (start,) = desk.starts()
        desk.engine.finished(desk.now_ms, start.run_id, b"", None)
        desk.take()
        for sent in desk.results():
            desk.acknowledge(sent.send_id)
    assert desk.asked_for(Resume) == [Resume(P0)]


def test_one_record_that_never_ends_does_not_stop_the_others() -> None:
    """50,000 successes behind a stuck record: the window moves on, metadata stays within its limit."""
    desk = Desk()
    desk.own()
    for first in range(0, 50_000, 500):
        desk.records(*(record(x) for x in range(first, first + 500)))
        while starts := [start for start in desk.starts() if start.call_id != call_id(0)]:
            for start in starts:
                desk.engine.finished(desk.now_ms, start.run_id, b"", None)
            desk.take()
            for sent in desk.results():
                desk.acknowledge(sent.send_id)
        desk.after(200)
        desk.acknowledge_commits()
    desk.after(200)
    own = desk.engine._owned[P0]
    assert own.finished.base == 0
    assert own.finished.runs() == ((1, 49_999),)
    assert len(own.items) == 1


def test_every_other_record_failing_for_ever_bounds_the_metadata() -> None:
    """Gaps fill the metadata to its limit, then intake waits; when they close it goes on."""
    desk = Desk(window=100_000)
    desk.engine.capacity(desk.now_ms, 100_000)
    desk.own()
    desk.records(*(record(x) for x in range(4000)))
    stuck = []
    for _ in range(5):
        for start in desk.starts():
            if int.from_bytes(start.call_id, "big") % 2 == 0:
                stuck.append(start)
            else:
                desk.engine.finished(desk.now_ms, start.run_id, b"", None)
        desk.take()
        for sent in desk.results():
            desk.acknowledge(sent.send_id)
        desk.after(150)
        for commit in desk.acknowledge_commits():
            assert all(len(text) <= 3072 for _, text in commit.offsets.values())
    for start in stuck:
        desk.engine.finished(desk.now_ms, start.run_id, b"", None)
    desk.take()
    while True:
        starts, sends = desk.starts(), desk.results()
        if not starts and not sends:
            break
        for start in starts:
            desk.engine.finished(desk.now_ms, start.run_id, b"", None)
        for sent in sends:
            desk.acknowledge(sent.send_id)
        desk.take()
        desk.acknowledge_commits()
    desk.after(150)
    assert desk.engine._owned[P0].finished.base == 4000


def test_many_suspects_do_not_overflow_the_metadata() -> None:
    """Counts of suspects in the air fill the metadata to its limit and no further; all of them end."""
    desk = Desk(window=100_000)
    desk.engine.capacity(desk.now_ms, 100_000)
    desk.own(meta=CommitMeta(bound=3000), end=3000)
    desk.records(*(record(x) for x in range(3000)))
    ended = 0
    for _ in range(200):
        for commit in desk.acknowledge_commits():
            assert all(len(text) <= 3072 for _, text in commit.offsets.values())
        for sent in desk.results():
            desk.acknowledge(sent.send_id)
        for start in desk.starts():
            ended += 1
            desk.engine.finished(desk.now_ms, start.run_id, b"", None)
        desk.take()
        desk.after(110)
    assert ended == 3000
    assert desk.engine._owned[P0].finished.base == 3000

"""A revoke: running calls are copied to partitions that stay, the rest is handed back in good order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pelton.core.call import InputPartition
from pelton.core.decisions import InputRecord
from pelton.core.lanes import is_keyed
from pelton.core.outbox import Outbox
from pelton.core.ownership import Commits, Owned
from pelton.core.run import Item, Run, RunState

COPY_AFTER_MS: Final = 250
"""Calls that end by themselves within this time are not copied."""

REVOKE_BUDGET_MS: Final = 4000
"""After this the final commit is made whatever still waits: a callback never lasts longer than 5 s."""


@dataclass(slots=True, eq=False)
class Handover:
    """One revoke in progress.

    Attributes:
        leaving: assignments that go.
        began_ms: when it began.
        copying: copies not yet committed or given up.
        copied: whether copies were started.
        closing: the final commit was asked for; nothing is copied any more.
        done: the final commit was answered.
    """

    leaving: list[Owned]
    began_ms: int
    kept: list[Owned]
    partitions: Sequence[InputPartition]
    copying: int = 0
    copied: bool = False
    closing: bool = False
    done: bool = False
    copies: int = field(default=0)

    def turn(
        self,
        now_ms: int,
        runs: Mapping[int, Run],
        outbox: Outbox,
        commits: Commits,
        released: Callable[[Handover], None],
    ) -> None:
        """Does what can be done now: copy, wait, or make the final commit."""
        gone = not any(own.alive for own in self.leaving)
        if self.closing:
            if gone and not self.done:
                self.done = True
                released(self)
            return
        mine = set(self.leaving)
        affected = [run for run in runs.values() if any(item.own in mine for item in run.items)]
        over = gone or now_ms >= self.began_ms + REVOKE_BUDGET_MS
        if affected and not self.copied and not over and now_ms < self.began_ms + COPY_AFTER_MS:
            return
        if not self.copied and not over:
            self.copied = True
            if self.kept:
                for run in affected:
                    if run.state is RunState.RUNNING and not _stays(run):
                        for item in [item for item in run.items if item.own in mine]:
                            self._copy(item, run, outbox, commits)
        ending = any(
            run.state is RunState.CLOSING
            or (run.state is RunState.RUNNING and (not self.kept or _stays(run)))
            # Its next owner does not know when it is due, and must not run it before.
            or (run.state is RunState.BACKOFF and run.due_ms > now_ms)
            for run in affected
        )
        if (self.copying or ending) and not over:
            return
        self.closing = True
        still = [own for own in self.leaving if own.alive and own.ready]

        def answer(_acknowledged: bool) -> None:
            if not self.done:
                self.done = True
                released(self)

        if still:
            commits.ask(still, answer, leave=True)
        else:
            answer(False)

    def _copy(self, item: Item, run: Run, outbox: Outbox, commits: Commits) -> None:
        source, offset, record = item.own, item.offset, item.record
        headers = record.headers
        target = self.kept[offset % len(self.kept)]
        if headers is None:
            return
        self.copying += 1
        copy = headers._replace(
            may_have_run=max(source.counts.get(offset, 0), headers.may_have_run or 0),
            used=max(source.used.get(offset, 0), headers.used),
        )

        def usable() -> bool:
            return not self.closing and source.alive and target.alive and run.alive

        def moved(ok: bool, _offset: int) -> None:
            if not ok or not usable():
                self.copying -= 1
                return
            outbox.copy(target.partition, record, copy, copied)

        def copied(ok: bool, at: int) -> None:
            if ok and run.state is RunState.DONE and target.alive:
                # It ended meanwhile, and what it ended with is in the log: the copy has nothing left to do.
                self.copying -= 1
                target.wanted = max(target.wanted, at + 1)
                rebind(run, item, target, record._replace(offset=at, headers=copy))
                return
            if not ok or not usable() or offset not in source.items:
                # Too late: the copy then runs as a suspect of its own.
                self.copying -= 1
                return
            target.epoch = max(target.epoch, source.epoch + 1)
            target.wanted = max(target.wanted, at + 1)
            del source.items[offset]
            source.finished.add(offset)
            commits.ask((source, target), lambda acknowledged: committed(acknowledged, at))

        def committed(acknowledged: bool, at: int) -> None:
            self.copying -= 1
            if not acknowledged:
                # Only with the partitions gone: what is left of the run ends with them.
                return
            self.copies += 1
            rebind(run, item, target, record._replace(offset=at, headers=copy))

        where = f"{target.partition.topic.name.lower()}/{target.partition.partition}"
        outbox.moved(headers.call_id, run.token, where, moved)


def _stays(run: Run) -> bool:
    """Whether a run cannot go to another partition: others with its key follow it in this one."""
    return any(is_keyed(item) for item in run.items)


def rebind(run: Run, original: Item, target: Owned, copy: InputRecord) -> None:
    """Binds a committed copy to the run it was made for; the original is finished."""
    if original in run.items:
        run.items.remove(original)
    if not run.alive and run.state is not RunState.DONE:
        return
    item = target.bind(copy.offset, copy, run)
    if item is None:
        return
    if run.state is RunState.DONE:
        target.finish(item)
    else:
        run.items.insert(0, item)

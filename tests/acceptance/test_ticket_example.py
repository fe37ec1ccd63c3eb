"""The ticket example: its parts, both databases, an honest summary, and the whole demo in short form."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.embedded_broker import QUICK_JAVA
from support.postgres import postgres

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
TICKETS, DEMO = EXAMPLES / "tickets", EXAMPLES / "tickets_demo"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports modules of the example by name, as its programs do."""
    monkeypatch.syspath_prepend(str(TICKETS))
    monkeypatch.syspath_prepend(str(DEMO))
    return importlib.import_module


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path, example: Any) -> Iterator[Any]:
    """The example's database on each of the two it speaks to."""
    kind = example("database").Database
    if request.param == "sqlite":
        yield kind(None, str(tmp_path / "tickets.sqlite3"))
    else:
        with postgres(tmp_path / "postgres") as url:
            yield kind(url, "")


def test_the_tickets_are_many_and_unknown_to_the_worker(example: Any) -> None:
    """Many distinct texts in 5 categories, none a training example; no category lies in the bundle."""
    tickets = example("source").make_tickets(3000)
    examples = example("training").EXAMPLES
    assert len({ticket.text for ticket in tickets}) >= 150
    assert set(Counter(ticket.category for ticket in tickets)) == set(examples)
    assert len(examples) == 5
    learned = {text.lower().rstrip(".?!") for texts in examples.values() for text in texts}
    assert not [ticket for ticket in tickets if any(text in ticket.text.lower() for text in learned)]
    assert not list(TICKETS.rglob("source.py"))


def test_the_classifier_labels_from_the_text_alone(example: Any) -> None:
    """Trained on its examples it is right for at least eight of ten tickets it never saw."""
    classifier = example("model").train()
    tickets = example("source").make_tickets(300)
    right = sum(classifier.label(ticket.text) == ticket.category for ticket in tickets)
    assert right / len(tickets) >= 0.8


def test_every_attempt_and_label_is_a_row(database: Any, example: Any) -> None:
    """Both databases, written from several threads, tell what began and what ended."""
    makers = [threading.Thread(target=database.create) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()

    def work(number: int) -> None:
        database.begin(f"T{number}", f"call{number}", 1)
        if number % 2:
            database.finish(f"T{number}", "text", "billing", f"call{number}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    ledger = example("ledger").Ledger(database)
    assert ledger.labelled() == 4
    assert ledger.in_flight([os.getpid()]) == 4
    assert ledger.in_flight([0]) == 0
    assert sum(ledger.executions().values()) == 8


class FakeLedger:
    """A ledger with four tickets, all of them well, to be spoiled by a test."""

    def __init__(self, tickets: list[Any]) -> None:
        self.at = {ticket.id: (ticket.category, 2.0) for ticket in tickets}
        self.began = Counter({ticket.id: 1 for ticket in tickets})
        self.began[tickets[0].id] = 2
        self.call = {f"c-{ticket.id}": ticket.id for ticket in tickets}

    def mislabel(self) -> None:
        """All labels are wrong."""
        self.at = dict.fromkeys(self.at, ("none", 2.0))

    def labels(self) -> dict[str, tuple[str, float]]:
        """Labels."""
        return self.at

    def executions(self) -> Counter[str]:
        """Attempts."""
        return self.began

    def calls(self) -> dict[str, str]:
        """Calls."""
        return self.call


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda ledger, outcomes, commits: None, None),
        (lambda ledger, outcomes, commits: ledger.at.pop("T00001"), "lost"),
        (lambda ledger, outcomes, commits: outcomes.pop("c-T00002"), "never ended"),
        (lambda ledger, outcomes, commits: outcomes.update({"c-T00002": "UNAVAILABLE"}), "lost"),
        (lambda ledger, outcomes, commits: ledger.began.update({"T00000": -1}), "proved nothing"),
        (lambda ledger, outcomes, commits: ledger.mislabel(), "accuracy"),
        (lambda ledger, outcomes, commits: commits.append((1, 3, 4)), "not the end offset"),
    ],
)
def test_the_summary_is_honest(spoil: Any, word: str | None, example: Any) -> None:
    """Each thing the demo promises is noticed when it is not true."""
    tickets = example("source").make_tickets(4)
    ledger, commits = FakeLedger(tickets), [(0, 4, 4)]
    outcomes = dict.fromkeys(ledger.call, "ok")
    spoil(ledger, outcomes, commits)
    kill = example("faults").Kill("executor", 1, 1)
    produced = {ticket.id: 1.0 for ticket in tickets}
    problems = example("demo").summarise(tickets, produced, ledger, outcomes, commits, [kill])
    if word is None:
        assert problems == []
    else:
        assert any(word in problem for problem in problems), problems


@pytest.mark.timeout(400)
def test_the_demo_in_short_form(tmp_path: Path) -> None:
    """From `pelton up` to a checked summary with two kills; nothing is lost and nothing left behind."""
    ended = subprocess.run(
        [sys.executable, str(DEMO / "demo.py"), "--tickets", "1000", "--limit", "300"],
        env={**os.environ, "PELTON_JAVA_FLAGS": " ".join(QUICK_JAVA)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "all true" in ended.stdout
    assert ended.stdout.count("with SIGKILL") == 2

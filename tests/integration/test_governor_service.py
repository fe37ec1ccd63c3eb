"""The governor as real processes: several share the limits, and these hold whoever is killed or frozen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.core.limits import RateSpec, interval_us_of
from pelton_platform.boottime import boot_ms
from pelton_platform.deploy.home import Home
from pelton_platform.deploy.settings import DeployerSettings
from support import lease_holder
from support.embedded_broker import Broker
from support.worker_instance import Platform, platform_on, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

KEY = "concurrency/f"
RATE_KEY = "rate/f"


class Fleet:
    """Governors and holders of one namespace."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self.platform, self.folder = platform, folder
        self.settings = folder / "governor.json"
        told = DeployerSettings(Home(folder), platform.config, {}, 0, 0)
        self.settings.write_text(json.dumps(told.to_json()))
        self.log = folder / "governor.log"
        self.children: list[subprocess.Popen[bytes]] = []
        self.killed_ms: dict[str, int] = {}

    def governor(self) -> subprocess.Popen[bytes]:
        """One more governor."""
        return self._start(
            [sys.executable, "-m", "pelton_platform.governor", "--settings", str(self.settings)]
        )

    def holder(
        self,
        name: str,
        limit: int,
        workers: int,
        lasts_s: tuple[float, float] = (0.002, 0.03),
        *,
        interval_us: int = 0,
    ) -> subprocess.Popen[bytes]:
        """One more holder."""
        path = self.folder / f"{name}.json"
        config = self.platform.config
        path.write_text(
            json.dumps(
                {
                    "servers": config.bootstrap_servers,
                    "namespace": config.namespace,
                    "instance": name,
                    "journal": str(self.journal(name)),
                    "key": RATE_KEY if interval_us else KEY,
                    "interval_us": interval_us,
                    "limit": limit,
                    "workers": workers,
                    "lasts_s": lasts_s,
                }
            )
        )
        return self._start([sys.executable, lease_holder.__file__, str(path)])

    def journal(self, name: str) -> Path:
        """What a holder wrote."""
        return self.folder / f"{name}.journal"

    def kill(self, name: str, child: subprocess.Popen[bytes]) -> None:
        """Ends a holder in the middle."""
        child.kill()
        child.wait(10)
        self.killed_ms[name] = boot_ms()

    def spans(self, name: str) -> list[tuple[int, int]]:
        """When attempts of a holder ran."""
        begun: dict[str, int] = {}
        found: list[tuple[int, int]] = []
        path = self.journal(name)
        for line in path.read_text().splitlines() if path.exists() else ():
            what, at, number = line.split()
            if what == "start":
                begun[number] = int(at)
            elif what == "end":
                found.append((begun.pop(number), int(at)))
        return found + [(at, self.killed_ms.get(name, boot_ms())) for at in begun.values()]

    def most_at_once(self, *names: str) -> int:
        """The most attempts that ran at one time, of all holders."""
        events = [(at, step) for name in names for span in self.spans(name) for at, step in _steps(span)]
        running = most = 0
        for _, step in sorted(events):
            running += step
            most = max(most, running)
        return most

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        root = Path(__file__).parents[1]
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(root)},
            )
        self.children.append(child)
        return child

    def close(self) -> None:
        """Ends all."""
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGCONT)
            child.kill()
            child.wait(10)


def _steps(span: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    # At one millisecond ends come first.
    return (span[0], 1), (span[1], -1)


@pytest.fixture
def fleet(broker: Broker, tmp_path: Path) -> Iterator[Fleet]:
    """A namespace without any process."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        found = Fleet(platform, tmp_path)
        yield found
        found.close()


def test_limit_holds_over_kills_freezes_and_takeovers(fleet: Fleet) -> None:
    """Three holders, one limit of three: never more at once, and each is served after each fault."""
    names = ("a", "b", "c")
    first, second = fleet.governor(), fleet.governor()
    holders = {name: fleet.holder(name, 3, 3) for name in names}

    def served(name: str, since_ms: int, count: int = 10) -> bool:
        return sum(begun > since_ms for begun, _ in fleet.spans(name)) >= count

    def all_served(*who: str) -> None:
        since_ms = boot_ms()
        wait_until(lambda: all(served(name, since_ms) for name in who), 30, f"attempts of {who}")

    all_served(*names)
    first.kill()
    first.wait(10)
    all_served(*names)
    third = fleet.governor()
    fleet.kill("c", holders["c"])
    all_served("a", "b")
    second.send_signal(signal.SIGSTOP)
    since_ms = boot_ms()
    wait_until(lambda: third.poll() is None and boot_ms() - since_ms > 7_000, 20, "the session is over")
    all_served("a", "b")
    second.send_signal(signal.SIGCONT)
    all_served("a", "b")
    most = fleet.most_at_once(*names)
    assert most == 3, f"{most} attempts ran at once, 3 were allowed"
    for name in ("a", "b"):
        holders[name].send_signal(signal.SIGTERM)
        assert holders[name].wait(15) == 0


def test_slots_of_a_killed_holder_are_free_in_ten_seconds(fleet: Fleet) -> None:
    """Nobody says that it is gone: its lease ends, not before its time, and the other one is served."""
    fleet.governor()
    first = fleet.holder("a", 1, 1, (60.0, 61.0))
    wait_until(lambda: bool(fleet.spans("a")), 30, "an attempt that does not end")
    second = fleet.holder("b", 1, 1)
    fleet.kill("a", first)
    wait_until(lambda: bool(fleet.spans("b")), 30, "its slot")
    assert 5_000 < fleet.spans("b")[0][0] - fleet.killed_ms["a"] <= 10_000
    assert fleet.most_at_once("a", "b") == 1
    assert second.poll() is None


def test_holder_that_leaves_gives_its_slots_back(fleet: Fleet) -> None:
    """In good order nobody waits for a lease to end."""
    fleet.governor()
    first = fleet.holder("a", 1, 1, (0.2, 0.3))
    wait_until(lambda: len(fleet.spans("a")) > 1, 30, "attempts of the first holder")
    first.send_signal(signal.SIGTERM)
    assert first.wait(15) == 0
    ended_ms = boot_ms()
    fleet.holder("b", 1, 1)
    wait_until(lambda: len(fleet.spans("b")) > 1, 30, "the other one")
    assert fleet.spans("b")[0][0] - ended_ms < 5_000


def test_rate_holds_over_a_takeover_and_is_shared(fleet: Fleet) -> None:
    """Starts in any window stay within burst + rate x time, both holders get their part, and most is used."""
    spec = RateSpec(rate=40, per_ms=1000, burst=10)
    interval_us = interval_us_of(spec)
    governor = fleet.governor()
    names = ("a", "b")
    for name in names:
        fleet.holder(name, spec.burst, 8, interval_us=interval_us)

    def starts(*who: str) -> list[int]:
        return sorted(begun for name in who for begun, _ in fleet.spans(name))

    wait_until(lambda: all(len(starts(name)) > 60 for name in names), 40, "starts of both")
    governor.kill()
    governor.wait(10)
    fleet.governor()
    since_ms = boot_ms()
    wait_until(
        lambda: all(sum(at > since_ms + 1_000 for at in starts(name)) > 60 for name in names),
        40,
        "starts of both after the takeover",
    )
    found = starts(*names)
    for first, begun_ms in enumerate(found):
        for last in range(first, min(len(found), first + 100)):
            seconds = (found[last] - begun_ms) / 1000
            assert last - first + 1 <= spec.burst + spec.rate * seconds + 0.1, (first, last, seconds)
    steady = [at for at in found if found[0] + 500 < at < found[0] + 1_500]
    assert len(steady) > 0.6 * spec.rate, f"{len(steady)} starts in a second, {spec.rate} were allowed"
    each = [len(starts(name)) for name in names]
    assert min(each) > 0.6 * max(each), each

"""The cron service as real processes: several share the timers, and survive kills, freezes and each other."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.core.call import Timer
from pelton.core.spec import FunctionKind
from pelton.protocol.codec import encode_timer
from pelton.protocol.topics import Control, timer_key
from pelton_platform.deploy.home import Home
from pelton_platform.deploy.settings import DeployerSettings
from support.embedded_broker import Broker
from support.worker_instance import Platform, platform_on, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

COUNT = 400


class Services:
    """Cron services of one namespace."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self.settings = folder / "cron.json"
        told = DeployerSettings(Home(folder), platform.config, {}, 0, 0)
        self.settings.write_text(json.dumps(told.to_json()))
        self.log = folder / "cron.log"
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """One more."""
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "pelton_platform.cron", "--settings", str(self.settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
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


@pytest.fixture
def platform(broker: Broker, tmp_path: Path) -> Iterator[Platform]:
    """A namespace of its own with the topics of a function, and nobody who takes its records."""
    with platform_on(broker.bootstrap_servers, tmp_path) as platform:
        platform.deploy("def f(): pass", {"f": FunctionKind.SYNC})
        yield platform


@pytest.fixture
def services(platform: Platform, tmp_path: Path) -> Iterator[Services]:
    """No service yet."""
    found = Services(platform, tmp_path)
    yield found
    found.close()


def write_timers(platform: Platform, due_ms: list[int]) -> None:
    """Writes one timer for each time; its body is its number."""
    topic = platform.topics.control(Control.TIMERS)
    for number, due in enumerate(due_ms):
        timer = Timer(
            due, platform.topics.retries("f"), number % 4, str(number).encode(), None, (("n", b"x"),)
        )
        platform.send(topic, encode_timer(timer), timer_key(number.to_bytes(16, "big"), 2))


def fired(platform: Platform) -> dict[int, list[int]]:
    """When which timers were fired."""
    found: dict[int, list[int]] = {}
    for record in platform.read(platform.topics.retries("f")):
        found.setdefault(int(record.value or b""), []).append(record.appended_ms)
    return found


def left(platform: Platform) -> int:
    """Timers without a tombstone."""
    newest: dict[bytes, bool] = {}
    for record in platform.read(platform.topics.control(Control.TIMERS)):
        newest[record.key or b""] = record.value is not None
    return sum(newest.values())


def test_timers_survive_kills_freezes_and_takeovers(platform: Platform, services: Services) -> None:
    """Each is fired, none much before it is due, few twice, and all are removed in the end."""
    rng = random.Random(11)
    first, second = services.start(), services.start()
    began_ms = time.time_ns() // 1_000_000
    due = [began_ms + rng.randrange(2_000, 26_000) for _ in range(COUNT)]
    write_timers(platform, due)
    wait_until(lambda: len(fired(platform)) > 20, 60, "the first timers")
    first.kill()
    first.wait(10)
    third = services.start()
    wait_until(lambda: len(fired(platform)) > COUNT // 3, 60, "a third of the timers")
    second.send_signal(signal.SIGSTOP)
    wait_until(lambda: len(fired(platform)) == COUNT, 60, "all timers")
    second.send_signal(signal.SIGCONT)
    wait_until(lambda: left(platform) == 0, 60, "no timer is left")
    found = fired(platform)
    early = [number for number, at in found.items() if min(at) < due[number] - 1_100]
    assert early == []
    # Who is killed or frozen between appending and removing leaves what it took at once.
    again = Counter(len(at) for at in found.values())
    assert max(again) <= 3, again
    assert again[1] >= COUNT * 0.3, again
    assert third.poll() is None
    assert second.poll() is None, services.log.read_text()[-2000:]


def test_timers_of_a_quiet_service_are_fired_in_time(platform: Platform, services: Services) -> None:
    """A second before they are due, when nothing else goes on; by whoever starts later, too."""
    services.start()
    began_ms = time.time_ns() // 1_000_000
    due = [began_ms + 12_000 + 100 * number for number in range(20)]
    write_timers(platform, due)
    wait_until(lambda: len(fired(platform)) == 20, 60, "all timers")
    late = [at[0] - due[number] for number, at in fired(platform).items()]
    assert all(-1_100 <= each <= 0 for each in late), late

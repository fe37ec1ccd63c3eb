"""Functions scaled by real calls: from none and back, under long calls, beside one that never ends."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import pelton
from pelton.client.futures import CallFuture
from pelton.client.session import close
from support.local_platform import LocalPlatform, local_platform, wait_for

# Processes of a whole platform start and stop here, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)

FUNCTIONS = """
    import os, time, pelton

    LEDGER = {ledger!r}

    @pelton.function(max_instances=6)
    def held(seconds: float) -> str:
        call = pelton.context()
        with open(os.path.join(LEDGER, call.call_id), "a") as file:
            file.write(f"{{call.attempt}} {{call.delivery}} {{os.getpid()}}\\n")
        time.sleep(seconds)
        return call.call_id

    @pelton.function
    def quick(number: int) -> int:
        return number + 1

    @pelton.function(max_instances=4)
    def maybe(gate: str) -> str:
        with open(os.path.join(LEDGER, pelton.context().call_id), "a") as file:
            file.write("began\\n")
        while gate and os.path.exists(gate):
            time.sleep(0.02)
        return gate
"""

LONG_S = 10.0


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which attempts are written down, one file for each call."""
    return tmp_path_factory.mktemp("ledger")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, ledger: Path) -> Iterator[LocalPlatform]:
    """One platform whose instances leave soon, and this process as its caller."""
    settings = {"PELTON_KEEP_WARM": "2s", "PELTON_COOL_DOWN": "1s", "PELTON_DRAIN": "5s"}
    with local_platform(tmp_path_factory.mktemp("scaling"), settings) as running:
        running.deploy("app.py", FUNCTIONS.format(ledger=str(ledger)))
        before = os.environ.get("PELTON_HOME")
        os.environ["PELTON_HOME"] = str(running.home.root)
        try:
            yield running
        finally:
            close()
            if before is None:
                del os.environ["PELTON_HOME"]
            else:
                os.environ["PELTON_HOME"] = before


def test_first_call_after_zero_is_soon_answered(platform: LocalPlatform) -> None:
    """From no instance to an answer within 2 s, each time after a clean leave."""
    quick = pelton.function_ref("quick")
    assert quick(1) == 2
    took = []
    for number in range(3):
        wait_for(
            lambda: platform.instances("quick") == [], "the leave of the last instance", 60, platform.logs
        )
        began = time.monotonic()
        assert quick(number) == number + 1
        took.append(time.monotonic() - began)
    # On a machine that does something else besides, the fastest shows what the platform needs.
    assert min(took) <= 2.0, took


def test_scale_out_starts_no_running_call_again(platform: LocalPlatform, ledger: Path) -> None:
    """Calls that run longer than the drain time stay where they are while instances join: none runs twice."""
    held = pelton.function_ref("held")
    calls: list[CallFuture[str]] = []
    for wanted in (1, 3, 6):
        while len(calls) < wanted:
            calls.append(held.async_call(LONG_S))
        wait_for(lambda: len(platform.ready("held")) >= wanted, f"{wanted} instances", 60, platform.logs)  # noqa: B023
    ids = [call.result(timeout=120) for call in calls]
    attempts = Counter({call: len((ledger / call).read_text().splitlines()) for call in ids})
    assert set(attempts.values()) == {1}, attempts


def test_call_that_never_ends_holds_one_instance(
    platform: LocalPlatform, ledger: Path, tmp_path: Path
) -> None:
    """Instances beside it leave when they are not needed, it keeps its own, and runs once."""
    maybe, stuck = pelton.function_ref("maybe"), tmp_path / "stuck"
    stuck.touch()
    forever = maybe.async_call(str(stuck))
    attempts = ledger / forever.call_id
    wait_for(attempts.exists, "the call that never ends", 60, platform.logs)
    platform.run("scale", "maybe", "3")
    platform.run("scale", "maybe", "auto", "--no-wait")
    wait_for(lambda: len(platform.instances("maybe")) == 1, "one instance alone", 60, platform.logs)
    assert not forever.done()
    assert platform.ready("maybe"), "it does not drain"
    stuck.unlink()
    assert forever.result(timeout=60) == str(stuck)
    assert len(attempts.read_text().splitlines()) == 1

"""Fleets for longer: a hundred deploys in a row, and scale-outs under calls of a minute."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import pelton
from pelton.client.futures import CallFuture
from pelton.client.session import close
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from pelton_platform.deploy.bundles import KEPT_UNUSED
from support.local_platform import LocalPlatform, local_platform, wait_for

pytestmark = [pytest.mark.chaos_long, pytest.mark.timeout(1_200)]

SOURCE = """
    import os, time, pelton

    @pelton.function(max_instances=6)
    def held(seconds: float) -> str:
        call = pelton.context()
        with open(os.path.join({ledger!r}, call.call_id), "a") as file:
            file.write("began\\n")
        time.sleep(seconds)
        return call.call_id

    REVISION = {revision}
"""
DEPLOYS, LONG_S = 100, 60.0


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[LocalPlatform]:
    """A platform, and this process as its caller."""
    settings = {"PELTON_KEEP_WARM": "5s", "PELTON_COOL_DOWN": "2s", "PELTON_DRAIN": "10s"}
    with local_platform(tmp_path, settings) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELTON_HOME", str(running.home.root))
        try:
            yield running
        finally:
            close()


def source(tmp_path: Path, revision: int) -> str:
    """The program, another one for each revision."""
    ledger = tmp_path / "ledger"
    ledger.mkdir(exist_ok=True)
    return SOURCE.format(ledger=str(ledger), revision=revision)


def test_a_hundred_deploys_leave_nothing_behind(platform: LocalPlatform, tmp_path: Path) -> None:
    """No process, descriptor, folder or topic stays of versions that were replaced; each answered a call."""
    state = platform.state()
    admin = Admin(ConnectionConfig(state.bootstrap_servers, state.namespace))
    held = pelton.function_ref("held")

    def count() -> tuple[int, int, int, int]:
        platform.deploy("app.py", source(tmp_path, 0))
        held(0.0)
        wait_for(lambda: platform.instances("held") == [], "rest", 120, platform.logs)
        pids = (platform.state().deployer_pid, platform.state().supervisor.pid)
        return (
            len(platform.processes()),
            sum(psutil.Process(pid).num_fds() for pid in pids),
            len(admin.topics()),
            len(list(platform.home.instances.iterdir())),
        )

    before = count()
    for revision in range(1, DEPLOYS + 1):
        report = platform.deploy("app.py", source(tmp_path, revision))
        assert report["changed"]
        if revision % 10 == 0:
            held(0.0)
    after = count()
    assert (after[0], *after[2:]) == (before[0], *before[2:])
    assert after[1] <= before[1] + 3
    folders = [path for path in platform.home.bundles.iterdir() if path.is_dir()]
    assert len(folders) <= KEPT_UNUSED + 1
    assert not list(platform.home.root.rglob(".draft-*"))
    admin.close()


def test_scale_outs_under_calls_of_a_minute(platform: LocalPlatform, tmp_path: Path) -> None:
    """Three scale-outs while calls run for longer than any drain time: none of them runs again."""
    platform.deploy("app.py", source(tmp_path, 0))
    held = pelton.function_ref("held")
    calls: list[CallFuture[str]] = []
    for wanted in (1, 2, 4, 6):
        while len(calls) < wanted:
            calls.append(held.async_call(LONG_S))
        wait_for(lambda: len(platform.ready("held")) >= wanted, f"{wanted} instances", 120, platform.logs)  # noqa: B023
    ids = [call.result(timeout=600) for call in calls]
    ledger = tmp_path / "ledger"
    attempts = Counter(len((ledger / call).read_text().splitlines()) for call in ids)
    assert attempts == {1: len(calls)}
    assert len(os.listdir(ledger)) == len(calls)

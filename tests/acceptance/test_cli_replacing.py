"""Functions that are replaced, grown and deleted while calls are made, as people do it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from pelton.protocol.topics import TopicPlan
from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from support.interpreters import bare_environment
from support.local_platform import LocalPlatform, local_platform, wait_for

# Processes of a whole platform start and stop here, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)

HELD = """
    import os, time, pelton

    @pelton.function(max_instances={instances}, max_concurrent_requests=4{more})
    def held({signature}):
        while os.path.exists({gate!r}):
            time.sleep(0.02)
        return {result}
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """One platform for the module that stops idle instances soon."""
    settings = {"PELTON_KEEP_WARM": "2s", "PELTON_DRAIN": "20s"}
    with local_platform(tmp_path_factory.mktemp("replacing"), settings) as running:
        yield running


def source(
    platform: LocalPlatform, signature: str, result: str, *, instances: int = 1, more: str = ""
) -> str:
    """A function whose calls end when a file is gone."""
    gate = str(platform.work / "gate")
    return HELD.format(signature=signature, result=result, gate=gate, instances=instances, more=more)


def admin_of(platform: LocalPlatform) -> Admin:
    """To the broker of the platform."""
    state = platform.state()
    return Admin(ConnectionConfig(state.bootstrap_servers, state.namespace))


def value_of(platform: LocalPlatform, call: str) -> str:
    """What a call gives in the end."""
    return wait_for(lambda: platform.run("calls", "result", call, code=None).stdout, f"the end of {call}", 60)


def test_signature_that_does_not_fit_waiting_calls_is_refused(platform: LocalPlatform) -> None:
    """One that fits is taken at once; the other waits for their end, or is forced."""
    gate = platform.work / "gate"
    gate.touch()
    platform.deploy("held.py", source(platform, "a", "a"))
    call = platform.run("call", "held", "1", "--submit").stdout.strip()
    platform.await_state(call, "running")
    platform.deploy("held.py", source(platform, "a, b=2", "[a, b]"))
    file = str(platform.write("held/held.py", source(platform, "a, b", "[a, b]")))
    refused = platform.run("deploy", file, code=1).stderr
    assert "1 calls of function 'held' have no end yet" in refused
    assert "the parameter 'b' is required now" in refused
    gate.unlink()
    assert value_of(platform, call) == "1\n"
    assert platform.json("deploy", file)["changed"]
    assert platform.json("call", "held", "1", "2")["value"] == [1, 2]
    platform.write("held/held.py", source(platform, "c", "c"))
    assert platform.json("deploy", file, "--force")["changed"]


def test_function_grows_with_its_instances(platform: LocalPlatform) -> None:
    """More instances than partitions: the topic gets more, waiting calls stay; not with key order."""
    gate = platform.work / "gate"
    gate.touch()
    platform.deploy("held.py", source(platform, "a", "a"))
    waiting = [platform.run("call", "held", str(n), "--submit").stdout.strip() for n in range(6)]
    platform.deploy("held.py", source(platform, "a", "a", instances=12))
    admin = admin_of(platform)
    try:
        assert admin.topics()[f"{platform.state().namespace}.fn.held.invocations"] == 12
    finally:
        admin.close()
    gate.unlink()
    more = [platform.run("call", "held", str(n), "--submit").stdout.strip() for n in range(6, 18)]
    values = sorted(int(value_of(platform, call)) for call in [*waiting, *more])
    assert values == list(range(18))
    ordered = source(platform, "a", "a", more=', ordering="key", name="ordered"')
    platform.deploy("ordered.py", ordered)
    grown = source(platform, "a", "a", instances=12, more=', ordering="key", name="ordered"')
    refused = platform.run("deploy", str(platform.write("ordered/ordered.py", grown)), code=1).stderr
    assert "more partitions would bring calls of one key out of order" in refused


def test_delete_shows_what_waits(platform: LocalPlatform) -> None:
    """Refused while calls wait; kept calls go on after the next deploy; forced ones go with their topics."""
    gate = platform.work / "gate"
    gate.touch()
    code = source(platform, "a", "a", more=', name="doomed"')
    platform.deploy("doomed.py", code)
    first = platform.run("call", "doomed", "1", "--submit").stdout.strip()
    platform.await_state(first, "running")
    second = platform.run("call", "doomed", "2", "--submit").stdout.strip()
    refused = platform.run("delete", "doomed", code=1).stderr
    assert "2 calls of doomed have no end yet" in refused
    assert "--keep-calls leaves them" in refused
    planned = platform.json("delete", "doomed", "--dry-run")
    assert (planned["waiting"], planned["dry_run"], planned["topics"]) == ({"doomed": 2}, True, [])
    deleting = platform.start("delete", "doomed", "--keep-calls", "--json")
    gate.unlink()
    told, complaint = deleting.communicate(timeout=90)
    assert deleting.returncode == 0, complaint
    assert '"topics": []' in told
    assert "doomed" not in {row["name"] for row in platform.json("functions")}
    platform.deploy("doomed.py", code)
    for call, value in ((first, "1\n"), (second, "2\n")):
        assert value_of(platform, call) == value
    deleted = platform.json("delete", "doomed", "--force")
    assert len(deleted["topics"]) == 4
    admin = admin_of(platform)
    try:
        assert not [name for name in admin.topics() if ".fn.doomed." in name]
    finally:
        admin.close()
    assert not [row for row in platform.json("ps") if row["container"] == "doomed"]
    unknown = platform.run("delete", "doomed", code=1).stderr
    assert "neither a function nor a container is named doomed" in unknown
    platform.deploy("doomed.py", code)
    assert platform.run("call", "doomed", "3").stdout == "3\n"


def test_deploy_of_several_files(platform: LocalPlatform) -> None:
    """A folder, and what a pelton.toml lists; a fault in one file leaves the others as they are."""
    one = """
        import pelton
        @pelton.function
        def {name}() -> str:
            return "{name}"
    """
    for name in ("north", "south"):
        platform.write(f"several/{name}.py", one.format(name=name))
    platform.write("several/words.py", "WORD = 1\n")
    folder = platform.work / "several"
    report = platform.json("deploy", str(folder))
    assert [entry["changes"][0]["name"] for entry in report["files"]] == ["north", "south"]
    assert platform.run("call", "south").stdout == "south\n"
    platform.write("several/south.py", one.format(name="changed"))
    platform.write("several/west.py", "print(1 / 0)\n")
    failed = platform.run("deploy", str(folder), code=1)
    assert "ZeroDivisionError" in failed.stderr
    assert "changed" not in {row["name"] for row in platform.json("functions")}
    (folder / "pelton.toml").write_text('deploy = ["north.py"]\n')
    listed = platform.json("deploy", str(folder))
    assert [entry["changes"][0]["name"] for entry in listed["files"]] == ["north"]


CALLER = """
import sys, time, threading
from pelton import function_ref
answer = function_ref("answer")
answer.wait_ready()
futures, over = [], threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
print("calling", flush=True)
while not over.is_set():
    futures.append(answer.async_call(len(futures)))
    time.sleep(0.005)
found = [future.result(60) for future in futures]
assert [number for number, _ in found] == list(range(len(futures)))
print(len(futures), *sorted({version for _, version in found}))
"""
ANSWER = """
    import time, pelton
    @pelton.function(min_instances=2, max_instances=3, max_concurrent_requests=8)
    def answer(number: int) -> tuple[int, int]:
        time.sleep(0.01)
        return number, {version}
"""


def test_redeploys_under_calls_lose_and_fail_none(platform: LocalPlatform) -> None:
    """About 150 calls a second, two new versions and a killed instance: each call has its value."""
    platform.deploy("answer.py", ANSWER.format(version=1))
    caller = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CALLER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=bare_environment() | {"PELTON_HOME": str(platform.home.root), "PATH": os.environ["PATH"]},
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == "calling\n"

    def rolled(version: int) -> bool:
        found: list[dict[str, Any]] = platform.instances("answer")
        return len(platform.ready("answer")) >= 2 and {one["version"] for one in found} == {version}

    for version in (2, 3):
        platform.deploy("answer.py", ANSWER.format(version=version))
        wait_for(partial(rolled, version), f"version {version} alone runs", 60)
    platform.kill(int(platform.ready("answer")[0]["pid"]))
    wait_for(lambda: len(platform.ready("answer")) >= 2, "the killed instance is replaced", 60)
    told, complaint = caller.communicate(timeout=90)
    assert caller.returncode == 0, complaint
    count, *versions = told.split()
    assert int(count) > 300
    assert versions == ["1", "2", "3"]


def test_plan_of_a_topic_is_what_growing_leaves(platform: LocalPlatform) -> None:
    """Growing changes nothing but the number of partitions, and growing again nothing at all."""
    admin = admin_of(platform)
    try:
        admin.create_topics([TopicPlan("grown", 2, 1)])
        for _ in range(2):
            admin.grow_topics({"grown": 5})
            assert admin.topics()["grown"] == 5
        admin.grow_topics({"grown": 3})
        assert admin.topics()["grown"] == 5
    finally:
        admin.close()

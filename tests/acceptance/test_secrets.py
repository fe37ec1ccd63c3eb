"""Secrets as people use them, and canaries: no value of theirs is anywhere but where it belongs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pelton.transport.config import ConnectionConfig
from pelton.transport.kafka.admin import Admin
from support.local_platform import PELTON, LocalPlatform, local_platform, wait_for

# Processes of a whole platform start and stop here, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)

STORED = "canary-stored-9f31c2"
PIPED = "canary-piped-77aa01 with 'quotes'"
KEY = "-----BEGIN CANARY-----\ncanary-line-one-5522\ncanary-line-two-8844\n-----END CANARY-----"
CAPTURED = "canary-captured-c0ffee"
MARKS = [b"canary-"]

WORKER = """
    import hashlib, logging, os, sys
    import pelton

    SECRETS = [
        pelton.Secret(name="stored"),
        pelton.Secret(name="piped", env="OTHER"),
        pelton.Secret(name="key"),
        pelton.Secret.from_env("CAPTURED"),
    ]
    box = pelton.Container(name="box", secrets=SECRETS)
    NAMES = ("STORED", "OTHER", "KEY", "CAPTURED")
    every = [os.environ.get(name, "") for name in NAMES]
    if "STORED" in os.environ:
        print("while loading:", every)
    else:
        print("while it is deployed")

    @pelton.function(container=box)
    def digests() -> list[str]:
        return [hashlib.sha256(os.environ[name].encode()).hexdigest() for name in NAMES]

    @pelton.function(container=box)
    def leak(how: str) -> str:
        value = "; ".join(every)
        print("printed", every, value)
        sys.stderr.write(f"on stderr {value}\\n")
        os.write(2, f"raw {value}\\n".encode())
        logging.warning("logged %s", value)
        pelton.logger.info("fields", value=value)
        if how == "raise":
            raise ValueError(f"raised with {value} {every!r}")
        if how == "crash":
            os.write(2, f"last words {value}\\n".encode())
            os._exit(9)
        return "leaked"

    pelton.Container(name="speaker", secrets=SECRETS, entrypoint=["python", "speaker.py"]).run()
"""
SPEAKER = """
    import os, signal, sys
    for name in ("STORED", "OTHER", "KEY", "CAPTURED"):
        print(name, os.environ[name], repr(os.environ[name]), flush=True)
        print(os.environ[name], file=sys.stderr, flush=True)
    print("spoken", flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """One platform for the module."""
    with local_platform(tmp_path_factory.mktemp("secrets"), {"PELTON_DRAIN": "5s"}) as running:
        yield running


def piped(platform: LocalPlatform, name: str, value: str) -> None:
    """`pelton secret set NAME -`, with the value on standard input."""
    import subprocess

    done = subprocess.run(
        [PELTON, "secret", "set", name, "-"],
        env=platform.env,
        input=value + "\n",
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


def test_secrets_leak_nowhere(platform: LocalPlatform, tmp_path: Path) -> None:
    """Printed, logged, raised, in a crash, by both kinds: no hit in topics, files and processes."""
    platform.run("secret", "set", "stored", "--from-env", "GIVEN", env={"GIVEN": STORED})
    piped(platform, "piped", PIPED)
    (tmp_path / "key.pem").write_text(KEY + "\n")
    platform.run("secret", "set", "key", "--from-file", str(tmp_path / "key.pem"))
    platform.write("worker/speaker.py", SPEAKER)
    report = platform.deploy("worker.py", WORKER, env={"CAPTURED": CAPTURED})
    # What the functions saw is what was stored.
    expected = [hashlib.sha256(value.encode()).hexdigest() for value in (STORED, PIPED, KEY, CAPTURED)]
    assert platform.json("call", "digests")["value"] == expected
    assert platform.run("call", "leak", "print").stdout == "leaked\n"
    raised = platform.run("call", "leak", "raise", code=1)
    assert "ValueError: raised with [secret STORED]; [secret OTHER]" in raised.stderr
    crashed = platform.run("call", "leak", "crash", code=1)
    said = [platform.run("logs", name).stdout for name in ("leak", "speaker")]
    wait_for(lambda: "spoken" in platform.run("logs", "speaker").stdout, "the program has spoken", 60)
    for text in said:
        assert "[secret STORED]" in text
    assert "[secret KEY]" in said[0]
    told = [json.dumps(report), raised.stderr, crashed.stderr, *said]
    told += [platform.run(*words).stdout for words in (("ps", "--json"), ("calls", "ls", "--json"))]
    assert not [text for text in told if "canary-" in text]
    assert hits_in_topics(platform) == []
    assert hits_in_files(platform) == []
    assert hits_in_processes() == []


def hits_in_topics(platform: LocalPlatform) -> list[str]:
    """Topics with a record that has a value in it, read from the segments as they lie on the disk."""
    state = json.loads(platform.home.context_file.read_text())
    admin = Admin(ConnectionConfig(state["bootstrap_servers"], state["namespace"]))
    try:
        assert len(admin.topics()) > 10
    finally:
        admin.close()
    segments = list((platform.home.broker / "records").glob("*/*.log"))
    assert segments
    return [str(path) for path in segments if any(mark in path.read_bytes() for mark in MARKS)]


def hits_in_files(platform: LocalPlatform) -> list[str]:
    """Files of the home folder with a value in them, those of running instances too."""
    files = [path for path in platform.home.root.rglob("*") if path.is_file()]
    assert any(path.name == "instance.json" for path in files)
    assert any(path.suffix == ".log" and b"[secret" in path.read_bytes() for path in files)
    return [str(path) for path in files if any(mark in path.read_bytes() for mark in MARKS)]


def hits_in_processes() -> list[str]:
    """Processes that show a value in their command line, which all users can see."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        words = " ".join(one.info["cmdline"] or ())
        if any(mark.decode() in words for mark in MARKS):
            found.append(words)
    return found


def test_secret_commands(platform: LocalPlatform) -> None:
    """Listed without values, kept while used, rotated under running containers; a missing one is named."""
    rows = {row["name"]: row for row in platform.json("secret", "ls")}
    assert set(rows) == {"stored", "piped", "key"}
    assert rows["stored"]["containers"] == ["box", "speaker"]
    assert "canary" not in platform.run("secret", "ls").stdout
    refused = platform.run("secret", "rm", "stored", code=1)
    assert "is used by box, speaker; --force" in refused.stderr
    assert platform.json("secret", "rotate")["secrets"] == 3 + 2 * 4
    expected = hashlib.sha256(STORED.encode()).hexdigest()
    assert platform.json("call", "digests")["value"][0] == expected
    told = platform.run("secret", "set", "stored", "--from-env", "GIVEN", env={"GIVEN": "canary-new"}).stderr
    assert "deploy again to replace what runs with its old value: box, speaker" in told
    file = str(platform.work / "worker/worker.py")
    second = platform.json("deploy", file, env={"CAPTURED": CAPTURED})
    assert {one["name"] for one in second["changes"] if one["change"] == "changed"} >= {"box", "speaker"}
    expected = hashlib.sha256(b"canary-new").hexdigest()
    wait_for(lambda: {one["version"] for one in platform.ready("box")} <= {2}, "the new version", 60)
    assert platform.json("call", "digests")["value"][0] == expected
    words = platform.run("secret", "set", "stored", "a-value-as-a-word", code=2)
    assert "values are not given as words" in words.stderr
    unset = platform.run("secret", "set", "stored", "--from-env", "NOT_THERE", code=1)
    assert "the variable NOT_THERE is not set" in unset.stderr
    source = """
        import pelton
        pelton.Container(name="x", secrets=[pelton.Secret("nobody")], entrypoint=["true"]).run()
    """
    missing = platform.run("deploy", str(platform.write("missing/missing.py", source)), code=1)
    assert "the platform has no secret nobody: pelton secret set nobody" in missing.stderr

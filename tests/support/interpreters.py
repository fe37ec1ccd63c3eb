"""The Python interpreters of this machine in which Pelton can be tried."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
"""The versions of Python that Pelton supports."""


@cache
def interpreters() -> tuple[str, ...]:
    """The one that runs, and those on the path that have what the SDK needs."""
    return (sys.executable, *_others())


def _others() -> Iterator[str]:
    for version in VERSIONS:
        found = shutil.which(f"python{version}")
        if found is None or version == "{}.{}".format(*sys.version_info):
            continue
        done = subprocess.run(
            [found, "-c", "import pelton; pelton.function"], capture_output=True, timeout=30
        )
        if done.returncode == 0:
            yield found


def bare_environment() -> dict[str, str]:
    """The environment without settings of Pelton, and without what says that tests run."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PELTON_", "PYTEST_"))}

"""When and how the class-data archive, which halves the broker's start, is built in the background.

Java writes the archive when a broker ends that was started for it, and ten seconds of work go into that; so a
second, idle broker does it at the lowest priority while the first one is used (`training`).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from pelton_platform import process
from pelton_platform.embedded.cache import Installation

# What made a build fail (a full disk, say) may be gone tomorrow; until then the starts are merely slower.
_TRY_AGAIN_AFTER_S = 24 * 3600


class Builder:
    """A running build."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child

    @property
    def pid(self) -> int:
        """Pid of the building process."""
        return self._child.pid

    def wait(self, timeout: float) -> bool:
        """Wait for the end of the build, at most `timeout` seconds; False if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout)
        return self._child.poll() is not None

    def stop(self) -> None:
        """End the build if it is still going on; the next start tries again."""
        process.terminate_child(self._child, 5.0)


def failure_note(archive: Path) -> Path:
    """Return the file that says why an archive could not be built."""
    return archive.with_suffix(".failed")


def build_in_background(installation: Installation, *, die_with_parent: bool) -> Builder | None:
    """Start building the archive of an installation; None when that is not possible or failed lately.

    Args:
        installation: What to build it for.
        die_with_parent: End the build with the calling process. Otherwise it ends by itself, in seconds.
    """
    folder = installation.archive.parent
    with contextlib.suppress(OSError):
        if time.time() - failure_note(installation.archive).stat().st_mtime < _TRY_AGAIN_AFTER_S:
            return None
    order = {
        "folder": str(installation.folder),
        "java": str(installation.java),
        "jars": [str(jar) for jar in installation.jars],
        "archive": str(installation.archive),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "training.log").open("ab") as log:
            child = process.spawn(
                [sys.executable, "-m", "pelton_platform.embedded.training", json.dumps(order)],
                env=dict(os.environ),
                stdout=log,
                stderr=subprocess.STDOUT,
                die_with_parent=die_with_parent,
            )
    except OSError:
        # A cache that can only be read is a good cache; it has no archive.
        return None
    # Whoever started the build has no reason to ever look at it again.
    process.release(child)
    return Builder(child)

"""The program that builds a class-data archive: it runs an idle broker for that and keeps the file."""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from pathlib import Path

from pelton_platform.embedded.archive import failure_note
from pelton_platform.embedded.broker import EmbeddedKafka
from pelton_platform.embedded.cache import Installation, file_lock
from pelton_platform.embedded.failure import EmbeddedKafkaError
from pelton_platform.embedded.jvm import training_flags

_START_S = 120.0
_WRITE_S = 180.0
_LOWEST_PRIORITY = 19


def build(installation: Installation) -> bool:
    """Build the archive of an installation; False if somebody else does or did.

    Raises:
        EmbeddedKafkaError: Java wrote no archive.
    """
    archive = installation.archive
    with file_lock(archive.with_suffix(".lock"), lambda: None, wait=False) as held:
        if not held or archive.exists():
            return False
        fresh = archive.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        broker = EmbeddedKafka(
            installation=installation, build_archive=False, java_flags=training_flags(fresh)
        )
        try:
            broker.start(_START_S)
            broker.stop(_WRITE_S)
        finally:
            broker.stop(0)
        if not fresh.exists():
            raise EmbeddedKafkaError(f"{installation.java} wrote no class-data archive")
        fresh.replace(archive)
        _drop_others(archive)
    return True


def main(arguments: list[str]) -> int:
    """Build the archive that the first argument describes as JSON."""
    # SystemExit ends the broker and its folder on the way out.
    signal.signal(signal.SIGTERM, _leave)
    os.nice(_LOWEST_PRIORITY)
    order = json.loads(arguments[0])
    archive = Path(order["archive"])
    installation = Installation(
        Path(order["folder"]), Path(order["java"]), tuple(Path(jar) for jar in order["jars"]), archive
    )
    try:
        build(installation)
    except (EmbeddedKafkaError, OSError) as error:
        print(error, flush=True)
        failure_note(archive).write_text(f"{error}\n")
        return 1
    failure_note(archive).unlink(missing_ok=True)
    return 0


def _leave(number: int, frame: types.FrameType | None) -> None:
    sys.exit(128 + number)


def _drop_others(archive: Path) -> None:
    """Delete archives of an earlier Java or an earlier copy of the jars; nothing can use them any more."""
    for other in archive.parent.glob("*.aot"):
        if other != archive:
            other.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

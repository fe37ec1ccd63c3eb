"""How the folder of records of a new broker is made, whole or not at all.

Apache Kafka's own tool does it. Starting Java for that takes as long as starting the broker, and all that
the tool writes besides two fresh ids is the same for every broker of an installation: so it runs once, and
what it wrote is kept beside the jars under the name of its own sum.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from pathlib import Path

from pelton_platform.embedded.artifacts import file_sha256
from pelton_platform.embedded.cache import Installation, java_environment
from pelton_platform.embedded.failure import EmbeddedKafkaError
from pelton_platform.embedded.jvm import STORAGE_CLASS, archive_flags, java_command
from pelton_platform.embedded.properties import NODE_ID, RECORDS_FOLDER, render

_CHECKPOINT = "bootstrap.checkpoint"
_IDENTITY = "meta.properties"
_FORMAT_S = 120


def is_formatted(data_dir: Path) -> bool:
    """Say whether a data folder has been made ready for a broker."""
    return (data_dir / RECORDS_FOLDER / _IDENTITY).exists()


def format_storage(
    installation: Installation,
    data_dir: Path,
    properties: Mapping[str, str],
    explain: Callable[[str], str],
) -> None:
    """Make the folder of records in a data folder, under another name until it is complete.

    Args:
        installation: What the broker runs from.
        data_dir: Existing folder.
        properties: The broker's settings.
        explain: Turns what the tool printed into words for a person.

    Raises:
        EmbeddedKafkaError: The tool failed, or something else is in the way.
    """
    wanted, fresh = data_dir / RECORDS_FOLDER, data_dir / f"{RECORDS_FOLDER}.new"
    if wanted.exists():
        # Without its identity no broker ever ran on it: what is in there is what a person put there.
        raise EmbeddedKafkaError(f"{wanted} is in the way: move it, or choose another data_dir=")
    shutil.rmtree(fresh, ignore_errors=True)
    known = _known_checkpoint(installation)
    # Settings of unstable features decide what the tool writes.
    if known is None or any(key.startswith("unstable.") for key in properties):
        _run_tool(installation, data_dir, {**properties, "log.dirs": fresh.name}, explain)
        _keep_checkpoint(installation, fresh / _CHECKPOINT)
    else:
        fresh.mkdir()
        shutil.copyfile(known, fresh / _CHECKPOINT)
        (fresh / _IDENTITY).write_text(
            f"cluster.id={new_id()}\ndirectory.id={new_id()}\nnode.id={NODE_ID}\nversion=1\n"
        )
    fresh.rename(wanted)


def new_id() -> str:
    """Return a fresh id in Apache Kafka's way of writing it; none starts with a dash, as there."""
    while (text := urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def _run_tool(
    installation: Installation, data_dir: Path, properties: Mapping[str, str], explain: Callable[[str], str]
) -> None:
    settings = data_dir / "format.properties"
    settings.write_text(render(properties), encoding="latin-1")
    command = java_command(
        installation,
        STORAGE_CLASS,
        ["format", "-t", new_id(), "-c", settings.name],
        temporary=data_dir / "tmp",
        # A short run is over before fully compiled code pays.
        flags=(*archive_flags(installation), "-XX:TieredStopAtLevel=1"),
    )
    try:
        done = subprocess.run(
            command, cwd=data_dir, capture_output=True, timeout=_FORMAT_S, check=False, env=java_environment()
        )
    except subprocess.TimeoutExpired as error:
        raise EmbeddedKafkaError(
            f"formatting the data folder {data_dir} took longer than {_FORMAT_S} s: is its disk very slow? "
            "Try again, or choose another data_dir="
        ) from error
    if done.returncode != 0:
        text = (done.stderr + done.stdout).decode(errors="replace")
        raise EmbeddedKafkaError(f"cannot format the data folder {data_dir}: {explain(text)}")
    settings.unlink()


def _known_checkpoint(installation: Installation) -> Path | None:
    for path in sorted((installation.folder / "storage").glob(f"{_CHECKPOINT}.*")):
        with contextlib.suppress(OSError):
            if path.name == f"{_CHECKPOINT}.{file_sha256(path)}":
                return path
    return None


def _keep_checkpoint(installation: Installation, made: Path) -> None:
    folder = installation.folder / "storage"
    # A cache that can only be read is a good cache; starts take a little longer.
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        fresh = folder / f".{os.getpid()}.{uuid.uuid4().hex}"
        shutil.copyfile(made, fresh)
        fresh.replace(folder / f"{_CHECKPOINT}.{file_sha256(made)}")

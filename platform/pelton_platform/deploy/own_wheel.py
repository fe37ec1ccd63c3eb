"""The running platform as a wheel: what `pelton` means in the environment of an image, never a registry's."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from pelton.errors import DeployError

_PACKAGES = ("pelton", "pelton_schemas", "pelton_templates", "pelton_platform")
_LEFT_OUT = (".pyc", ".pyo")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files give the same wheel, whenever it is made


def own_wheel(folder: Path) -> Path:
    """Make the wheel of the running platform from the files it runs from, unless it is there already.

    A process reads those files once: what it runs does not change under it.

    Args:
        folder: Where wheels are kept, each in a folder named by its content.

    Raises:
        DeployError: This platform was not installed as a distribution.
    """
    digest, members = _content()
    target = folder / digest[:16] / f"pelton-{metadata.version('pelton')}-py3-none-any.whl"
    if not target.exists():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=".draft-")
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, data in members.items():
                wheel.writestr(zipfile.ZipInfo(name, _EPOCH), data)
        os.replace(draft, target)
    return target


@cache
def _content() -> tuple[str, dict[str, bytes]]:
    """Return the files of the wheel, and the hash over them."""
    members = dict(_members())
    digest = hashlib.sha256()
    for name, data in members.items():
        digest.update(f"{name}\n{len(data)}\n".encode() + data)
    return digest.hexdigest(), members


def _members() -> Iterator[tuple[str, bytes]]:
    """Yield the files of the wheel, in a fixed order, its record last."""
    rows = []
    for name, data in (*_sources(), *_description()):
        encoded = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={encoded},{len(data)}")
        yield name, data
    record = f"pelton-{metadata.version('pelton')}.dist-info/RECORD"
    yield record, "\n".join([*rows, f"{record},,", ""]).encode()


def _sources() -> Iterator[tuple[str, bytes]]:
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise DeployError(
                f"this platform is not whole: it has no package {package}; install pelton again"
            )
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.name.endswith(_LEFT_OUT):
                yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _description() -> Iterator[tuple[str, bytes]]:
    """Yield what installers read: name, version, dependencies, commands."""
    try:
        ours = metadata.distribution("pelton")
    except metadata.PackageNotFoundError:
        raise DeployError(
            "this platform runs from files that were never installed; `pip install` it"
        ) from None
    folder = f"pelton-{ours.version}.dist-info"
    yield f"{folder}/METADATA", (ours.read_text("METADATA") or "").encode()
    yield (
        f"{folder}/WHEEL",
        b"Wheel-Version: 1.0\nGenerator: pelton\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    )
    yield f"{folder}/entry_points.txt", (ours.read_text("entry_points.txt") or "").encode()

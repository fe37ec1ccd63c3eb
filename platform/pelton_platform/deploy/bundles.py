"""Source bundles: snapshots of a folder, named by their content, signed, and verified before every use."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pelton.errors import DeployError, SignatureError
from pelton.protocol.signing import Keyring
from pelton.runtime.pickled import file_name, purpose
from pelton_platform.deploy.sources import Source

PURPOSE = "bundle"
IGNORE_FILE = ".peltonignore"
"""In the folder that is deployed: what else is left out, in the patterns of `.gitignore`."""

DEFAULT_LIMIT_BYTES = 64 * 1024 * 1024

_MANIFEST_VERSION = 1
_SKIPPED_FOLDERS = frozenset({"__pycache__", "venv", "env", "node_modules", "__pypackages__"})
_SKIPPED_SUFFIXES = (".pyc", ".pyo", ".egg-info")
_IMPORTABLE = tuple(importlib.machinery.all_suffixes())
_CHUNK = 1 << 20


KEPT_UNUSED: Final = 20
"""So many of the newest bundles stay, used or not: what is being deployed, or just was, is among them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or link of a bundle.

    Attributes:
        path: Relative to the folder, with `/`.
        sha256: Digest of the content in hex; "" for a link.
        executable: Whether it may be executed.
        link: Where a link points, as it is written; "" for a file.
    """

    path: str
    sha256: str
    executable: bool
    link: str = ""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A snapshot in the store.

    Attributes:
        digest: SHA-256 hex over its entries.
        folder: Where its files lie.
        files: How many.
        size: Bytes of all files.
        new: Whether this call stored it.
    """

    digest: str
    folder: Path
    files: int
    size: int
    new: bool


def list_sources(folder: Path, home: Path | None = None) -> Iterator[Path]:
    """Yield the files and links of a folder that belong to a snapshot, sorted.

    Left out: hidden names, caches, virtual environments, compiled Python, sockets and the like, the home
    folder of the platform, should it lie in this one, and what `.peltonignore` of the folder names.

    Raises:
        DeployError: `.peltonignore` has a line that is no pattern.
    """
    yield from _sources(folder, folder, home, _ignored(folder))


def _ignored(folder: Path) -> Callable[[str], bool]:
    """Return what says of a path in the folder whether `.peltonignore` leaves it out."""
    try:
        lines = (folder / IGNORE_FILE).read_text().splitlines()
    except FileNotFoundError:
        return lambda path: False
    # Late: most folders have no such file.
    from pathspec import GitIgnoreSpec
    from pathspec.patterns.gitignore import GitIgnorePatternError

    try:
        return GitIgnoreSpec.from_lines(lines).match_file
    except GitIgnorePatternError as error:
        raise DeployError(f"{folder / IGNORE_FILE}: {error}") from error


def _sources(folder: Path, root: Path, home: Path | None, ignored: Callable[[str], bool]) -> Iterator[Path]:
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if name.startswith(".") or name.endswith(_SKIPPED_SUFFIXES):
            continue
        kind = path.lstat().st_mode
        if ignored(path.relative_to(root).as_posix() + ("/" if stat.S_ISDIR(kind) else "")):
            continue
        if stat.S_ISDIR(kind):
            if name not in _SKIPPED_FOLDERS and path != home and not (path / "pyvenv.cfg").exists():
                yield from _sources(path, root, home, ignored)
        elif stat.S_ISREG(kind) or stat.S_ISLNK(kind):
            yield path


def store(source: Source, bundles: Path, keyring: Keyring, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> Bundle:
    """Take a snapshot of a source, unless the same one is there already.

    Args:
        source: What to copy.
        bundles: The store: a folder per digest and a signed manifest beside it.
        keyring: Signs the manifest.
        limit_bytes: A source with more than that is refused.

    Raises:
        DeployError: The source is too large, or a link leaves its folder.
    """
    folder = source.folder
    if source.files is None:
        files = {
            path.relative_to(folder).as_posix(): path for path in list_sources(folder, home=bundles.parent)
        }
    else:
        files = dict(source.files)
    _check_size(source, files, limit_bytes)
    draft = Path(tempfile.mkdtemp(dir=bundles, prefix=".draft-"))
    try:
        # Digests are those of the copies, so a file that changes meanwhile cannot make a manifest lie.
        entries = [_copy(folder, path, draft, place) for place, path in files.items()]
        digest = _digest(entries)
        target = bundles / digest
        size = sum((draft / entry.path).stat().st_size for entry in entries if not entry.link)
        if _is_sound(target, keyring):
            return Bundle(digest, target, len(entries), size, new=False)
        manifest = keyring.seal(PURPOSE, _manifest(entries))
        _make_read_only(draft)
        if target.exists():
            discard(target)
        _replace_file(bundles / f"{digest}.manifest", manifest)
        os.rename(draft, target)
        return Bundle(digest, target, len(entries), size, new=True)
    finally:
        if draft.exists():
            discard(draft)


def store_code(
    function: str, code: bytes, bundles: Path, keyring: Keyring, limit_bytes: int = DEFAULT_LIMIT_BYTES
) -> str:
    """Keep the code of a function that has no module, signed for this function alone.

    Args:
        function: Its name.
        code: As `pelton.runtime.pickled.dump` gives it.
        bundles: The store.
        keyring: Signs it.
        limit_bytes: More than that is refused.

    Returns:
        SHA-256 hex of the code.

    Raises:
        DeployError: It is too large.
    """
    if len(code) > limit_bytes:
        raise DeployError(
            f"function {function!r} takes {len(code) / 2**20:.1f} MiB of data along, more than the limit of "
            f"{limit_bytes / 2**20:.0f} MiB: load data inside the function, or raise PELTON_BUNDLE_LIMIT_MIB"
        )
    digest = hashlib.sha256(code).hexdigest()
    _replace_file(bundles / file_name(function, digest), keyring.seal(purpose(function), code))
    return digest


def verify(digest: str, bundles: Path, keyring: Keyring) -> Path:
    """Return the folder of a bundle after making sure that every file is what was signed.

    Files that a program wrote beside them are no part of the bundle and are left alone, unless Python could
    import them.

    Raises:
        SignatureError: The manifest is missing or not signed by this namespace, or a file is changed, missing
            or added.
    """
    folder = bundles / digest
    try:
        sealed = (bundles / f"{digest}.manifest").read_bytes()
    except FileNotFoundError:
        raise SignatureError(f"bundle {digest[:12]} has no manifest; deploy again") from None
    entries = _read_manifest(digest, keyring.open(PURPOSE, sealed))
    if _digest(entries) != digest:
        raise SignatureError(f"bundle {digest[:12]} has the manifest of another bundle; deploy again")
    known = {entry.path for entry in entries}
    for entry in entries:
        if not _is_as_signed(folder / entry.path, entry):
            raise SignatureError(f"bundle {digest[:12]}: {entry.path} is not what was signed; deploy again")
    for found in _walk(folder):
        path = found.relative_to(folder).as_posix()
        if path not in known and path.endswith((*_IMPORTABLE, ".pth")):
            raise SignatureError(f"bundle {digest[:12]}: {path} was added to it; deploy again")
    return folder


def remove(digest: str, bundles: Path) -> None:
    """Take a bundle out of the store."""
    discard(bundles / digest)
    (bundles / f"{digest}.manifest").unlink()


def prune(bundles: Path, used: Set[str], pycache: Path) -> list[str]:
    """Take bundles and code out of the store that nothing uses, but for the newest of them.

    Args:
        bundles: The store.
        used: Digests of bundles and of code that specs or instances name.
        pycache: Where Python keeps what it compiled of them.

    Returns:
        Names of what was removed.
    """
    found = [
        path
        for path in bundles.iterdir()
        if not path.name.startswith(".") and (path.is_dir() or path.suffix == ".code")
    ]
    found.sort(key=lambda path: path.stat().st_ctime_ns)
    removed = []
    for path in found[:-KEPT_UNUSED]:
        if path.stem.rpartition("-")[2] in used:
            continue
        if path.is_dir():
            remove(path.name, bundles)
            shutil.rmtree(pycache / path.relative_to(path.anchor), ignore_errors=True)
        else:
            path.unlink()
        removed.append(path.name)
    return removed


def discard(folder: Path) -> None:
    """Remove a folder of read-only files."""
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o700)
    shutil.rmtree(folder)


def _check_size(source: Source, files: Mapping[str, Path], limit_bytes: int) -> None:
    sizes = sorted(((path.lstat().st_size, place) for place, path in files.items()), reverse=True)
    total = sum(size for size, _ in sizes)
    if total > limit_bytes:
        largest = ", ".join(f"{place} ({size / 2**20:.1f} MiB)" for size, place in sizes[:3])
        raise DeployError(
            f"{source.folder} holds {total / 2**20:.1f} MiB of sources and data, more than the limit of "
            f"{limit_bytes / 2**20:.0f} MiB; the largest are {largest}. Move data out of the "
            f"folder, name it in {IGNORE_FILE}, or raise PELTON_BUNDLE_LIMIT_MIB"
        )


def _copy(folder: Path, path: Path, draft: Path, relative: str) -> Entry:
    target = draft / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        link = os.readlink(path)
        inside = not os.path.isabs(link) and path.resolve().is_relative_to(folder.resolve())
        if not inside or not path.exists():
            raise DeployError(
                f"{relative} is a link to {link}, which "
                + ("is not in the folder" if not inside else "does not exist")
                + "; a bundle holds only what is in its folder: copy the file there or remove the link"
            )
        os.symlink(link, target)
        return Entry(relative, "", False, link)
    executable = bool(path.stat().st_mode & stat.S_IXUSR)
    sha256 = hashlib.sha256()
    with path.open("rb") as source, target.open("wb") as copy:
        while block := source.read(_CHUNK):
            sha256.update(block)
            copy.write(block)
    target.chmod(0o555 if executable else 0o444)
    return Entry(relative, sha256.hexdigest(), executable)


def _digest(entries: list[Entry]) -> str:
    return hashlib.sha256(_manifest(entries)).hexdigest()


def _manifest(entries: list[Entry]) -> bytes:
    rows = [[entry.path, entry.sha256, entry.executable, entry.link] for entry in entries]
    return json.dumps({"version": _MANIFEST_VERSION, "entries": rows}, separators=(",", ":")).encode()


def _read_manifest(digest: str, body: bytes) -> list[Entry]:
    data = json.loads(body)
    if data.get("version") != _MANIFEST_VERSION:
        raise SignatureError(f"bundle {digest[:12]} was made by another version of Pelton; deploy again")
    entries = [Entry(*row) for row in data["entries"]]
    for entry in entries:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or ".." in path.parts:
            raise SignatureError(f"bundle {digest[:12]} names the file {entry.path} outside of its folder")
    return entries


def _is_as_signed(path: Path, entry: Entry) -> bool:
    if entry.link:
        return path.is_symlink() and os.readlink(path) == entry.link
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256


def _is_sound(folder: Path, keyring: Keyring) -> bool:
    if not folder.exists():
        return False
    try:
        verify(folder.name, folder.parent, keyring)
    except SignatureError:
        return False
    return True


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)


def _make_read_only(folder: Path) -> None:
    """Bundles are shared by instances: a program that writes into its folder hears so at once."""
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            with contextlib.suppress(FileNotFoundError):
                if not os.path.islink(os.path.join(parent, name)):
                    os.chmod(os.path.join(parent, name), 0o500)
    # The top folder stays writable for its owner: a folder that is not cannot be renamed everywhere.
    os.chmod(folder, 0o700)


def _replace_file(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)

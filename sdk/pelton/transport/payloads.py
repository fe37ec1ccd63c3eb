"""Where payloads lie that are above the limit of a record: the object store, a folder or a bucket.

A payload is written into a draft, a file beside the store or in the folder for temporary files, so that
nobody holds it in memory; the finished draft becomes an object. Objects are named by chance and written once.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from pelton.errors import PayloadCorrupt, PayloadTooLarge, PayloadUnavailable
from pelton.protocol import large, payload
from pelton.protocol.claims import Claim, encode_claim
from pelton.protocol.pickles import wrap
from pelton.transport.config import ConnectionConfig, store_folder

DRAFTS: Final = ".drafts"
"""Folder in a store that is a folder itself; what lies there is no object yet."""

LEDGER: Final = ".named.json"
"""Object in which `pelton_platform.deploy.sweeping` remembers when which object was named."""

_OBJECT: Final = re.compile(r"([A-Za-z][A-Za-z0-9_-]{0,62})/([0-9a-f]{32})")


T = TypeVar("T")


class PayloadStore(Protocol):
    """Takes and gives the objects of payloads."""

    def aside(self, call: Callable[[], T]) -> T:
        """Calls what takes long: where code runs on an event loop, beside that."""

    def draft(self) -> Path:
        """A new file, private to this user, for who wants to keep a payload; the caller removes it.

        Raises:
            PayloadUnavailable: there is no room for it.
        """

    def keep(self, draft: Path, claim: Claim) -> None:
        """Makes an object of a draft; blocks until it can be read by everybody.

        Raises:
            PayloadUnavailable: the store cannot be reached or is full.
        """

    def open(self, claim: Claim) -> int:
        """The descriptor of a file that is the object, which the caller closes; blocks.

        Raises:
            PayloadCorrupt: there is no such object, or another one: size and digest are checked.
            PayloadUnavailable: the store cannot be reached.
        """


def encode_value(store: PayloadStore | None, function: str, value: Any) -> bytes:
    """The payload of a result or chunk, which is kept in the store when it is above the limit of a record.

    Args:
        store: where it is kept; None refuses it.
        function: whose result it is.
        value: anything that travels, and what has to be pickled.

    Raises:
        UnsupportedType: something in it does not travel.
        PayloadTooLarge: it is above 1 GiB, or there is no store.
        PayloadUnavailable: it cannot be kept.
    """
    try:
        return payload.encode(value, pickles=True)
    except PayloadTooLarge:
        if store is None:
            raise
        return _keep(store, function, value, payload.value_place)


def encode_arguments(
    store: PayloadStore | None, function: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bytes:
    """The same for the arguments of a call."""
    try:
        return payload.encode_arguments(args, kwargs, pickles=True)
    except PayloadTooLarge:
        if store is None:
            raise
        return _keep(store, function, (args, kwargs), payload.argument_place)


def _keep(store: PayloadStore, function: str, value: Any, place: Callable[[Sequence[str]], str]) -> bytes:
    """Keeps a value; returns the payload that stands for it.

    Raises:
        UnsupportedType: something in it does not travel.
        PayloadTooLarge: it is above 1 GiB.
        PayloadUnavailable: it cannot be kept.
    """

    def keep() -> bytes:
        draft = store.draft()
        try:
            try:
                with draft.open("wb") as file:
                    written = large.write(file, value, place, pickles=True)
            except OSError as error:
                raise PayloadUnavailable(f"a payload cannot be written to {draft.parent}: {error}") from error
            claim = Claim(function, secrets.token_bytes(16), written.size, written.digest)
            store.keep(draft, claim)
        finally:
            draft.unlink(missing_ok=True)
        data = encode_claim(claim)
        return wrap(data) if written.pickled else data

    return store.aside(keep)


_used_by = 0
"""Pid of the process that first used the library of object stores."""


def _check_fork(url: str) -> None:
    """Notes who uses the library: its threads do not come along into a forked child.

    Raises:
        PayloadUnavailable: this is such a child.
    """
    global _used_by
    _used_by = _used_by or os.getpid()
    if _used_by != os.getpid():
        raise PayloadUnavailable(
            f"this process was forked after its parent had used {url}, which cannot be used in both: "
            "use it in the children alone, start them by `spawn`, or name a folder as the store"
        )


def checked(descriptor: int, claim: Claim) -> int:
    """The descriptor of a file that is the object of a claim check.

    Raises:
        PayloadCorrupt: it is another one; the descriptor is closed.
    """
    try:
        large.check_object(descriptor, claim.size, claim.digest)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def new_draft(folder: Path, prefix: str = "") -> Path:
    """An empty file in a folder.

    Raises:
        PayloadUnavailable: it cannot be made.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=prefix, dir=folder)
    except OSError as error:
        raise PayloadUnavailable(f"no payload can be written to {folder}: {error.strerror}") from error
    os.close(handle)
    return Path(name)


class StoredObject(NamedTuple):
    """An object as a listing shows it.

    Attributes:
        function: name of the function.
        id: 16 bytes.
        size: in bytes.
        modified: when it was written, by the store's clock.
    """

    function: str
    id: bytes
    size: int
    modified: datetime

    @property
    def path(self) -> str:
        """Where it lies in its store."""
        return f"{self.function}/{self.id.hex()}"


def store_of(config: ConnectionConfig) -> ObjectStore | None:
    """The store of a platform, None when nothing names one."""
    return ObjectStore(config.store, config.store_options) if config.store else None


class ObjectStore:
    """Implements `PayloadStore` over a folder or a bucket.

    Args:
        url: `file:///folder`, `s3://bucket/prefix`, `gs://...` or `az://...`.
        options: of the store by obstore's names, e.g. `endpoint`, `region`; may be secret. What they
            leave out comes from the environment, e.g. `AWS_ACCESS_KEY_ID`.

    Raises:
        ValueError: that is no address of a store.
    """

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        self._url = url
        self._options = dict(options or {})
        self._root = store_folder(url)
        self._opening = threading.Lock()

    def __repr__(self) -> str:
        return f"ObjectStore({self._url!r})"

    def aside(self, call: Callable[[], T]) -> T:
        """As `PayloadStore.aside`; on an event loop it blocks, as all that callers send does."""
        return call()

    def draft(self) -> Path:
        """As `PayloadStore.draft`."""
        if self._root is None:
            return new_draft(Path(tempfile.gettempdir()), "pelton-payload-")
        folder = self._root / DRAFTS
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise PayloadUnavailable(f"no payload can be written to {folder}: {error.strerror}") from error
        return new_draft(folder)

    def keep(self, draft: Path, claim: Claim) -> None:
        """As `PayloadStore.keep`; a draft on the same disk is moved."""
        if self._root is None:
            with self._reaching(claim.path):
                self._obstore.put(self._store, claim.path, draft)
            return
        target = self._root / claim.path
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                os.replace(draft, target)
            except OSError:
                # Another disk: as a whole or not at all, all the same.
                copy = self.draft()
                shutil.copyfile(draft, copy)
                os.replace(copy, target)
        except OSError as error:
            raise PayloadUnavailable(f"a payload cannot be kept in {self._url}: {error}") from error

    def open(self, claim: Claim) -> int:
        """As `PayloadStore.open`; of a bucket's object there is a copy on disk for as long as it is used."""
        if self._root is not None:
            return checked(self._open_file(self._root, claim), claim)
        copy = self.draft()
        try:
            self.fetch(claim, copy)
            return checked(os.open(copy, os.O_RDONLY | os.O_CLOEXEC), claim)
        finally:
            copy.unlink()

    def fetch(self, claim: Claim, target: Path) -> None:
        """Puts an object, or a link to it, where a file may be already.

        Raises:
            PayloadCorrupt, PayloadUnavailable: as for `open`.
        """
        if self._root is not None:
            os.close(self._open_file(self._root, claim))
            target.unlink(missing_ok=True)
            try:
                os.link(self._root / claim.path, target)
            except OSError:
                # Another disk, or a system that links no files.
                os.symlink(self._root / claim.path, target)
            return
        with self._reaching(claim.path), target.open("wb") as file:
            for piece in self._obstore.get(self._store, claim.path).stream():
                if file.tell() + len(piece) > claim.size:
                    raise PayloadCorrupt(f"{claim.path} in {self._url} is larger than what was stored there")
                file.write(piece)

    def _open_file(self, root: Path, claim: Claim) -> int:
        try:
            return os.open(root / claim.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._missing(claim.path) from None
        except OSError as error:
            raise PayloadUnavailable(f"{claim.path} in {self._url} cannot be read: {error}") from error

    # --- what keeps order in it ---

    def objects(self) -> Iterator[StoredObject]:
        """All objects, in no order.

        Raises:
            PayloadUnavailable: the store cannot be reached.
        """
        with self._reaching("the list of objects"):
            for page in self._obstore.list(self._store):
                for entry in page:
                    found = _OBJECT.fullmatch(entry["path"])
                    if found is not None:
                        identity = bytes.fromhex(found[2])
                        yield StoredObject(found[1], identity, entry["size"], entry["last_modified"])

    def remove(self, path: str) -> None:
        """Removes an object; one that is gone already is none to be removed.

        Raises:
            PayloadUnavailable: the store cannot be reached.
        """
        with contextlib.suppress(PayloadCorrupt), self._reaching(path):
            self._obstore.delete(self._store, path)

    def read_note(self, path: str) -> bytes | None:
        """A small object, None when there is none.

        Raises:
            PayloadUnavailable: the store cannot be reached.
        """
        try:
            with self._reaching(path):
                return bytes(self._obstore.get(self._store, path).bytes())
        except PayloadCorrupt:
            return None

    def write_note(self, path: str, data: bytes) -> None:
        """Writes a small object as a whole.

        Raises:
            PayloadUnavailable: the store cannot be reached.
        """
        with self._reaching(path):
            self._obstore.put(self._store, path, data)

    def old_drafts(self, before: float) -> Iterator[Path]:
        """Drafts that a dead process left in a store that is a folder.

        Args:
            before: seconds since the epoch.
        """
        if self._root is not None:
            for path in (self._root / DRAFTS).glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < before:
                        yield path

    # --- inside ---

    @cached_property
    def _obstore(self) -> Any:
        # Late: few programs need it.
        import obstore

        return obstore

    @cached_property
    def _store(self) -> Any:
        from obstore.store import LocalStore, from_url

        with self._opening:
            if self._root is not None:
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                return LocalStore(self._root)
            given = [value for name, value in self._options.items() if "endpoint" in name]
            addresses = (*given, os.environ.get("AWS_ENDPOINT_URL", ""))
            plain = any(address.startswith("http:") for address in addresses)
            config: Any = self._options
            return from_url(
                self._url,
                config=config,
                client_options={"allow_http": plain, "connect_timeout": "5s", "timeout": "15m"},
                retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=30)},
            )

    @contextlib.contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        """Says what went wrong in our words.

        Raises:
            PayloadCorrupt: there is no such object.
            PayloadUnavailable: anything else.
        """
        from obstore.exceptions import BaseError, NotFoundError

        _check_fork(self._url)
        try:
            yield
        except (FileNotFoundError, NotFoundError):
            raise self._missing(path) from None
        except (BaseError, OSError, ValueError) as error:
            if isinstance(error, PayloadCorrupt):
                raise
            raise PayloadUnavailable(f"{path} in {self._url}: {error}") from error

    def _missing(self, path: str) -> PayloadCorrupt:
        return PayloadCorrupt(f"there is no {path} in {self._url}: the payload was removed, or never kept")

"""Keys of a namespace and signatures made with them: what is signed cannot be made up or moved."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pelton.errors import SignatureError
from pelton.protocol.topics import check_name

KEY_BYTES: Final = 32
"""HMAC-SHA256 gains nothing from longer keys."""

MAX_KEYS: Final = 2
"""The one that signs and the one before it: a rotation never invalidates what was signed just before."""

_MAGIC: Final = b"PLS1"
_MAC_BYTES: Final = 32
_KEY_ID: Final = re.compile(r"[0-9a-f]{8,32}")
_MAX_FILE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Key:
    """A signing key.

    Attributes:
        id: names it in signatures: 8 to 32 hexadecimal digits.
        secret: 32 bytes.
    """

    id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or _KEY_ID.fullmatch(self.id) is None:
            raise ValueError(f"{self.id!r} is no key id: 8 to 32 hexadecimal digits")
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"key {self.id} has {len(self.secret)} bytes, not {KEY_BYTES}")


def new_key() -> Key:
    """A fresh random key."""
    return Key(secrets.token_hex(8), secrets.token_bytes(KEY_BYTES))


class Keyring:
    """The active keys of a namespace: the first one signs, each of them verifies.

    A signature is HMAC-SHA256 over (namespace, purpose, key id, digest of the body): what is signed for one
    namespace or purpose is worth nothing in another.

    Args:
        keys: one or two keys, the signing one first.
        namespace: the namespace they belong to.

    Raises:
        ValueError: no keys, more than two, or two with the same id.
    """

    def __init__(self, keys: Sequence[Key], namespace: str) -> None:
        if not 1 <= len(keys) <= MAX_KEYS:
            raise ValueError(f"a keyring has one or {MAX_KEYS} keys, not {len(keys)}")
        self.namespace = check_name("namespace", namespace)
        self._keys = {key.id: key for key in keys}
        if len(self._keys) != len(keys):
            raise ValueError("two keys have the same id")
        self._signer = keys[0]

    def __repr__(self) -> str:
        return f"Keyring({self.namespace!r}, keys {', '.join(self._keys)})"

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Ids of the active keys, the signing one first."""
        return tuple(self._keys)

    def seal(self, purpose: str, body: bytes) -> bytes:
        """The body with a signature before it.

        Args:
            purpose: what it is, e.g. "function-spec"; `open` must name the same.
            body: any bytes.
        """
        key = self._signer
        key_id = key.id.encode()
        mac = self._mac(key, purpose, hashlib.sha256(body).digest())
        return b"".join((_MAGIC, len(key_id).to_bytes(1, "big"), key_id, mac, body))

    def open(self, purpose: str, data: bytes | None) -> bytes:
        """The body of something sealed with an active key of this namespace for this purpose.

        Raises:
            SignatureError: anything else; the message says what is wrong.
        """
        key_id, mac, body = _split(purpose, data)
        self._compare(self._find(purpose, key_id), purpose, hashlib.sha256(body).digest(), mac)
        return body

    def sign_digest(self, purpose: str, digest: bytes) -> str:
        """A signature apart from what it signs, as text: `KEYID:HEX`.

        Args:
            purpose: what is signed, e.g. "bundle".
            digest: its SHA-256, 32 bytes.

        Raises:
            ValueError: it is no SHA-256 digest.
        """
        if len(digest) != hashlib.sha256().digest_size:
            raise ValueError(f"a SHA-256 digest has 32 bytes, not {len(digest)}")
        return f"{self._signer.id}:{self._mac(self._signer, purpose, digest).hex()}"

    def verify_digest(self, purpose: str, digest: bytes, signature: str | None) -> None:
        """Returns when `sign_digest` of an active key made this signature.

        Raises:
            SignatureError: it did not.
        """
        key_id, _, text = (signature or "").partition(":")
        try:
            mac = bytes.fromhex(text)
        except ValueError:
            raise SignatureError(f"a {purpose} whose signature is no `KEYID:HEX`") from None
        if not mac:
            raise SignatureError(f"a {purpose} without a signature")
        self._compare(self._find(purpose, key_id), purpose, digest, mac)

    def rotated(self, key: Key | None = None) -> Keyring:
        """A keyring that signs with a new key and still verifies what this one signs; older keys are gone."""
        return Keyring([key or new_key(), self._signer], self.namespace)

    @classmethod
    def create(cls, path: Path, namespace: str) -> Keyring:
        """Makes a keyring with a new key and writes it, readable for its owner alone.

        Raises:
            FileExistsError: there is a file already.
            OSError: it cannot be written.
        """
        ring = cls([new_key()], namespace)
        ring._write(path, os.O_EXCL)
        return ring

    def save(self, path: Path) -> None:
        """Writes the keyring in place of the one at `path`, at once or not at all.

        Raises:
            OSError: it cannot be written.
        """
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self._write(beside, os.O_EXCL)
        os.replace(beside, path)

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """Reads the keyring that `create` or `save` wrote.

        Raises:
            SignatureError: there is none, others may read it, or it is damaged; the message says what to do.
        """
        document = _read_private(path)
        try:
            content = json.loads(document)
            keys = [Key(entry["id"], bytes.fromhex(entry["secret"])) for entry in content["keys"]]
            return cls(keys, content["namespace"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # What is wrong is not quoted: it may be the secret.
            raise SignatureError(
                f"the key file {path} is damaged; restore it, or remove it and deploy everything anew"
            ) from None

    def _write(self, path: Path, flags: int) -> None:
        """Writes the file with mode 0600 and makes it durable."""
        content = {
            "namespace": self.namespace,
            "keys": [{"id": key.id, "secret": key.secret.hex()} for key in self._keys.values()],
        }
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(descriptor)

    def _find(self, purpose: str, key_id: str) -> Key:
        """The active key of this id."""
        key = self._keys.get(key_id)
        if key is None:
            raise SignatureError(
                f"a {purpose} signed with the key {key_id[:32]!r}, which is not active in {self.namespace!r}"
            )
        return key

    def _compare(self, key: Key, purpose: str, digest: bytes, mac: bytes) -> None:
        """Refuses another signature than the right one, in constant time."""
        if not hmac.compare_digest(self._mac(key, purpose, digest), mac):
            raise SignatureError(f"a {purpose} whose signature does not verify in {self.namespace!r}")

    def _mac(self, key: Key, purpose: str, digest: bytes) -> bytes:
        """The signature; each part goes in with its length, so that no two lists of parts look the same."""
        message = bytearray(_MAGIC)
        for part in (self.namespace.encode(), purpose.encode(), key.id.encode(), digest):
            message += len(part).to_bytes(4, "big")
            message += part
        return hmac.digest(key.secret, message, "sha256")


def unverified_body(purpose: str, data: bytes | None) -> bytes:
    """The body of something sealed, as it stands, whoever sealed it: for readers that have no key.

    They may decode it as data and must not import, unpickle or run anything that it names.

    Raises:
        SignatureError: it is not sealed at all.
    """
    return _split(purpose, data)[2]


def _split(purpose: str, data: bytes | None) -> tuple[str, bytes, bytes]:
    """Key id, signature and body of something sealed."""
    if data is None or data[: len(_MAGIC)] != _MAGIC or len(data) <= len(_MAGIC):
        raise SignatureError(f"a {purpose} without a signature")
    start = len(_MAGIC) + 1
    end = start + data[start - 1]
    body_at = end + _MAC_BYTES
    if len(data) < body_at:
        raise SignatureError(f"a {purpose} whose signature is truncated")
    return data[start:end].decode("ascii", "replace"), data[end:body_at], data[body_at:]


def _read_private(path: Path) -> bytes:
    """The content of a file that nobody else may read.

    Raises:
        SignatureError: it is missing, no plain file, or others may read or write it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise SignatureError(
            f"the key file {path} cannot be read ({error.strerror}):"
            f" `pelton up` makes one, PELTON_KEY_FILE names one"
        ) from error
    try:
        _check_private(path, os.fstat(descriptor))
        return os.read(descriptor, _MAX_FILE_BYTES)
    finally:
        os.close(descriptor)


def _check_private(path: Path, status: os.stat_result) -> None:
    """Refuses what is no file of this user, or not for this user alone."""
    if not stat.S_ISREG(status.st_mode):
        raise SignatureError(f"the key file {path} is no plain file")
    if status.st_mode & 0o077:
        raise SignatureError(
            f"others can read or write the key file {path} (mode {stat.S_IMODE(status.st_mode):04o});"
            f" run: chmod 600 {path}"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise SignatureError(f"the key file {path} belongs to another user (uid {status.st_uid})")

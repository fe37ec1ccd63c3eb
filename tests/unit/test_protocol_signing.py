"""Signatures and the key file: what opens, what never does, and who may read the keys."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pelton.errors import SignatureError
from pelton.protocol.signing import KEY_BYTES, Key, Keyring, new_key, unverified_body

OLD = Key("0123456789abcdef", bytes(range(KEY_BYTES)))
NEW = Key("fedcba9876543210", bytes(range(1, KEY_BYTES + 1)))
RING = Keyring([OLD], "pelton")
DIGEST = bytes(32)


def test_a_seal_is_bound_to_namespace_purpose_and_key() -> None:
    """The same body, moved to another namespace or purpose or claimed for another key, does not open."""
    sealed = RING.seal("function-spec", b"body")
    assert RING.open("function-spec", sealed) == b"body"
    with pytest.raises(SignatureError, match="does not verify"):
        RING.open("container-spec", sealed)
    with pytest.raises(SignatureError, match="does not verify"):
        Keyring([OLD], "other").open("function-spec", sealed)
    with pytest.raises(SignatureError, match="does not verify"):
        Keyring([Key(OLD.id, NEW.secret)], "pelton").open("function-spec", sealed)
    with pytest.raises(SignatureError, match="not active"):
        Keyring([NEW], "pelton").open("function-spec", sealed)
    both = Keyring([NEW, OLD], "pelton")
    with pytest.raises(SignatureError, match="does not verify"):
        both.open("function-spec", sealed.replace(OLD.id.encode(), NEW.id.encode()))


def test_every_bit_of_a_seal_counts() -> None:
    """Flipping any single bit, in the head, the key id, the signature or the body, is noticed."""
    sealed = RING.seal("spec", b"body")
    for position in range(len(sealed) * 8):
        damaged = bytearray(sealed)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(SignatureError):
            RING.open("spec", bytes(damaged))


def test_every_cut_of_a_seal_is_noticed() -> None:
    """Nothing, a null value and each shorter piece are SignatureErrors."""
    sealed = RING.seal("spec", b"body")
    for piece in (None, *(sealed[:end] for end in range(len(sealed)))):
        with pytest.raises(SignatureError):
            RING.open("spec", piece)


def test_parts_cannot_be_moved_across_their_borders() -> None:
    """A letter moved from the namespace to the purpose gives another signature."""
    assert Keyring([OLD], "ab").sign_digest("c", DIGEST) != Keyring([OLD], "a").sign_digest("bc", DIGEST)


def test_rotation_keeps_the_last_key_and_no_more() -> None:
    """A new key signs; what the one before signed still opens; after the next rotation it does not."""
    sealed = RING.seal("spec", b"body")
    once = RING.rotated()
    twice = once.rotated()
    assert once.key_ids[1] == OLD.id
    assert once.open("spec", sealed) == b"body"
    assert RING.key_ids == (OLD.id,)
    with pytest.raises(SignatureError, match="not active"):
        twice.open("spec", sealed)
    with pytest.raises(SignatureError, match="not active"):
        RING.open("spec", once.seal("spec", b"body"))


def test_a_detached_signature_verifies_its_digest_alone() -> None:
    """Another digest, purpose or signature is refused."""
    signature = RING.sign_digest("bundle", DIGEST)
    assert signature.startswith(f"{OLD.id}:")
    RING.verify_digest("bundle", DIGEST, signature)
    for purpose, digest, text in (
        ("spec", DIGEST, signature),
        ("bundle", b"\x01" + DIGEST[1:], signature),
        ("bundle", DIGEST, signature[:-1] + "x"),
        ("bundle", DIGEST, signature[:-2]),
        ("bundle", DIGEST, f"{OLD.id}:"),
        ("bundle", DIGEST, f"{NEW.id}:{signature.partition(':')[2]}"),
        ("bundle", DIGEST, ""),
        ("bundle", DIGEST, None),
    ):
        with pytest.raises(SignatureError):
            RING.verify_digest(purpose, digest, text)
    with pytest.raises(ValueError, match="32 bytes"):
        RING.sign_digest("bundle", b"short")


def test_a_body_can_be_looked_at_without_a_key() -> None:
    """A reader without keys sees the body of a seal, and a SignatureError where there is no seal."""
    assert unverified_body("spec", RING.seal("spec", b"body")) == b"body"
    for other in (None, b"", b"body", RING.seal("spec", b"")[:-1]):
        with pytest.raises(SignatureError):
            unverified_body("spec", other)


def test_keyrings_hold_one_or_two_different_keys() -> None:
    """None, three and twins are refused, and so are odd key ids and short secrets."""
    for keys in ([], [new_key(), new_key(), new_key()], [OLD, Key(OLD.id, NEW.secret)]):
        with pytest.raises(ValueError):
            Keyring(keys, "pelton")
    with pytest.raises(ValueError, match="cannot name a namespace"):
        Keyring([OLD], "a.b")
    with pytest.raises(ValueError, match="no key id"):
        Key("x y", NEW.secret)
    with pytest.raises(ValueError, match="not 32"):
        Key(OLD.id, b"short")


def test_secrets_never_show() -> None:
    """Neither key nor keyring prints its secret."""
    for shown in (repr(OLD), str(OLD), repr(RING), repr([RING])):
        assert OLD.secret.hex() not in shown
        assert repr(OLD.secret) not in shown
        assert OLD.id in shown


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Creating and saving give mode 0600 under any umask, and loading gives the same keys."""
    path = tmp_path / "key.json"
    before = os.umask(0)
    try:
        ring = Keyring.create(path, "pelton")
        assert path.stat().st_mode & 0o777 == 0o600
        ring.rotated().save(path)
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    loaded = Keyring.load(path)
    assert loaded.namespace == "pelton"
    assert loaded.key_ids[1:] == ring.key_ids
    assert loaded.open("spec", ring.seal("spec", b"body")) == b"body"
    assert os.listdir(tmp_path) == ["key.json"]


def test_creating_never_replaces_keys(tmp_path: Path) -> None:
    """A second create fails and leaves the first one's keys: what they signed stays valid."""
    path = tmp_path / "key.json"
    ring = Keyring.create(path, "pelton")
    with pytest.raises(FileExistsError):
        Keyring.create(path, "pelton")
    assert Keyring.load(path).key_ids == ring.key_ids


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o601])
def test_a_file_others_can_read_is_refused_with_the_fix(tmp_path: Path, mode: int) -> None:
    """Any right of group or others is refused, and the message is the command that mends it."""
    path = tmp_path / "key.json"
    Keyring.create(path, "pelton")
    path.chmod(mode)
    with pytest.raises(SignatureError, match=f"chmod 600 {path}"):
        Keyring.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"namespace": "pelton", "keys": []}',
        b'{"namespace": "pelton", "keys": [1]}',
        b'{"namespace": "pelton", "keys": {"id": 1}}',
        b'{"namespace": "pelton", "keys": [{"id": "0123456789abcdef", "secret": "zz"}]}',
        b'{"namespace": "pelton", "keys": [{"id": "0123456789abcdef", "secret": "abcd"}]}',
        b"[" * 50_000,
    ],
)
def test_a_damaged_file_is_a_signature_error(tmp_path: Path, content: bytes) -> None:
    """Whatever is in the file, the error says the file is damaged and quotes nothing of it."""
    path = tmp_path / "key.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SignatureError, match="is damaged") as caught:
        Keyring.load(path)
    assert "abcd" not in str(caught.value)


def test_a_bad_namespace_in_the_file_is_a_signature_error(tmp_path: Path) -> None:
    """The namespace of the file is checked like any other."""
    path = tmp_path / "key.json"
    Keyring.create(path, "pelton")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "namespace": "../x"}))
    with pytest.raises(SignatureError, match="is damaged"):
        Keyring.load(path)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    """No file, a folder and a pipe are SignatureErrors that come at once."""
    with pytest.raises(SignatureError, match="pelton up"):
        Keyring.load(tmp_path / "nothing.json")
    with pytest.raises(SignatureError):
        Keyring.load(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SignatureError, match="no plain file"):
        Keyring.load(tmp_path / "pipe")

"""The store of secrets: encrypted, changed by one at a time, readable after every crash of a rotation."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pelton.core.spec import SecretRef
from pelton.errors import DeployError
from pelton_platform.deploy import secret_store
from pelton_platform.deploy.home import Home
from pelton_platform.deploy.secret_store import SecretError, SecretStore

VALUE = "canary-4711-value"
REF = SecretRef("db", "DB")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home folder."""
    made = Home(tmp_path / "home")
    made.prepare()
    return made


@pytest.fixture
def store(home: Home) -> SecretStore:
    """Its secrets, one of them stored and used by a container."""
    made = SecretStore(home)
    made.store("db", VALUE)
    made.keep({"box": {"DB": VALUE, "OWN": "captured-value"}}, {"box": {"DB": "db"}})
    return made


def test_secret_values_stand_in_no_file(store: SecretStore, home: Home) -> None:
    """Both files are private, and neither has the value in it."""
    for path in home.root.rglob("*"):
        if path.is_file():
            assert VALUE.encode() not in path.read_bytes()
            assert b"captured-value" not in path.read_bytes()
    for path in (home.secrets_file, home.secrets_key_file):
        assert path.stat().st_mode & 0o077 == 0
    assert list(store.names()) == ["db"]
    assert store.users("db") == ["box"]


def test_secret_values_reach_instances(store: SecretStore) -> None:
    """Stored ones as they are now, captured ones as they were at the deploy."""
    refs = (REF, SecretRef("OWN", "OWN"))
    assert store.values_for("box", refs) == {"DB": VALUE, "OWN": "captured-value"}
    store.store("db", "another-value")
    assert store.values_for("box", refs)["DB"] == "another-value"
    assert store.values_for("box", ()) == {}
    with pytest.raises(SecretError, match="the values of db are not on this machine; deploy again"):
        store.values_for("other", (REF,))


def test_secret_that_is_missing_refuses_the_deploy_by_name(store: SecretStore) -> None:
    """All of them, with the commands that store them."""
    needed = {"box": (REF, SecretRef("b", "B")), "other": (SecretRef("a", "A"),)}
    with pytest.raises(DeployError) as caught:
        store.resolve(needed)
    assert str(caught.value) == "the platform has no secret a, b: pelton secret set a; pelton secret set b"
    assert store.resolve({"box": (REF,)}) == {"box": {"DB": VALUE}}


def test_secret_change_is_noticed_at_the_next_deploy(store: SecretStore) -> None:
    """A container whose values are those of its last deploy is not changed."""
    values = {"box": {"DB": VALUE, "OWN": "captured-value"}, "plain": {}}
    assert store.changed(values) == set()
    assert store.changed({"box": {"DB": "new", "OWN": "captured-value"}}) == {"box"}
    assert store.changed({"box": {}}) == {"box"}
    store.keep({"box": {}}, {})
    assert store.changed({"box": {}}) == set()
    assert store.users("db") == []


def test_secret_rotation_keeps_the_values(store: SecretStore, home: Home) -> None:
    """With a new key, and the old one gone."""
    before = home.secrets_key_file.read_text()
    tokens = home.secrets_file.read_text()
    assert store.rotate() == 3
    assert len(home.secrets_key_file.read_text().split()) == 1
    assert home.secrets_key_file.read_text() != before
    assert home.secrets_file.read_text() != tokens
    assert store.values_for("box", (REF,)) == {"DB": VALUE}


@pytest.mark.parametrize("crash_at", [1, 2, 3])
def test_secret_rotation_that_crashes_loses_nothing(
    store: SecretStore, home: Home, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """Whichever of its writes did not happen, all values can be read, and it can be done again."""
    writes = 0

    def crashing(original: object) -> object:
        def write(*arguments: object) -> None:
            nonlocal writes
            writes += 1
            if writes == crash_at:
                raise OSError("the machine went down")
            original(*arguments)  # type: ignore[operator]

        return write

    with monkeypatch.context() as patched:
        for name in ("write_private", "write_json"):
            patched.setattr(secret_store, name, crashing(getattr(secret_store, name)))
        with pytest.raises(OSError, match="went down"):
            store.rotate()
    assert store.values_for("box", (REF,)) == {"DB": VALUE}
    assert store.rotate() == 3
    assert store.values_for("box", (REF,)) == {"DB": VALUE}


def test_secret_keys_that_are_gone_or_open_are_said(store: SecretStore, home: Home) -> None:
    """Without them nothing can be read, and nothing is overwritten."""
    home.secrets_key_file.chmod(0o644)
    with pytest.raises(SecretError, match="chmod 600 it"):
        store.values_for("box", (REF,))
    keys = home.secrets_key_file.read_text()
    home.secrets_key_file.unlink()
    with pytest.raises(SecretError, match="is gone, and secrets cannot be read without it"):
        store.store("other", "value")
    home.secrets_key_file.write_text(secret_store_key())
    home.secrets_key_file.chmod(0o600)
    with pytest.raises(SecretError, match="cannot be read with the keys in") as caught:
        store.values_for("box", (REF,))
    assert VALUE not in str(caught.value)
    home.secrets_key_file.write_text(keys)
    assert store.values_for("box", (REF,)) == {"DB": VALUE}


def secret_store_key() -> str:
    """A key of somebody else."""
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


def test_secret_that_cannot_be_a_variable_is_refused(store: SecretStore) -> None:
    """Zero bytes and what systems refuse; the message has no value in it."""
    for value in ("a\0b", "x" * 200_000):
        with pytest.raises(SecretError, match="cannot be an environment variable") as caught:
            store.store("db", value)
        assert value not in str(caught.value)
    with pytest.raises(SecretError, match="there is no secret nobody"):
        store.remove("nobody")


def test_secrets_are_changed_by_one_at_a_time(home: Home) -> None:
    """Commands at the same time lose nothing of each other."""
    threads = [
        threading.Thread(target=SecretStore(home).store, args=(f"s{number}", f"value-{number}"))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert list(SecretStore(home).names()) == sorted(f"s{number}" for number in range(8))


def test_secrets_are_handed_over_without_a_file() -> None:
    """A child reads them from a descriptor, also more than a pipe holds."""
    import json
    import os

    values = {"A": "x" * 100_000, "B": "ü"}
    handle = secret_store.hand_over(values)
    with os.fdopen(handle) as file:
        assert json.load(file) == values

"""The secrets of a platform: encrypted in one file of its home folder, by keys in another one."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pelton.core.spec import SecretRef
from pelton.errors import DeployError, PeltonError
from pelton_platform.deploy.home import Home, read_json, waited_for, write_json, write_private

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

MAX_VALUE_BYTES = 128 * 1024
"""Systems refuse longer variables."""

_VERSION = 1
_LOCK_S = 20.0


class SecretError(PeltonError):
    """A secret cannot be read or written; the message says why, and never its value."""


class SecretStore:
    """The secrets of one home folder. Values are decrypted when they are asked for, and never kept.

    Args:
        home: The home folder.
    """

    def __init__(self, home: Home) -> None:
        self._home = home

    def names(self) -> dict[str, int]:
        """Return the names of the stored secrets, each with the time of its last change in milliseconds."""
        return {name: int(entry["changed_ms"]) for name, entry in sorted(self._read()["stored"].items())}

    def store(self, name: str, value: str) -> None:
        """Store a value under a name, over the one it had.

        Raises:
            SecretError: The value cannot be one of an environment variable.
        """
        if "\0" in value or len(value.encode()) > MAX_VALUE_BYTES:
            raise SecretError(
                f"the value of {name} cannot be an environment variable: it has a zero byte, or more than "
                f"{MAX_VALUE_BYTES // 1024} KiB"
            )
        with self._changing() as data:
            token = self._cipher().encrypt(value.encode()).decode()
            data["stored"][name] = {"value": token, "changed_ms": time.time_ns() // 1_000_000}

    def value(self, name: str) -> str:
        """Return the value of a stored secret.

        Raises:
            DeployError: There is none of that name.
        """
        return self.resolve({"": [SecretRef(name, name)]})[""][name]

    def remove(self, name: str) -> None:
        """Forget a secret.

        Raises:
            SecretError: There is none of that name.
        """
        with self._changing() as data:
            if data["stored"].pop(name, None) is None:
                raise SecretError(f"there is no secret {name}; `pelton secret ls` lists them")

    def users(self, name: str) -> list[str]:
        """Return the containers that were deployed with a stored secret."""
        found = self._read()["containers"].items()
        return sorted(
            container for container, used in found if any(one["name"] == name for one in used.values())
        )

    def rotate(self) -> int:
        """Make a new key, write every value anew with it, and drop the old one; returns how many values."""
        from cryptography.fernet import Fernet

        with self._changing() as data:
            # Both keys are there while values are of either: a crash in between loses nothing.
            self._write_keys([Fernet.generate_key().decode(), *self._keys()])
            cipher, count = self._cipher(), 0
            for entry in _entries(data):
                entry["value"] = cipher.rotate(entry["value"].encode()).decode()
                count += 1
            write_json(self._home.secrets_file, data)
            self._write_keys(self._keys()[:1])
        return count

    def resolve(self, needed: Mapping[str, Iterable[SecretRef]]) -> dict[str, dict[str, str]]:
        """Return the stored values that containers need, by container and variable.

        Raises:
            DeployError: Some are not stored; the message names them all.
        """
        stored = self._read()["stored"]
        missing = sorted({ref.name for refs in needed.values() for ref in refs if ref.name not in stored})
        if missing:
            commands = "; ".join(f"pelton secret set {name}" for name in missing)
            raise DeployError(f"the platform has no secret {', '.join(missing)}: {commands}")
        return {
            container: {ref.env: self._open(stored[ref.name], ref.name) for ref in refs}
            for container, refs in needed.items()
        }

    def changed(self, values: Mapping[str, Mapping[str, str]]) -> set[str]:
        """Return the containers whose values are not those of their last deploy."""
        containers = self._read()["containers"]
        return {
            name
            for name, mine in values.items()
            if dict(mine) != {env: self._open(one, env) for env, one in containers.get(name, {}).items()}
        }

    def keep(self, values: Mapping[str, Mapping[str, str]], stored: Mapping[str, Mapping[str, str]]) -> None:
        """Keep what containers were deployed with.

        Args:
            values: Container to variable to value.
            stored: Container to variable to the name of the stored secret it comes from.
        """
        known = self._read()["containers"]
        if not any(mine or name in known for name, mine in values.items()):
            return
        with self._changing() as data:
            cipher = self._cipher()
            for container, mine in values.items():
                names = stored.get(container, {})
                entries = {
                    env: {"value": cipher.encrypt(value.encode()).decode(), "name": names.get(env, "")}
                    for env, value in mine.items()
                }
                data["containers"].pop(container, None)
                if entries:
                    data["containers"][container] = entries

    def values_for(self, container: str, refs: Iterable[SecretRef]) -> dict[str, str]:
        """Return the values for an instance of a container: stored ones as they are now.

        Raises:
            SecretError: Some are not on this machine; the message names them.
        """
        refs = tuple(refs)
        if not refs:
            return {}
        data = self._read()
        used = data["containers"].get(container, {})
        missing = [ref.name for ref in refs if ref.env not in used]
        if missing:
            raise SecretError(f"the values of {', '.join(missing)} are not on this machine; deploy again")
        found = {}
        for ref in refs:
            entry = used[ref.env]
            found[ref.env] = self._open(data["stored"].get(entry["name"], entry), ref.name)
        return found

    # --- files ---

    def _read(self) -> dict[str, Any]:
        data = read_json(self._home.secrets_file)
        if data is None:
            return {"version": _VERSION, "stored": {}, "containers": {}}
        if data.get("version") != _VERSION:
            raise SecretError(
                f"{self._home.secrets_file} was written by another version of Pelton; remove it, set "
                "secrets again and deploy again"
            )
        return data

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """Give what is stored, and write it when the block ends well; one process at a time."""
        busy = "another command changes secrets; try again in a moment"
        with waited_for(self._home.secrets_lock, _LOCK_S, lambda: SecretError(busy)):
            data = self._read()
            yield data
            write_json(self._home.secrets_file, data)

    def _open(self, entry: Mapping[str, Any], name: str) -> str:
        from cryptography.fernet import InvalidToken

        try:
            return self._cipher().decrypt(str(entry["value"]).encode()).decode()
        except InvalidToken:
            raise SecretError(
                f"the secret {name} cannot be read with the keys in {self._home.secrets_key_file}: "
                "put the right ones there, or set it again"
            ) from None

    def _cipher(self) -> MultiFernet:
        # Late: few containers have secrets, and the library takes its time.
        from cryptography.fernet import Fernet, MultiFernet

        keys = self._keys()
        if not keys:
            keys = [Fernet.generate_key().decode()]
            self._write_keys(keys)
        return MultiFernet([Fernet(key) for key in keys])

    def _keys(self) -> list[str]:
        path = self._home.secrets_key_file
        try:
            mode = path.stat().st_mode
            text = path.read_text()
        except FileNotFoundError:
            if self._home.secrets_file.exists() and any(_entries(self._read())):
                raise SecretError(
                    f"{path} is gone, and secrets cannot be read without it; bring it back"
                ) from None
            return []
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SecretError(f"others may read {path}, which holds the keys of all secrets: chmod 600 it")
        return text.split()

    def _write_keys(self, keys: list[str]) -> None:
        write_private(self._home.secrets_key_file, "\n".join(keys) + "\n")


def _entries(data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from data["stored"].values()
    for used in data["containers"].values():
        yield from used.values()


def hand_over(values: Mapping[str, str]) -> int:
    """Return a descriptor from which a child reads values that stand in no file; the caller closes it."""
    data = json.dumps(dict(values)).encode()
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("pelton-secrets")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.write(handle, data)
    os.lseek(handle, 0, os.SEEK_SET)
    return handle

"""Secrets: how a declaration names a value that is never written into a spec or a topic."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from enum import Enum

from pelton.core.spec import SecretRef
from pelton.errors import DefinitionError, DeployError
from pelton.policies import check_variable, checked_name


class SecretSource(Enum):
    """Where the value of a secret comes from."""

    STORE = "store"
    """The secret store of the platform."""
    ENVIRONMENT = "environment"
    """The environment of the process that deploys."""


class Secret:
    """A value given to a container as an environment variable, and to nobody else.

    `Secret(name="db-password")` names one in the store of the platform (`pelton secret set db-password`); it
    arrives as `DB_PASSWORD`, or in the variable that `env` names.
    `Secret.from_env("API_KEY")` is read from the environment of `pelton deploy` and arrives as `API_KEY`.

    Attributes:
        name: its name.
        env: the variable it arrives in.
        source: where its value comes from.

    Raises:
        DefinitionError: the name is none, or `env` cannot name a variable.
    """

    __slots__ = ("env", "name", "source")

    name: str
    env: str
    source: SecretSource

    def __init__(self, name: str, env: str | None = None) -> None:
        self.name = checked_name("secret", name)
        if env is not None:
            check_variable(f"Secret({name!r}, env=...)", env)
        self.env = re.sub(r"[^A-Z0-9_]", "_", name.upper()) if env is None else env
        self.source = SecretSource.STORE

    @classmethod
    def from_env(cls, name: str) -> Secret:
        """A secret whose value is that of the variable `name` where `pelton deploy` runs.

        Raises:
            DefinitionError: `name` cannot name a variable.
        """
        if not isinstance(name, str):
            raise DefinitionError(f"Secret.from_env takes the name of a variable, not {type(name).__name__}")
        check_variable("Secret.from_env", name)
        secret = cls.__new__(cls)
        secret.name = secret.env = name
        secret.source = SecretSource.ENVIRONMENT
        return secret

    @property
    def ref(self) -> SecretRef:
        """What a spec says of it: name and variable, never the value."""
        return SecretRef(self.name, self.env)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self.name, self.env, self.source) == (
            other.name,
            other.env,
            other.source,
        )

    def __hash__(self) -> int:
        return hash((self.name, self.env, self.source))

    def __repr__(self) -> str:
        """Its declaration; a secret holds no value that could be shown."""
        if self.source is SecretSource.ENVIRONMENT:
            return f"Secret.from_env({self.name!r})"
        if self.env != Secret(self.name).env:
            return f"Secret(name={self.name!r}, env={self.env!r})"
        return f"Secret(name={self.name!r})"


def checked_secrets(owner: str, secrets: object) -> tuple[Secret, ...]:
    """The secrets of a declaration.

    Raises:
        DefinitionError: no list of `Secret`, or two that arrive in one variable.
    """
    if secrets is None:
        return ()
    if isinstance(secrets, (str, Secret)) or not isinstance(secrets, Iterable):
        raise DefinitionError(f"{owner}: secrets is a list of Secret, e.g. [Secret.from_env('API_KEY')]")
    checked: dict[str, Secret] = {}
    for secret in secrets:
        if not isinstance(secret, Secret):
            raise DefinitionError(
                f"{owner}: secrets holds Secret, not {type(secret).__name__}; write Secret.from_env(NAME)"
            )
        if secret.env in checked:
            raise DefinitionError(f"{owner}: two secrets arrive in the variable {secret.env}; drop one")
        checked[secret.env] = secret
    return tuple(checked.values())


def captured(
    owner: str, secrets: Iterable[Secret], environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Reads the values at deploy.

    Args:
        owner: the container that asks, for the message.
        secrets: what it declares.
        environ: the environment of the deploy; None for that of the process.

    Returns:
        Variable to value, of those that come from the environment. Keep it out of logs, specs and topics.

    Raises:
        DeployError: a variable that is not set.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, str] = {}
    for secret in secrets:
        if secret.source is SecretSource.STORE:
            continue
        value = environ.get(secret.name)
        if value is None:
            raise DeployError(
                f"{owner} asks for {secret!r}, and {secret.name} is not set here; "
                f"export {secret.name} and deploy again"
            )
        values[secret.env] = value
    return values

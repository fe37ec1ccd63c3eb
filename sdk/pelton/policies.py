"""What the values of declarations may be: names, counts, durations, variables; refusals say the fix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final

from pelton.errors import DefinitionError, UnsupportedOption
from pelton.protocol.topics import check_name

MAX_KEY_BYTES: Final = 512
"""Longest ordering key, in UTF-8."""

MAX_INSTANCES: Final = 1000
"""Invocation topics have a partition per instance at least; more than this is a mistake, not a wish."""

MAX_CONCURRENT_REQUESTS: Final = 10_000
"""Slots of one executor; each may be a thread."""

MAX_TIMEOUT: Final = timedelta(days=7)
"""As long as cancellations are kept: the longest a call may take."""


def checked_name(kind: str, name: object) -> str:
    """A name for a function or container.

    Raises:
        DefinitionError: it is none; the message says what names look like.
    """
    if not isinstance(name, str):
        raise DefinitionError(f"the name of a {kind} is a str, not {_type(name)}")
    try:
        return check_name(kind, name)
    except ValueError as error:
        raise DefinitionError(f"{error}; give it another one with name=...") from None


def checked_count(owner: str, keyword: str, value: object, *, low: int, high: int) -> int:
    """A whole number between `low` and `high`, both included.

    Raises:
        DefinitionError: it is a bool, no int, NaN, or outside of the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise DefinitionError(f"{owner}: {keyword} is a whole number, not {value!r}")
    if not low <= value <= high:
        raise DefinitionError(f"{owner}: {keyword} is between {low} and {high}, not {value}")
    return value


def checked_bounds(owner: str, low: int, high: int) -> None:
    """Scaling bounds.

    Raises:
        DefinitionError: more instances wanted than allowed.
    """
    if low > high:
        raise DefinitionError(
            f"{owner}: min_instances={low} is above max_instances={high}; "
            "raise max_instances or lower min_instances"
        )


def checked_timeout(owner: str, value: object) -> int:
    """A time limit as milliseconds; 0 for None, which means no limit.

    Args:
        owner: what declares it, for the message.
        value: a `timedelta`, or seconds as int or float.

    Raises:
        DefinitionError: it is not positive, not finite, above 7 days, or of another type.
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):
        raise DefinitionError(f"{owner}: timeout is a timedelta or seconds, not {value!r}")
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not math.isfinite(seconds) or not 0.001 <= seconds <= MAX_TIMEOUT.total_seconds():
        raise DefinitionError(
            f"{owner}: timeout is between 1 ms and {MAX_TIMEOUT.days} days, not {value!r}; "
            "leave it out for no limit"
        )
    return round(seconds * 1000)


def checked_env(owner: str, env: object) -> tuple[tuple[str, str], ...]:
    """Environment variables as sorted pairs.

    Raises:
        DefinitionError: not a mapping of str to str, or a name no process can have.
    """
    if env is None:
        return ()
    if not isinstance(env, Mapping):
        raise DefinitionError(f"{owner}: env is a dict of variables, not {_type(env)}")
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise DefinitionError(
                f"{owner}: env maps str to str, not {name!r} to {value!r}; write str(...) around the value"
            )
        check_variable(owner, name)
        if "\0" in value:
            raise DefinitionError(f"{owner}: the value of {name} contains a NUL character")
    return tuple(sorted(env.items()))


def check_variable(owner: str, name: str) -> None:
    """Refuses what cannot name an environment variable.

    Raises:
        DefinitionError: empty, or contains `=` or NUL.
    """
    if not name or "=" in name or "\0" in name:
        raise DefinitionError(f"{owner}: {name!r} cannot name an environment variable")


def checked_words(owner: str, keyword: str, values: object) -> tuple[str, ...]:
    """A sequence of str, e.g. tags or a command.

    Raises:
        DefinitionError: one str instead of a list of them, or something else in it.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise DefinitionError(f'{owner}: {keyword} is a list of str like ["a", "b"], not {values!r}')
    words = tuple(values)
    for word in words:
        if not isinstance(word, str) or not word or "\0" in word:
            raise DefinitionError(f"{owner}: {keyword} holds non-empty str, not {word!r}")
    return words


def checked_text(owner: str, keyword: str, value: object) -> str:
    """A text, "" for None.

    Raises:
        DefinitionError: not a str.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DefinitionError(f"{owner}: {keyword} is a str, not {_type(value)}")
    return value


def checked_key(owner: str, key: object) -> str:
    """An ordering key: a text that is not empty, or a whole number, of at most 512 bytes.

    Raises:
        DefinitionError: it is none.
    """
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not isinstance(key, str) or not key:
        raise DefinitionError(f"{owner}: key is a text or a whole number, e.g. a customer id, not {key!r}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise DefinitionError(f"{owner}: key {key!r} is no text that UTF-8 knows") from None
    if size > MAX_KEY_BYTES:
        raise DefinitionError(f"{owner}: key has {size} bytes, more than {MAX_KEY_BYTES}")
    return key


def refuse_unsupported(owner: str, given: Mapping[str, object]) -> None:
    """Refuses keywords whose meaning this version does not have.

    Args:
        owner: what declares them, for the message.
        given: keyword to value; None means not given.

    Raises:
        UnsupportedOption: one of them is given; the message names it.
    """
    for keyword, value in given.items():
        if value is not None:
            raise UnsupportedOption(
                f"{owner}: this version of Pelton does not have {keyword}= yet, and ignores nothing; "
                "leave it out"
            )


def _type(value: object) -> str:
    return type(value).__name__

"""What the values of declarations may be: names, counts, durations, variables; refusals say the fix."""

from __future__ import annotations

import math
import re
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

MIN_CPU: Final = 0.01
"""Cores; with less of one nothing would ever load."""

MAX_CPU: Final = 1024
"""Cores of the largest machines."""

MIN_MEMORY: Final = 32 * 1024**2
"""Bytes; a Python that has loaded the SDK takes about as much."""

MAX_MEMORY: Final = 64 * 1024**4
"""Bytes; more is a slip of the unit."""

MAX_GPUS: Final = 64
"""GPUs of one machine."""

_CPU: Final = re.compile(r"(\d+(?:\.\d+)?)(m)?")
_MEMORY: Final = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|K|M|G|T)?")
_GPU: Final = re.compile(r"([1-9]\d?)|([A-Za-z][A-Za-z0-9_-]{0,31}(:[1-9]\d?)?)")
_UNITS: Final = {
    "": 1,
    **{unit + "i": 1024**power for power, unit in enumerate("KMGT", 1)},
    **{unit: 1000**power for power, unit in enumerate("KMGT", 1)},
    "k": 1000,
}

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


def checked_cpu(owner: str, value: object) -> int:
    """Cores as thousandths; 0 for None, which means no limit.

    Args:
        owner: what declares it, for the message.
        value: cores as int or float, or as text: "1", "0.5", "500m".

    Raises:
        DefinitionError: it is none, or not between 0.01 and 1,024 cores.
    """
    if value is None:
        return 0
    found = _CPU.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        cores = float(found[1]) / (1000 if found[2] else 1)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        cores = float(value)
    else:
        cores = math.nan
    if not MIN_CPU <= cores <= MAX_CPU:
        raise DefinitionError(
            f'{owner}: cpu is cores, like 2, 0.5, "1" or "500m", between {MIN_CPU} and {MAX_CPU}, '
            f"not {value!r}"
        )
    return round(cores * 1000)


def checked_memory(owner: str, value: object) -> int:
    """Memory as bytes; 0 for None, which means no limit.

    Args:
        owner: what declares it, for the message.
        value: bytes as int, or a text with a unit: "512Mi", "8Gi" (powers of 1024), "512M", "8G" (of 1000).

    Raises:
        DefinitionError: it is none, or below 32 MiB, in which no Python loads anything.
    """
    if value is None:
        return 0
    found = _MEMORY.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        size = int(float(found[1]) * _UNITS[found[2] or ""])
    else:
        size = int(value) if isinstance(value, int) and not isinstance(value, bool) else 0
    if not MIN_MEMORY <= size <= MAX_MEMORY:
        raise DefinitionError(
            f'{owner}: memory is bytes, or a size like "512Mi" or "8Gi", from 32Mi to 64Ti, not {value!r}'
        )
    return size


def checked_gpu(owner: str, value: object) -> str:
    """What is asked of a GPU, as text: a number of them, or a kind with a number, `A100:2`; "" for None.

    Raises:
        DefinitionError: it is neither.
    """
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_GPUS:
        return str(value)
    if isinstance(value, str) and _GPU.fullmatch(value):
        return value
    raise DefinitionError(
        f'{owner}: gpu is how many, like 1, or a kind, like "A100" or "A100:2", not {value!r}'
    )


def checked_port(owner: str, value: object) -> int:
    """A TCP port; 0 for None.

    Raises:
        DefinitionError: it is none.
    """
    return 0 if value is None else checked_count(owner, "port", value, low=1, high=65_535)


def checked_timeout(owner: str, value: object, keyword: str = "timeout") -> int:
    """A time limit as milliseconds; 0 for None, which means no limit.

    Args:
        owner: what declares it, for the message.
        value: a `timedelta`, or seconds as int or float.
        keyword: what it is called.

    Raises:
        DefinitionError: it is not positive, not finite, above 7 days, or of another type.
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):
        raise DefinitionError(f"{owner}: {keyword} is a timedelta or seconds, not {value!r}")
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not math.isfinite(seconds) or not 0.001 <= seconds <= MAX_TIMEOUT.total_seconds():
        raise DefinitionError(
            f"{owner}: {keyword} is between 1 ms and {MAX_TIMEOUT.days} days, not {value!r}; "
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

"""Hypothesis strategies for everything that goes over the wire: records, headers, values of every type."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from datetime import UTC, timedelta, timezone
from functools import reduce
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from pelton.core.call import (
    Cancellation,
    DeadLetter,
    Failure,
    InputHeaders,
    Invocation,
    Origin,
    Result,
    ResultKind,
    Timer,
    Token,
)
from pelton.core.limits import Lease, LimitRequest
from pelton.core.retry import RetrySpec
from pelton.core.spec import (
    ContainerSpec,
    FunctionKind,
    FunctionSpec,
    ImageSpec,
    InstanceStatus,
    LagSpec,
    LogRecord,
    ParameterSpec,
    ProbeSpec,
    SecretRef,
)
from pelton.protocol.history import append_history

counts = st.one_of(st.integers(0, 200), st.integers(0, 2**63 - 1), st.integers(2**40, 2**41))
u32 = st.integers(0, 2**32 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
blobs = st.binary(max_size=300)
call_ids = st.binary(min_size=16, max_size=16)
names = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,62}", fullmatch=True)
tuples_of_texts = st.lists(texts, max_size=4).map(tuple)

failures = st.builds(Failure, texts, texts, texts, texts, st.booleans(), counts)
tokens = st.builds(Token, u32, counts, st.integers(0, 1), u32, counts)
invocations = st.builds(
    Invocation,
    call_ids,
    texts,
    blobs,
    st.none() | counts,
    counts,
    st.none() | counts,
    st.none() | call_ids,
    st.lists(call_ids, max_size=64).map(tuple),
    st.none() | texts,
    st.none() | texts,
    st.none() | texts,
    st.sampled_from(Origin),
    st.none() | texts,
    counts,
)
plain_invocations = st.builds(Invocation, call_ids, names, blobs, submitted_ms=counts)
results = st.builds(
    Result,
    call_ids,
    tokens,
    st.sampled_from(ResultKind),
    counts,
    st.lists(blobs, max_size=5).map(tuple),
    st.none() | blobs,
    st.none() | failures,
    counts,
    counts,
    texts,
    texts,
)
histories = st.lists(failures, max_size=3).map(lambda some: reduce(append_history, some, b""))
_attempts = st.integers(1, 2**32 - 1)
_ancestries = st.lists(call_ids, max_size=64).map(b"".join)
_routing = (counts, counts, histories, _ancestries)
input_headers = st.one_of(
    st.builds(InputHeaders, call_ids, names, _attempts, st.none(), st.just(0), *_routing),
    st.builds(InputHeaders, call_ids, names, _attempts, u32, u32, *_routing),
)
dead_letters = st.builds(
    DeadLetter,
    st.none() | call_ids,
    texts,
    failures,
    texts,
    counts,
    counts,
    counts,
    st.lists(failures, max_size=3).map(tuple),
    st.none() | blobs,
    st.none() | blobs,
    st.lists(st.tuples(texts, st.none() | blobs), max_size=4).map(tuple),
    st.booleans(),
)
parameters = st.builds(ParameterSpec, texts, texts, st.booleans())
retries = st.builds(
    RetrySpec, counts, st.floats(1, 10), counts, st.floats(0, 1), st.lists(texts, max_size=3).map(tuple)
)
function_specs = st.builds(
    FunctionSpec,
    names,
    counts,
    names,
    st.sampled_from(FunctionKind),
    st.lists(parameters, max_size=3).map(tuple),
    texts,
    texts,
    texts,
    counts,
    counts,
    counts,
    texts,
    texts,
    tuples_of_texts,
    counts,
    texts,
    texts,
    st.sampled_from(("none", "key")),
    st.none() | retries,
    counts,
)
timers = st.builds(
    Timer,
    counts,
    texts,
    st.integers(0, 2**31 - 1),
    blobs,
    st.none() | blobs,
    st.lists(st.tuples(texts, blobs), max_size=4).map(tuple),
)
limit_requests = st.builds(LimitRequest, texts, texts, counts, counts, counts, counts, counts, counts, counts)
leases = st.builds(
    Lease,
    texts,
    texts,
    *[counts] * 8,
    st.lists(counts, max_size=5).map(tuple),
)
images = st.builds(
    ImageSpec, st.none() | texts, st.lists(st.tuples(texts, tuples_of_texts), max_size=3).map(tuple), texts
)
probes = st.builds(
    ProbeSpec,
    st.sampled_from(("http", "tcp", "exec")),
    counts,
    texts,
    tuples_of_texts,
    counts,
    counts,
    counts,
)
container_specs = st.builds(
    ContainerSpec,
    names,
    counts,
    tuples_of_texts,
    texts,
    images,
    counts,
    counts,
    texts,
    st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    st.lists(st.builds(SecretRef, texts, texts), max_size=3).map(tuple),
    counts,
    counts,
    counts,
    tuples_of_texts,
    counts,
    texts,
    counts,
    st.none() | probes,
    st.none() | probes,
    st.none() | st.builds(LagSpec, texts, texts, counts),
    st.none() | counts,
)
instance_statuses = st.builds(
    InstanceStatus,
    texts,
    texts,
    texts,
    texts,
    counts,
    counts,
    tuples_of_texts,
    counts,
    counts,
    st.lists(counts, max_size=4).map(tuple),
    counts,
    counts,
    texts,
)
logs = st.builds(
    LogRecord,
    counts,
    texts,
    texts,
    texts,
    counts,
    st.none() | call_ids,
    counts,
    texts,
    texts,
    texts,
    texts,
    st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    counts,
)
cancellations = st.builds(Cancellation, call_ids, counts, texts)


class Colour(enum.Enum):
    """An Enum that travels."""

    RED = "r"
    GREEN = ("g", 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """A dataclass that travels."""

    x: Any
    y: Any = None
    colour: Colour = Colour.RED


zones = st.one_of(
    st.none(),
    st.just(UTC),
    st.builds(
        timezone, st.integers(-86_399_999_999, 86_399_999_999).map(lambda us: timedelta(microseconds=us))
    ),
    st.sampled_from([ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("UTC")]),
)
hashable_atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(allow_nan=False),
    texts,
    blobs,
    st.complex_numbers(allow_nan=False),
    st.datetimes(timezones=zones, allow_imaginary=True),
    st.dates(),
    st.times(timezones=st.none() | st.just(UTC)),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.sampled_from(Colour),
)
hashables = st.recursive(
    hashable_atoms,
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
    max_leaves=6,
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(texts, inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=4),
        st.sets(hashables, max_size=4),
        st.builds(Point, inner, inner, st.sampled_from(Colour)),
    )


values = st.recursive(hashables | blobs.map(bytearray), _containers, max_leaves=12)
"""Any value that travels, without NaN: it compares equal to what comes back."""


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal, of the same types throughout, in the same order where there is one."""
    if type(left) is not type(right):
        return False
    compare: Callable[[Any, Any], bool] | None = _COMPARE.get(type(left))
    if compare is not None:
        return compare(left, right)
    if hasattr(left, "tzinfo"):
        return (repr(left), left.fold) == (repr(right), right.fold)
    return bool(repr(left) == repr(right))


def _same_items(left: Any, right: Any) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def _same_sets(left: Any, right: Any) -> bool:
    # 1, True and 1.0 are equal: each item must find one of its own type.
    return left == right and sorted(map(_typed, left)) == sorted(map(_typed, right))


def _typed(value: Any) -> str:
    if isinstance(value, frozenset):
        return f"{type(value)}{sorted(map(_typed, value))}"
    if isinstance(value, tuple):
        return f"{type(value)}{[_typed(item) for item in value]}"
    return f"{type(value)}{value!r}"


_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    list: _same_items,
    tuple: _same_items,
    set: _same_sets,
    frozenset: _same_sets,
    dict: lambda left, right: (
        _same_items(list(left), list(right)) and _same_items([*left.values()], [*right.values()])
    ),
    Point: lambda left, right: _same_items((left.x, left.y, left.colour), (right.x, right.y, right.colour)),
}

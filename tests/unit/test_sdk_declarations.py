"""Declarations: what functions and containers may say, and that every refusal names the fix."""

from __future__ import annotations

import functools
import types
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest

from pelton import Container, Image, Secret, function
from pelton.core.spec import FunctionKind
from pelton.decorators import Function
from pelton.errors import DefinitionError, UnsupportedOption


def classify(text: str, limit: int = 3) -> str:
    """Labels a text.

    More about it.
    """
    return text[:limit]


async def aclassify(text: str) -> str:
    """An async function."""
    return text


def count(n: int) -> Iterator[int]:
    """A generator."""
    yield from range(n)


async def acount(n: int) -> AsyncIterator[int]:
    """An async generator."""
    for number in range(n):
        yield number


def declared(**keywords: Any) -> Function[..., Any, Any, Any]:
    """`classify`, declared with these keywords."""
    made: Function[..., Any, Any, Any] = function(**keywords)(classify)
    return made


def test_a_bare_decorator_takes_everything_from_the_function() -> None:
    """Name, description, signature and a container of its own."""
    made = function(classify)
    assert (made.name, made.module, made.qualname) == ("classify", __name__, "classify")
    assert made.description == "Labels a text."
    assert made.__doc__ == classify.__doc__
    assert made.fn is classify
    assert made.kind is FunctionKind.SYNC
    assert (made.container.name, made.container.min_instances, made.container.max_instances) == (
        "classify",
        0,
        1,
    )
    assert [parameter.name for parameter in made.spec_parts.parameters] == ["text", "limit"]


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (classify, FunctionKind.SYNC),
        (aclassify, FunctionKind.ASYNC),
        (count, FunctionKind.GENERATOR),
        (acount, FunctionKind.ASYNC_GENERATOR),
    ],
)
def test_all_four_kinds_are_told_apart(fn: Any, kind: FunctionKind) -> None:
    """How a function is called decides whether it streams."""
    assert function(fn).kind is kind


def test_keywords_reach_the_declaration() -> None:
    """Every keyword with a meaning ends up where it belongs."""
    made = declared(
        name="classify-ticket",
        image=Image.debian_slim("3.12"),
        env={"B": "2", "A": "1"},
        secrets=[Secret.from_env("API_KEY")],
        min_instances=1,
        max_instances=3,
        max_concurrent_requests=8,
        timeout=timedelta(seconds=2.5),
        on_stream_failure="fail",
        ordering="none",
        description="What it does",
        tags=["text", "tickets"],
    )
    assert (made.name, made.timeout_ms, made.description, made.tags) == (
        "classify-ticket",
        2500,
        "What it does",
        ("text", "tickets"),
    )
    container = made.container
    assert (container.name, container.env) == ("classify-ticket", (("A", "1"), ("B", "2")))
    assert (container.min_instances, container.max_instances, container.max_concurrent_requests) == (1, 3, 8)
    assert container.secrets == (Secret.from_env("API_KEY"),)
    assert container.image == Image.debian_slim("3.12")


def test_functions_share_a_container() -> None:
    """`container=` names the host of several functions."""
    shared = Container(name="workers", max_instances=2)
    assert declared(container=shared).container is shared


def test_local_runs_the_bare_function() -> None:
    """Nothing is sent, and what comes back is what the function returns."""
    assert function(classify).local("hello", limit=2) == "he"
    assert list(function(count).local(3)) == [0, 1, 2]
    coroutine = function(aclassify).local("x")
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    assert ended.value.value == "x"


@pytest.mark.parametrize(
    "keywords",
    [
        {"concurrency": 2},
        {"rate_limit": "10/s"},
        {"on_stream_failure": "resume"},
        {"ordering": "fifo"},
        {"schedule": "1m"},
        {"trigger": object()},
    ],
)
def test_keywords_without_a_meaning_are_refused(keywords: dict[str, Any]) -> None:
    """Nothing is accepted and ignored; the message names the keyword."""
    with pytest.raises(UnsupportedOption, match=next(iter(keywords))):
        function(**keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {"image": Image.debian_slim()},
        {"cpu": 1},
        {"memory": "1Gi"},
        {"gpu": 1},
        {"env": {}},
        {"secrets": []},
        {"min_instances": 1},
        {"max_instances": 1},
        {"max_concurrent_requests": 1},
    ],
)
def test_a_container_and_what_makes_one_exclude_each_other(keywords: dict[str, Any]) -> None:
    """A TypeError that names both."""
    with pytest.raises(TypeError, match=f"container= and {next(iter(keywords))}= exclude each other"):
        function(container=Container(name="c"), **keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"name": "has.dot"}, "a name is a letter"),
        ({"name": ""}, "a name is a letter"),
        ({"name": "x" * 64}, "a name is a letter"),
        ({"name": 3}, "is a str, not int"),
        ({"min_instances": True}, "whole number, not True"),
        ({"min_instances": -1}, "between 0 and"),
        ({"max_instances": 0}, "between 1 and"),
        ({"max_instances": 1.5}, "whole number, not 1.5"),
        ({"max_instances": float("nan")}, "whole number, not nan"),
        ({"max_instances": 100_000}, "between 1 and 1000"),
        ({"min_instances": 3, "max_instances": 2}, "raise max_instances"),
        ({"max_concurrent_requests": 0}, "between 1 and"),
        ({"timeout": 0}, "leave it out for no limit"),
        ({"timeout": -1}, "leave it out for no limit"),
        ({"timeout": float("nan")}, "leave it out for no limit"),
        ({"timeout": float("inf")}, "leave it out for no limit"),
        ({"timeout": True}, "a timedelta or seconds"),
        ({"timeout": "5s"}, "a timedelta or seconds"),
        ({"env": {"A": 1}}, "write str"),
        ({"env": [("A", "1")]}, "env is a dict"),
        ({"env": {"A=B": "1"}}, "cannot name an environment variable"),
        ({"env": {"A": "\0"}}, "NUL"),
        ({"secrets": ["KEY"]}, "write Secret.from_env"),
        ({"secrets": "KEY"}, "a list of Secret"),
        ({"secrets": [Secret("api-key"), Secret("api_key")]}, "arrive in the variable API_KEY"),
        ({"env": {"K": "1"}, "secrets": [Secret.from_env("K")]}, "by env and by a secret"),
        ({"image": "python:3.12"}, "image is an Image"),
        ({"container": "workers"}, "container is a Container"),
        ({"container": Container(name="p", entrypoint=["true"])}, "is a plain program"),
        ({"tags": "text"}, "a list of str"),
        ({"tags": [1]}, "non-empty str"),
        ({"description": 5}, "description is a str"),
    ],
)
def test_wrong_values_are_refused_with_the_fix(keywords: dict[str, Any], message: str) -> None:
    """At definition, as a TypeError, before anything is deployed."""
    with pytest.raises(DefinitionError, match=message):
        declared(**keywords)
    with pytest.raises(TypeError):
        declared(**keywords)


class Thing:
    """Something that is no function."""

    def method(self) -> None:
        """A method."""

    def __call__(self) -> None:
        """A callable object."""


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (Thing, "is a class"),
        (Thing().method, "is a method"),
        (Thing.method, "defined in a class"),
        (staticmethod(classify), "is a method"),
        (lambda x: x, "is a lambda"),
        (functools.partial(classify, "x"), "functools.partial"),
        (Thing(), "no Python function"),
        (len, "no Python function"),
        (3, "no Python function"),
        (function(name="once")(classify), "already"),
    ],
)
def test_what_is_no_plain_function_is_refused(fn: Any, message: str) -> None:
    """Executors find functions by module and name; the message says what to write instead."""
    with pytest.raises(DefinitionError, match=message):
        function(fn)


def test_two_functions_cannot_share_a_name() -> None:
    """Within one process; the same one again replaces itself: a cell run twice, a script that is imported."""
    first = function(name="shared-name")(classify)
    again = function(name="shared-name")(classify)
    assert first is not again
    twin = types.FunctionType(classify.__code__, {"__name__": "__main__"}, "classify")
    assert twin.__module__ == "__main__"
    third: object = function(name="shared-name")(twin)
    assert third is not again
    with pytest.raises(DefinitionError, match=r"two functions are named 'shared-name'.*another name="):
        function(name="shared-name")(count)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"entrypoint": "python main.py"}, "a list of str"),
        ({"entrypoint": []}, "entrypoint is empty"),
        ({"entrypoint": ["python", ""]}, "non-empty str"),
        ({"entrypoint": ["x"], "max_concurrent_requests": 2}, "bounds the calls of functions"),
    ],
)
def test_programs_are_checked(keywords: dict[str, Any], message: str) -> None:
    """A container with an entrypoint is a plain program."""
    with pytest.raises(DefinitionError, match=message):
        Container(name="c", **keywords)


def test_a_program_has_one_instance_unless_told() -> None:
    """Nothing waits for a plain program, so no backlog would ever start it."""
    assert Container(name="c", entrypoint=["true"]).min_instances == 1
    assert Container(name="c", entrypoint=["true"], min_instances=3).max_instances == 3
    assert Container(name="c").min_instances == 0


def test_options_are_refused_unless_they_mean_something() -> None:
    """A key needs a function with key order; all others are for other versions."""
    made = function(name="optional")(classify)
    assert made.options().name == "optional"
    with pytest.raises(UnsupportedOption, match="delay"):
        made.options(delay=None)
    with pytest.raises(UnsupportedOption, match='give it ordering="key"'):
        made.options(key="k")


@pytest.mark.parametrize("key", ["", True, 1.5, b"k", "\ud800", "x" * 513, ("a",)])
def test_keys_that_are_none_are_refused(key: Any) -> None:
    """At once, with what a key is."""
    made = function(name="keyed", ordering="key")(classify)
    with pytest.raises(DefinitionError, match="key"):
        made.options(key=key)


def test_options_leave_the_function_as_it_is() -> None:
    """They are for the calls made with what comes back."""
    made = function(name="keyed", ordering="key")(classify)
    assert made.options(key=7)._key == "7"
    assert made.options(key="ü").options()._key is None
    assert made._key is None

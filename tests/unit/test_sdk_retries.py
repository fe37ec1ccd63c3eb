"""Retry policies: what may be declared, what the registry is told, and how exceptions are judged."""

from __future__ import annotations

import errno
import sys
import types
import urllib.error
from datetime import timedelta
from typing import Any

import cloudpickle
import pytest

from pelton import Retry, RetryPolicy, function
from pelton.core.retry import RETRIED_CODES, RetrySpec
from pelton.core.spec import FunctionKind
from pelton.definitions import function_spec
from pelton.errors import CallTimeout, CallUnavailable, DefinitionError, FunctionError, SubmitFailed
from pelton.retries import rule_of
from pelton.runtime.calling import Arguments, Target, call
from pelton.runtime.codes import code_of


class Flaky(Exception):
    """An error of somebody's own."""


class VeryFlaky(Flaky):
    """A subclass of it."""


@function(retries=4)
def often() -> None:
    """Four retries."""


@function(retry_policy=RetryPolicy(4))
def as_often() -> None:
    """The same."""


@function
def plain() -> None:
    """No policy."""


def test_a_number_of_retries_is_that_many_attempts_more() -> None:
    """`retries=n` and `retry_policy=` come to the same; without either there is no policy."""

    for made in (often, as_often):
        spec = function_spec(made, version=1, bundle="")
        assert (spec.max_attempts, spec.retry) == (5, RetryPolicy(4).spec)
    spec = function_spec(plain, version=1, bundle="")
    assert (spec.max_attempts, spec.retry) == (3, None)


def test_policy_tells_the_registry_what_it_says() -> None:
    """Times in milliseconds, codes with those that are always retried."""
    policy = RetryPolicy(
        2, initial=timedelta(milliseconds=250), multiplier=3, max_wait=20, jitter=0, retry_on=["NOT_FOUND"]
    )
    codes = tuple(sorted({*RETRIED_CODES, "NOT_FOUND"}))
    assert policy.spec == RetrySpec(250, 3.0, 20_000, 0.0, codes)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": True}, "max_retries"),
        ({"max_retries": 1001}, "max_retries"),
        ({"initial": 0}, "initial"),
        ({"initial": 61}, "above max_wait"),
        ({"initial": None}, "give both"),
        ({"max_wait": float("nan")}, "max_wait"),
        ({"multiplier": 0.5}, "multiplier is between 1 and 100"),
        ({"multiplier": float("inf")}, "multiplier"),
        ({"multiplier": True}, "multiplier"),
        ({"jitter": 1.1}, "jitter is between 0 and 1"),
        ({"jitter": "x"}, "jitter"),
        ({"retry_on": "BUSY"}, "'BUSY' in retry_on is no gRPC status name"),
        ({"retry_on": [int]}, "int in retry_on is no exception"),
        ({"retry_on": 5}, "not 5"),
    ],
)
def test_policy_that_means_nothing_is_refused(wrong: dict[str, Any], words: str) -> None:
    """When it is made, with a message that names the keyword."""
    with pytest.raises(DefinitionError, match=words):
        RetryPolicy(**wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"retries": 2, "retry_policy": RetryPolicy()}, "are the same"),
        ({"retries": 1.5}, "how often to try again"),
        ({"retries": True}, "how often to try again"),
        ({"retries": -1}, "between 0 and 1000"),
        ({"retry_policy": object()}, "RetryPolicy"),
        ({"ordering": "key", "retry_policy": RetryPolicy(max_wait=61)}, "at most 60 s"),
    ],
)
def test_declaration_that_means_nothing_is_refused(wrong: dict[str, Any], words: str) -> None:
    """Both keywords are a TypeError, and delays with key order are short."""
    with pytest.raises(DefinitionError, match=words):
        function(**wrong)


@pytest.mark.parametrize("after", [-1, float("nan"), 8 * 86_400])
def test_retry_after_no_time_is_refused(after: float) -> None:
    """Where it is raised."""
    with pytest.raises(ValueError, match="after is a time"):
        Retry(after=after)


def judged(error: BaseException, policy: RetryPolicy | None) -> tuple[str, bool, int]:
    """How an executor judges what a function with a policy raises."""

    def fails() -> None:
        raise error

    target = Target.of("f", FunctionKind.SYNC, fails, rule=rule_of(policy))
    _, failure = call(target, Arguments((), {}, 0))
    assert failure is not None
    return failure.code, failure.retriable, failure.after_ms


def test_without_a_policy_only_retry_is_retried() -> None:
    """An exception ends the call, whatever its code is."""
    assert judged(ConnectionResetError("x"), None) == ("UNAVAILABLE", False, -1)
    assert judged(Retry("later"), None) == ("ABORTED", True, -1)
    assert judged(Retry(after=1.5), None) == ("ABORTED", True, 1_500)
    assert judged(Retry(after=timedelta(minutes=2)), RetryPolicy(0)) == ("ABORTED", True, 120_000)


def test_policy_names_types_codes_and_questions() -> None:
    """Types with their subclasses; a question that raises is no yes."""

    def asked(error: BaseException) -> bool:
        return "again" in str(error)

    def broken(_: BaseException) -> bool:
        raise RuntimeError("the question is wrong")

    policy = RetryPolicy(retry_on=[Flaky, "NOT_FOUND", broken, asked])
    assert judged(VeryFlaky("x"), policy)[1]
    assert judged(FileNotFoundError("x"), policy) == ("NOT_FOUND", True, -1)
    assert judged(ValueError("try again"), policy)[1]
    assert not judged(ValueError("x"), policy)[1]
    assert judged(TimeoutError("x"), policy)[1]
    assert not judged(ConnectionError("x"), None)[1]


def test_policy_travels_with_a_pickled_function() -> None:
    """A function of `__main__` reaches its executor as a pickle; so do questions that are lambdas."""
    policy = RetryPolicy(retry_on=lambda error: "yes" in str(error))
    assert judged(ValueError("yes"), cloudpickle.loads(cloudpickle.dumps(policy)))[1]


def fake_module(name: str, **classes: Any) -> types.ModuleType:
    """A module with these attributes."""
    module = types.ModuleType(name)
    vars(module).update(classes)
    return module


def answer(status: int) -> types.SimpleNamespace:
    """An HTTP answer."""
    return types.SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TimeoutError(), "DEADLINE_EXCEEDED"),
        (BrokenPipeError(), "UNAVAILABLE"),
        (PermissionError(), "PERMISSION_DENIED"),
        (FileExistsError(), "ALREADY_EXISTS"),
        (MemoryError(), "RESOURCE_EXHAUSTED"),
        (OSError(errno.ENOSPC, "full"), "RESOURCE_EXHAUSTED"),
        (OSError(errno.EHOSTUNREACH, "no way"), "UNAVAILABLE"),
        (OSError("plain"), "UNKNOWN"),
        (ValueError(), "UNKNOWN"),
        (urllib.error.URLError(TimeoutError()), "DEADLINE_EXCEEDED"),
        (urllib.error.URLError("odd"), "UNAVAILABLE"),
        (urllib.error.HTTPError("u", 429, "m", None, None), "RESOURCE_EXHAUSTED"),  # type: ignore[arg-type]
        (urllib.error.HTTPError("u", 418, "m", None, None), "FAILED_PRECONDITION"),  # type: ignore[arg-type]
        (urllib.error.HTTPError("u", 599, "m", None, None), "UNAVAILABLE"),  # type: ignore[arg-type]
        (CallUnavailable("x", code="UNAVAILABLE"), "UNAVAILABLE"),
        (CallTimeout("x", code="DEADLINE_EXCEEDED"), "DEADLINE_EXCEEDED"),
        (FunctionError("x", code="INVALID_ARGUMENT"), "FAILED_PRECONDITION"),
        (SubmitFailed("x"), "UNAVAILABLE"),
    ],
)
def test_errors_have_codes(error: BaseException, code: str) -> None:
    """Python's own, and those of calls a function makes."""
    assert code_of(error) == code


def test_errors_of_libraries_have_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the library is loaded; a library of another shape breaks nothing."""

    class RpcError(Exception):
        """As grpc's: the code is a method."""

        def __init__(self, name: str) -> None:
            self.name = name

        def code(self) -> Any:
            """Its status."""
            return types.SimpleNamespace(name=self.name)

    monkeypatch.setitem(sys.modules, "grpc", fake_module("grpc", RpcError=RpcError))
    assert code_of(RpcError("UNAVAILABLE")) == "UNAVAILABLE"
    assert code_of(RpcError("INVALID_ARGUMENT")) == "FAILED_PRECONDITION"
    assert code_of(RpcError("odd")) == "UNKNOWN"
    monkeypatch.setitem(sys.modules, "grpc", fake_module("grpc"))
    assert code_of(TimeoutError()) == "DEADLINE_EXCEEDED"


def test_errors_of_httpx_have_codes() -> None:
    """The real library, which the platform has."""
    httpx = pytest.importorskip("httpx")
    request = httpx.Request("GET", "http://127.0.0.1")
    bad = httpx.HTTPStatusError("m", request=request, response=httpx.Response(503, request=request))
    assert code_of(bad) == "UNAVAILABLE"
    assert code_of(httpx.ReadTimeout("m", request=request)) == "DEADLINE_EXCEEDED"
    assert code_of(httpx.ConnectError("m", request=request)) == "UNAVAILABLE"


def test_errors_of_requests_have_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own tree of exceptions."""

    class RequestException(OSError):
        """Root of the tree."""

        response: Any = None

    class Timeout(RequestException):
        """Too slow."""

    class Refused(RequestException):
        """Not connected."""

    module = fake_module(
        "requests", RequestException=RequestException, Timeout=Timeout, ConnectionError=Refused
    )
    monkeypatch.setitem(sys.modules, "requests", module)
    answered = RequestException()
    answered.response = answer(502)
    assert [code_of(each) for each in (Timeout(), Refused(), answered, RequestException())] == [
        "DEADLINE_EXCEEDED",
        "UNAVAILABLE",
        "UNAVAILABLE",
        "UNKNOWN",
    ]

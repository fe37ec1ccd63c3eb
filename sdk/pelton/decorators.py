"""The decorator that makes a Python function one that runs on the platform."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import FunctionType
from typing import Any, Generic, ParamSpec, Self, SupportsIndex, TypeVar, overload

from pelton.client.binding import binder, parameters_of
from pelton.client.streams import Stream
from pelton.container import Container
from pelton.core.spec import FunctionKind, FunctionSpec, ParameterSpec
from pelton.errors import DefinitionError, FunctionNotFound, UnsupportedOption
from pelton.hooks import OBJECT
from pelton.image import Image
from pelton.loading import Collected, active, collecting, register
from pelton.policies import (
    checked_name,
    checked_text,
    checked_timeout,
    checked_words,
    refuse_unsupported,
)
from pelton.references import Callee
from pelton.retries import RetryPolicy, check_in_place, checked_retries
from pelton.runtime.pickled import MAIN
from pelton.script import notice
from pelton.secret import Secret

P = ParamSpec("P")
C = TypeVar("C")
R = TypeVar("R")
L = TypeVar("L")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SpecParts:
    """What a declaration says of a function; a deploy adds version, bundle and partitions.

    Attributes:
        name: function name.
        kind: how it is called.
        parameters: its signature.
        module, qualname: where the code is.
        timeout_ms: limit for one attempt, 0 for none.
        description: first paragraph of the docstring, or as given.
        tags: free words.
        on_stream_failure: "fail" or "restart".
        ordering: "none" or "key".
        retry_policy: how failed attempts are followed by others; None without a policy.
    """

    name: str
    kind: FunctionKind
    parameters: tuple[ParameterSpec, ...]
    module: str
    qualname: str
    timeout_ms: int
    description: str
    tags: tuple[str, ...]
    on_stream_failure: str = "fail"
    ordering: str = "none"
    retry_policy: RetryPolicy | None = None


class Function(Callee[P, C, R], Generic[P, C, R, L]):
    """A decorated function: called, it runs on the platform; `local` runs it here.

    `C` is what `f(x)` returns, `R` what a future of it holds, `L` what the bare function returns.

    Attributes:
        name: its name.
        fn: the bare function.
        container: what hosts it; without `container=` one of its own, named after it.
        kind: how it is called.
        module, qualname: where it is defined.
        timeout_ms: limit for one attempt, 0 for none.
        description: first paragraph of the docstring, or as given.
        tags: free words.
        ordering: "none" or "key".
        retry_policy: how failed attempts are followed by others; None without a policy.
        on_stream_failure: "fail" or "restart".
    """

    def __init__(
        self,
        fn: Callable[P, L],
        *,
        name: str,
        container: Container,
        timeout_ms: int,
        description: str,
        tags: tuple[str, ...],
        ordering: str = "none",
        retry_policy: RetryPolicy | None = None,
        on_stream_failure: str = "fail",
    ) -> None:
        super().__init__(name, None)
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.container = container
        self.kind = kind_of(fn)
        self.module: str = fn.__module__
        self.qualname: str = fn.__qualname__
        self.timeout_ms = timeout_ms
        self.description = description
        self.tags = tags
        self.ordering = ordering
        self.retry_policy = retry_policy
        self.on_stream_failure = on_stream_failure
        self._parameters = parameters_of(fn)
        self._bind = binder(self.qualname, self._parameters)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """By name where its module leads back to it, else by what it is; see `pelton.runtime.pickled`."""
        module, qualname = sys.modules.get(self.module), self.qualname
        if self.module != MAIN and found_in(module, qualname) is self:
            return qualname
        reduced: Any = super().__reduce_ex__(protocol)
        return tuple(reduced)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(state)
        self._bind = binder(self.qualname, self._parameters)

    @property
    def spec_parts(self) -> SpecParts:
        """What the declaration says."""
        return SpecParts(
            name=self.name,
            kind=self.kind,
            parameters=self._parameters,
            module=self.module,
            qualname=self.qualname,
            timeout_ms=self.timeout_ms,
            description=self.description,
            tags=self.tags,
            ordering=self.ordering,
            retry_policy=self.retry_policy,
            on_stream_failure=self.on_stream_failure,
        )

    def options(
        self,
        *,
        key: str | int | None = None,
        timeout: timedelta | float | None = None,
        deadline: datetime | None = None,
        **others: object,
    ) -> Self:
        """As for any callee; a key is refused at once where the function has no key order."""
        if key is not None and self.ordering != "key":
            raise UnsupportedOption(
                f"function {self.name!r} has no key order, so key= would mean nothing; give it "
                'ordering="key", and deploy it'
            )
        return super().options(key=key, timeout=timeout, deadline=deadline, **others)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> L:
        """Runs the bare function here; nothing is sent. An `async def` returns its coroutine, as bare."""
        return self.fn(*args, **kwargs)

    def _learn(self, spec: FunctionSpec) -> None:
        if spec.kind.streams != self.kind.streams:
            is_one = {True: "is a generator", False: "returns one value"}
            raise FunctionNotFound(
                f"Function {self.name!r} {is_one[self.kind.streams]} here, but {is_one[spec.kind.streams]} "
                "as deployed. Nothing was sent; deploy it again with `pelton deploy FILE`."
            )
        super()._learn(spec)

    def _returns(self) -> Any:
        try:
            return typing.get_type_hints(self.fn).get("return")
        except Exception:
            # Annotations may name what exists for type checkers only; they are hints, the call must not fail.
            return self.fn.__annotations__.get("return")


@overload
def function(
    fn: None = None,
    *,
    name: str | None = None,
    container: Container | None = None,
    image: Image | None = None,
    cpu: float | str | None = None,
    memory: int | str | None = None,
    gpu: str | int | None = None,
    env: Mapping[str, str] | None = None,
    secrets: Sequence[Secret] | None = None,
    min_instances: int | None = None,
    max_instances: int | None = None,
    max_concurrent_requests: int | None = None,
    timeout: timedelta | float | None = None,
    concurrency: Any = None,
    rate_limit: Any = None,
    retries: int | RetryPolicy | None = None,
    retry_policy: RetryPolicy | None = None,
    on_stream_failure: str | None = None,
    ordering: str | None = None,
    schedule: Any = None,
    trigger: Any = None,
    description: str | None = None,
    tags: Sequence[str] | None = None,
) -> Decorator: ...
@overload
def function(fn: Callable[P, AsyncIterator[T]], /) -> Function[P, Stream[T], list[T], AsyncIterator[T]]: ...
@overload
def function(fn: Callable[P, Iterator[T]], /) -> Function[P, Stream[T], list[T], Iterator[T]]: ...
@overload
def function(fn: Callable[P, Coroutine[Any, Any, T]], /) -> Function[P, T, T, Coroutine[Any, Any, T]]: ...
@overload
def function(fn: Callable[P, T], /) -> Function[P, T, T, T]: ...
def function(
    fn: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    container: Container | None = None,
    image: Image | None = None,
    cpu: float | str | None = None,
    memory: int | str | None = None,
    gpu: str | int | None = None,
    env: Mapping[str, str] | None = None,
    secrets: Sequence[Secret] | None = None,
    min_instances: int | None = None,
    max_instances: int | None = None,
    max_concurrent_requests: int | None = None,
    timeout: timedelta | float | None = None,
    concurrency: Any = None,
    rate_limit: Any = None,
    retries: int | RetryPolicy | None = None,
    retry_policy: RetryPolicy | None = None,
    on_stream_failure: str | None = None,
    ordering: str | None = None,
    schedule: Any = None,
    trigger: Any = None,
    description: str | None = None,
    tags: Sequence[str] | None = None,
) -> Any:
    """Makes a function that runs on the platform; use it bare, `@function`, or with keywords.

    Args:
        fn: a plain function of a module: `def`, `async def`, or a generator of either kind.
        name: its name on the platform; None for that of the Python function.
        container: the `Container` that hosts it; None for one of its own, named after it.
        image, cpu, memory, gpu, env, secrets, min_instances, max_instances, max_concurrent_requests: of its
            own container; see `Container`.
        timeout: limit for one attempt, a `timedelta` or seconds; None for none.
        on_stream_failure: "fail": a stream that broke off in the middle fails. "restart": it runs again, and
            its caller sees it begin again, as often as attempts are granted.
        ordering: "none": calls start in any order. "key": calls with one key, `f.options(key=...)`, start in
            the order in which they were sent, each after the end of the one before it.
        description: what it does; None for the first paragraph of its docstring.
        tags: free words.
        retries, retry_policy: how often a failed call is tried again, or a `RetryPolicy`; one of them. None:
            three attempts, and only when what ran the call was lost.
        concurrency, rate_limit, schedule, trigger: not in this version.

    Returns:
        A `Function`, or with keywords alone a decorator that makes one.

    Raises:
        DefinitionError: a TypeError that names what is wrong and the fix.
        UnsupportedOption: a keyword whose meaning this version does not have.
    """
    label = f"function {name!r}" if name is not None else f"function {_label(fn)}" if fn else "function"
    refuse_unsupported(
        label,
        {
            "concurrency": concurrency,
            "rate_limit": rate_limit,
            "schedule": schedule,
            "trigger": trigger,
        },
    )
    _check_word(label, "on_stream_failure", on_stream_failure, "fail", "restart")
    _check_word(label, "ordering", ordering, "none", "key")
    resources: dict[str, Any] = {
        "image": image,
        "cpu": cpu,
        "memory": memory,
        "gpu": gpu,
        "env": env,
        "secrets": secrets,
        "min_instances": min_instances,
        "max_instances": max_instances,
        "max_concurrent_requests": max_concurrent_requests,
    }
    _check_container(label, container, resources)
    if name is not None:
        checked_name("function", name)
    policy = checked_retries(label, retries, retry_policy)
    if ordering == "key":
        check_in_place(label, policy)
    timeout_ms = checked_timeout(label, timeout)
    words = () if tags is None else checked_words(label, "tags", tags)
    text = None if description is None else checked_text(label, "description", description)

    def decorate(fn: Callable[..., Any]) -> Function[..., Any, Any, Any]:
        check_function(fn)
        own_name = checked_name("function", fn.__name__) if name is None else name
        made: Function[..., Any, Any, Any] = Function(
            fn,
            name=own_name,
            container=container or Container(name=own_name, **resources),
            timeout_ms=timeout_ms,
            description=_first_paragraph(fn) if text is None else text,
            tags=words,
            ordering=ordering or "none",
            retry_policy=policy,
            on_stream_failure=on_stream_failure or "fail",
        )
        register(made)
        notice(made)
        return made

    return decorate if fn is None else decorate(fn)


class Decorator(typing.Protocol):
    """What `function(...)` returns when it is given keywords alone."""

    @overload
    def __call__(
        self, fn: Callable[P, AsyncIterator[T]], /
    ) -> Function[P, Stream[T], list[T], AsyncIterator[T]]: ...
    @overload
    def __call__(self, fn: Callable[P, Iterator[T]], /) -> Function[P, Stream[T], list[T], Iterator[T]]: ...
    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /
    ) -> Function[P, T, T, Coroutine[Any, Any, T]]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> Function[P, T, T, T]: ...


def collected() -> Collected:
    """What the module that is being loaded for deploy has defined so far; see `pelton.loading.collecting`.

    Raises:
        DefinitionError: no module is being loaded for deploy, or two containers share a name.
    """
    load = active()
    if load is None:
        raise DefinitionError("no module is being loaded for deploy; load it inside `with collecting(name):`")
    return load.result()


def found_in(module: object, qualname: str) -> Any:
    """What a qualified name leads to in a module, None for nothing."""
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def kind_of(fn: Callable[..., Any]) -> FunctionKind:
    """How a function is called."""
    if inspect.isasyncgenfunction(fn):
        return FunctionKind.ASYNC_GENERATOR
    if inspect.isgeneratorfunction(fn):
        return FunctionKind.GENERATOR
    if inspect.iscoroutinefunction(fn):
        return FunctionKind.ASYNC
    return FunctionKind.SYNC


def check_function(fn: object) -> None:
    """Refuses what executors cannot find again by module and name.

    Raises:
        DefinitionError: a class, lambda, method, partial or other callable; the message says what to do.
    """
    label = _label(fn)
    if isinstance(fn, Function):
        raise DefinitionError(f"{label} is a function of Pelton already; decorate it once")
    if isinstance(fn, type):
        raise DefinitionError(f"{label} is a class; decorate a function that makes and uses it")
    if isinstance(fn, functools.partial):
        raise DefinitionError(f"{label} is a functools.partial; write a `def` that calls it")
    if inspect.ismethod(fn) or isinstance(fn, (staticmethod, classmethod)):
        raise DefinitionError(f"{label} is a method; write a function at the top of the module that calls it")
    if not isinstance(fn, FunctionType):
        raise DefinitionError(f"{label} is no Python function; write a `def` that calls it")
    if fn.__name__ == "<lambda>":
        raise DefinitionError(f"{label} is a lambda and has no name to find it by; write a `def`")
    if "." in fn.__qualname__.rpartition("<locals>.")[2] and not hasattr(fn, OBJECT):
        raise DefinitionError(
            f"{label} is defined in a class; write @pelton.method, and @pelton.cls above the class, or move "
            "it to the top of the module"
        )


def _check_word(label: str, keyword: str, value: object, *known: str) -> None:
    if value is not None and value not in known:
        words = " and ".join(f"{keyword}={word!r}" for word in known)
        raise UnsupportedOption(f"{label}: this version of Pelton has {words} only, not {value!r}")


def _check_container(label: str, container: object, resources: Mapping[str, object]) -> None:
    """A container given together with what makes one is a contradiction."""
    if container is None:
        return
    if not isinstance(container, Container):
        raise DefinitionError(f"{label}: container is a Container, not {container!r}")
    if both := [keyword for keyword, value in resources.items() if value is not None]:
        raise DefinitionError(
            f"{label}: container= and {', '.join(both)}= exclude each other; "
            f"give them to Container({container.name!r})"
        )
    if container.entrypoint:
        raise DefinitionError(
            f"{label}: {container!r} has an entrypoint and is a plain program; "
            "functions need a Container without"
        )


def _first_paragraph(fn: Callable[..., Any]) -> str:
    paragraph = (inspect.getdoc(fn) or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def _label(fn: object) -> str:
    return getattr(fn, "__qualname__", None) or repr(fn)


__all__ = [
    "Collected",
    "Decorator",
    "Function",
    "SpecParts",
    "check_function",
    "collected",
    "collecting",
    "function",
]

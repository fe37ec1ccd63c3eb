"""Classes whose methods run on the platform: each executor makes one object and calls methods on it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from pelton.client.streams import Stream
from pelton.container import Container
from pelton.core.spec import FunctionKind
from pelton.decorators import Function, function, kind_of
from pelton.errors import DefinitionError
from pelton.hooks import OBJECT, SharedObject
from pelton.image import Image
from pelton.policies import checked_name
from pelton.retries import RetryPolicy
from pelton.secret import Secret

C = TypeVar("C", bound=type)
P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class Method:
    """A method that `cls` will make a function of; until then it is the method it was.

    Attributes:
        fn: the bare method.
        name: name of the function after that of the class; None for that of the method.
        options: keywords for `function`.
    """

    def __init__(self, fn: Callable[..., Any], name: str | None, options: Mapping[str, Any]) -> None:
        self.fn = fn
        self.name = name
        self.options = options

    def __call__(self, *_: object, **__: object) -> Any:
        """Refused: without `cls` nothing makes the object."""
        raise DefinitionError(f"{self.fn.__qualname__} is a method of a class without @pelton.cls")


class MethodDecorator(Protocol):
    """What `method(...)` returns when it is given keywords alone."""

    @overload
    def __call__(
        self, fn: Callable[Concatenate[S, P], AsyncIterator[T]], /
    ) -> Function[P, Stream[T], list[T], AsyncIterator[T]]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[S, P], Iterator[T]], /
    ) -> Function[P, Stream[T], list[T], Iterator[T]]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[S, P], Coroutine[Any, Any, T]], /
    ) -> Function[P, T, T, Coroutine[Any, Any, T]]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[S, P], T], /) -> Function[P, T, T, T]: ...


@overload
def method(
    fn: None = None,
    /,
    *,
    name: str | None = None,
    timeout: timedelta | float | None = None,
    on_stream_failure: str | None = None,
    ordering: str | None = None,
    retries: int | RetryPolicy | None = None,
    retry_policy: RetryPolicy | None = None,
    description: str | None = None,
    tags: Sequence[str] | None = None,
) -> MethodDecorator: ...
@overload
def method(
    fn: Callable[Concatenate[S, P], AsyncIterator[T]], /
) -> Function[P, Stream[T], list[T], AsyncIterator[T]]: ...
@overload
def method(
    fn: Callable[Concatenate[S, P], Iterator[T]], /
) -> Function[P, Stream[T], list[T], Iterator[T]]: ...
@overload
def method(
    fn: Callable[Concatenate[S, P], Coroutine[Any, Any, T]], /
) -> Function[P, T, T, Coroutine[Any, Any, T]]: ...
@overload
def method(fn: Callable[Concatenate[S, P], T], /) -> Function[P, T, T, T]: ...
def method(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout: timedelta | float | None = None,
    on_stream_failure: str | None = None,
    ordering: str | None = None,
    retries: int | RetryPolicy | None = None,
    retry_policy: RetryPolicy | None = None,
    description: str | None = None,
    tags: Sequence[str] | None = None,
) -> Any:
    """Makes a function of a method of a class of `@pelton.cls`; bare, or with keywords.

    Args:
        fn: the method: `def`, `async def`, or a generator of either kind.
        name: its name after that of the class; None for that of the method.
        timeout, on_stream_failure, ordering, retries, retry_policy, description, tags: see `function`.

    Raises:
        DefinitionError: it is no method.
    """
    options = {
        "timeout": timeout,
        "on_stream_failure": on_stream_failure,
        "ordering": ordering,
        "retries": retries,
        "retry_policy": retry_policy,
        "description": description,
        "tags": tags,
    }

    def decorate(fn: Callable[..., Any]) -> Method:
        if not inspect.isfunction(fn) or "." not in fn.__qualname__.rpartition("<locals>.")[2]:
            raise DefinitionError(
                f"{getattr(fn, '__qualname__', repr(fn))} is no method; @pelton.method is for those of a "
                "class with @pelton.cls, and @pelton.function for functions"
            )
        return Method(fn, name, options)

    return decorate if fn is None else decorate(fn)


@overload
def cls(
    made_by: None = None,
    /,
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
) -> Callable[[C], C]: ...
@overload
def cls(made_by: C, /) -> C: ...
def cls(
    made_by: type | None = None,
    /,
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
) -> Any:
    """Makes functions of the methods of a class that have `@pelton.method`, in one container.

    Each executor makes one object of the class, without arguments, runs its `@pelton.on_start` methods, and
    calls methods on it; `@pelton.on_stop` methods run when it stops. `Model.predict(x)` calls
    the function `Model-predict`; `Model.predict.local(x)` runs it on an object of this process.

    Args:
        made_by: the class.
        name: first part of the names of its functions, and name of its own container; None for that of the
            class.
        container: the `Container` that hosts them; None for one of their own.
        image, cpu, memory, gpu, env, secrets, min_instances, max_instances, max_concurrent_requests: of their
            own container; see `Container`.

    Returns:
        The class, its methods replaced by `Function`s.

    Raises:
        DefinitionError: it is no class, has no methods, or needs arguments.
    """
    resources = {
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

    def decorate(made_by: type) -> type:
        methods = _methods(made_by)
        prefix = checked_name("class", made_by.__name__ if name is None else name)
        shared = SharedObject(made_by)
        chosen = _container(prefix, container, resources)
        for attribute, found in methods.items():
            bound = _bound(found.fn, shared)
            decorator = function(
                name=f"{prefix}-{found.name or attribute}", container=chosen, **found.options
            )
            setattr(made_by, attribute, decorator(bound))
        return made_by

    return decorate if made_by is None else decorate(made_by)


def _methods(made_by: object) -> dict[str, Method]:
    if not isinstance(made_by, type):
        raise DefinitionError(f"@pelton.cls is for classes, not {made_by!r}")
    methods = {name: value for name, value in vars(made_by).items() if isinstance(value, Method)}
    if not methods:
        raise DefinitionError(f"class {made_by.__qualname__} has no method with @pelton.method")
    try:
        inspect.signature(made_by).bind()
    except TypeError as error:
        raise DefinitionError(
            f"class {made_by.__qualname__} is made without arguments in each executor: {error}"
        ) from None
    return methods


def _container(prefix: str, container: Container | None, resources: Mapping[str, Any]) -> Container:
    if container is None:
        return Container(name=prefix, **resources)
    if both := [keyword for keyword, value in resources.items() if value is not None]:
        raise DefinitionError(
            f"class {prefix!r}: container= and {', '.join(both)}= exclude each other; "
            f"give them to Container({container.name!r})"
        )
    return container


def _bound(fn: Callable[..., Any], shared: SharedObject) -> Callable[..., Any]:
    """A plain function of the same kind that calls a method on the object of the process."""
    kind = kind_of(fn)
    made: Callable[..., Any]
    if kind is FunctionKind.ASYNC:

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await fn(shared.get(), *args, **kwargs)

        made = call_async
    elif kind is FunctionKind.GENERATOR:

        def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            return (yield from fn(shared.get(), *args, **kwargs))

        made = generate
    elif kind is FunctionKind.ASYNC_GENERATOR:

        async def generate_async(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            inner = fn(shared.get(), *args, **kwargs)
            try:
                async for value in inner:
                    yield value
            finally:
                await inner.aclose()

        made = generate_async
    else:

        def call(*args: Any, **kwargs: Any) -> Any:
            return fn(shared.get(), *args, **kwargs)

        made = call
    functools.update_wrapper(made, fn)
    signature = inspect.signature(fn)
    parameters = list(signature.parameters.values())[1:]
    attributes = {"__signature__": signature.replace(parameters=parameters), OBJECT: shared}
    vars(made).update(attributes)
    return made

"""Classes with methods on the platform, and hooks: what is refused, and what they are in one process."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import sys
from collections.abc import AsyncIterator, Iterator
from types import ModuleType

import pytest

import pelton
from pelton import hooks
from pelton.core.spec import FunctionKind
from pelton.decorators import Function
from pelton.definitions import function_spec
from pelton.errors import DefinitionError
from pelton.loading import collecting

NAME = "module_with_a_class"


def defined() -> ModuleType:
    """A module with a class, as executors import it."""
    module = ModuleType(NAME)
    source = '''
import pelton
from collections.abc import AsyncIterator, Iterator

@pelton.cls(max_concurrent_requests=4)
class Model:
    """A model."""

    made = 0

    def __init__(self):
        Model.made += 1
        self.events = ["made"]

    @pelton.on_start
    def load(self):
        self.events.append("loaded")

    @pelton.on_start
    async def warm(self):
        self.events.append("warm")

    @pelton.method
    def predict(self, value: int, times: int = 2) -> int:
        """The value, so many times.

        And more.
        """
        return value * times

    @pelton.method(name="later", timeout=5)
    async def predict_later(self, value: int) -> int:
        return value

    @pelton.method
    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    @pelton.method
    async def acount(self, n: int) -> AsyncIterator[int]:
        for value in range(n):
            yield value

    @pelton.on_stop
    def close(self):
        self.events.append("closed")

    @pelton.on_stop
    def fail(self):
        raise ValueError("at the end")
'''
    sys.modules[NAME] = module
    with collecting(NAME) as collection:
        exec(compile(source, f"{NAME}.py", "exec"), module.__dict__)
        module.__dict__["collected"] = collection.result()
    return module


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """Such a module, gone afterwards."""
    yield defined()
    del sys.modules[NAME]


def test_methods_become_functions_of_one_container(module: ModuleType) -> None:
    """Named after class and method; `self` is no argument; options reach the function."""
    functions = {function.name: function for function in module.collected.functions}
    assert {name: function.kind for name, function in functions.items()} == {
        "Model-predict": FunctionKind.SYNC,
        "Model-later": FunctionKind.ASYNC,
        "Model-count": FunctionKind.GENERATOR,
        "Model-acount": FunctionKind.ASYNC_GENERATOR,
    }
    (container,) = module.collected.containers
    assert (container.name, container.max_concurrent_requests) == ("Model", 4)
    predict = module.Model.predict
    assert isinstance(predict, Function)
    assert [one.name for one in predict.spec_parts.parameters] == ["value", "times"]
    assert predict.description == "The value, so many times."
    assert module.Model.predict_later.timeout_ms == 5_000
    spec = function_spec(predict, version=1, bundle="f00")
    assert (spec.module, spec.qualname) == (NAME, "Model.predict")


def test_methods_run_here_on_one_object(module: ModuleType) -> None:
    """`local` makes the object once, runs its hooks, and calls the method on it, whatever its kind."""
    model = module.Model
    assert model.made == 0
    assert model.predict.local(3) == 6
    assert list(model.count.local(3)) == [0, 1, 2]
    assert asyncio.run(model.predict_later.local(4)) == 4

    async def read() -> list[int]:
        return [value async for value in model.acount.local(3)]

    assert asyncio.run(read()) == [0, 1, 2]
    assert model.made == 1
    shared = getattr(model.predict.fn, hooks.OBJECT)
    assert shared.get().events == ["made", "loaded", "warm"]


def test_hooks_run_in_order_and_back(module: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """Start hooks before the first call, stop hooks in reverse order; what fails at the end is logged."""
    function = module.Model.predict.fn
    loop = asyncio.new_event_loop()
    hooks.start(function, loop)
    made = getattr(function, hooks.OBJECT).get()
    hooks.stop(function, loop)
    loop.close()
    assert made.events == ["made", "loaded", "warm", "closed"]
    assert "a hook of on_stop failed" in caplog.text
    assert "at the end" in caplog.text
    hooks.stop(function, None)
    assert made.events[-1] == "closed"
    assert made.events.count("closed") == 1


def test_a_function_of_a_method_travels_by_its_name(module: ModuleType) -> None:
    """Pickled, it is found again by module and qualified name."""
    assert pickle.loads(pickle.dumps(module.Model.predict)) is module.Model.predict


def test_hooks_of_a_base_run_first_and_can_be_replaced() -> None:
    """A class inherits the hooks of its bases; one that it defines again replaces the old one."""

    class Base:
        @pelton.on_start
        def first(self) -> None: ...
        @pelton.on_start
        def replaced(self) -> None: ...
        @pelton.on_start
        def dropped(self) -> None: ...

    class Model(Base):
        @pelton.on_start
        def second(self) -> None: ...
        @pelton.on_start
        def replaced(self) -> None: ...
        def dropped(self) -> None: ...

    found = hooks.hooks_of(Model, hooks.START)
    assert [hook.__qualname__.rpartition(".<locals>.")[2] for hook in found] == [
        "Base.first",
        "Model.replaced",
        "Model.second",
    ]


def test_what_is_no_method_or_class_is_refused() -> None:
    """The message names it and the way out."""
    with pytest.raises(DefinitionError, match=r"is no method; @pelton.method is for"):
        pelton.method(test_what_is_no_method_or_class_is_refused)  # type: ignore[arg-type]

    class Bare:
        @pelton.method
        def predict(self) -> int:
            return 1

    with pytest.raises(DefinitionError, match=r"is a method of a class without @pelton.cls"):
        Bare().predict()
    with pytest.raises(DefinitionError, match=r"has no method with @pelton.method"):
        pelton.cls(type("Empty", (), {}))
    with pytest.raises(DefinitionError, match="is for classes"):
        pelton.cls(len)  # type: ignore[call-overload]

    class Needy:
        def __init__(self, path: str) -> None: ...
        @pelton.method
        def predict(self) -> int:
            return 1

    with pytest.raises(DefinitionError, match=r"is made without arguments in each executor: .*'path'"):
        pelton.cls(Needy)
    with pytest.raises(DefinitionError, match="container= and env= exclude each other"):
        pelton.cls(container=pelton.Container(name="c"), env={"A": "1"})(Bare)
    with pytest.raises(DefinitionError, match=r"write @pelton.method, and @pelton.cls above the class"):

        class Wrong:
            @pelton.function
            def predict(self) -> int:
                return 1


def test_what_is_no_hook_is_refused() -> None:
    """Arguments, generators and things that are no functions."""
    with pytest.raises(DefinitionError, match="takes no arguments, not path"):

        @pelton.on_start
        def load(path: str) -> None: ...

    with pytest.raises(DefinitionError, match="is a generator; hooks run once"):

        @pelton.on_stop
        def parts() -> Iterator[int]:
            yield 1

    with pytest.raises(DefinitionError, match="is a generator"):

        @pelton.on_stop
        async def aparts() -> AsyncIterator[int]:
            yield 1

    with pytest.raises(DefinitionError, match="takes `self` alone, not self, path"):

        class Model:
            @pelton.on_start
            def load(self, path: str) -> None: ...

    with pytest.raises(DefinitionError, match="is no Python function"):
        pelton.on_start(len)


def test_methods_keep_what_tools_read() -> None:
    """Signature, name and docstring are those of the method, without `self`."""

    @pelton.cls
    class Shown:
        @pelton.method
        def predict(self, value: int, *, exact: bool = False) -> int:
            """What it does."""
            return value

    assert str(inspect.signature(Shown.predict)) == "(value: 'int', *, exact: 'bool' = False) -> 'int'"
    assert Shown.predict.__doc__ == "What it does."

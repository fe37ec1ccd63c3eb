"""The reference page of the SDK: its programs run, and no public name or keyword is missing from it."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pelton
from pelton.client import session
from pelton.core.call import Invocation
from pelton.decorators import collected, collecting
from pelton.definitions import function_spec
from pelton.references import Callee
from support.callers import ScriptedTransport, chunk, container_of, deployer, outcome

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sdk.md"
TEXT = PAGE.read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def transport() -> Iterator[ScriptedTransport]:
    """The transport of this process's connection."""
    transport = ScriptedTransport()
    session.install(transport)
    yield transport
    session.close()


def test_every_program_of_the_page_runs(
    transport: ScriptedTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the first program declares, the second one calls."""
    declare, call = PROGRAMS
    module = types.ModuleType("reference_program")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with collecting(module.__name__):
        exec(compile(declare, str(PAGE), "exec"), vars(module))
        found = collected()
    for function in found.functions:
        spec = function_spec(function, version=1, bundle="")
        transport.scripted.change(spec, container_of(spec), deployer())

    def answer(invocation: Invocation) -> None:
        call_id = invocation.call_id
        transport.accept(call_id)
        if invocation.function == "count":
            transport.deliver(call_id, chunk(call_id, 0, 0, 1, 2), outcome(call_id, first=3))
        else:
            transport.deliver(call_id, outcome(call_id, value=["billing"]))

    transport.on_submit = answer
    exec(compile(call, str(PAGE), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["0", "1", "2"]
    assert lines[-1] == "['billing']"
    assert len(transport.sent) == 9


@pytest.mark.parametrize("name", [name for name in pelton.__all__ if not name.startswith("_")])
def test_every_public_name_is_on_the_page(name: str) -> None:
    """A name nobody can read about might as well not be there."""
    assert re.search(rf"\b{name}\b", TEXT)


@pytest.mark.parametrize(
    "target", [pelton.function, pelton.Container.__init__, pelton.connect, pelton.gather]
)
def test_every_keyword_is_on_the_page(target: Callable[..., Any]) -> None:
    """Also those that this version refuses."""
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert re.search(rf"\b{parameter.name}\b", TEXT), parameter.name


def test_every_way_of_calling_is_on_the_page() -> None:
    """The methods of functions and references."""
    for name in [*vars(Callee), "local"]:
        if not name.startswith("_"):
            assert f".{name}(" in TEXT or f".{name}`" in TEXT, name

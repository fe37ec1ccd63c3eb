"""Typing: what mypy knows of declared functions, from their signatures to the values of streams."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DECLARED = """
from collections.abc import AsyncIterator, Iterator
from pelton import CallFuture, Container, Stream, function, function_ref, gather, context, logger
from pelton import cls, method, on_start

@function
def plain(text: str, *, limit: int = 3) -> int:
    return limit
@function(name="named", timeout=5)
def named(text: str) -> list[float]:
    return []
@function
async def later(text: str) -> bytes:
    return b""
@function
def count(n: int) -> Iterator[int]:
    yield n
@function(container=Container(name="c"))
async def acount(n: int) -> AsyncIterator[str]:
    yield ""
@cls(max_instances=2)
class Model:
    @on_start
    def load(self) -> None: ...
    @method
    def predict(self, text: str) -> int:
        return 1
    @method(timeout=5)
    async def later(self, text: str) -> bytes:
        return b""
    @method
    def count(self, n: int) -> Iterator[int]:
        yield n
ref = function_ref("plain")
"""

REVEALED = {
    "plain('x', limit=2)": "int",
    "plain.async_call('x')": "pelton.client.futures.CallFuture[int]",
    "plain.async_call('x').result()": "int",
    "plain.local('x')": "int",
    "plain.submit('x')": "str",
    "list(plain.map(['x']))": "list[int]",
    "plain.attach('id')": "pelton.client.futures.CallFuture[int]",
    "gather(plain.async_call('x'))": "list[int]",
    "named('x')": "list[float]",
    "later('x')": "bytes",
    "later.async_call('x').result()": "bytes",
    "later.local('x')": "Coroutine[Any, Any, bytes]",
    "count(3)": "pelton.client.streams.Stream[int]",
    "next(count(3))": "int",
    "count.async_call(3).result()": "list[int]",
    "count.local(3)": "typing.Iterator[int]",
    "acount(3)": "pelton.client.streams.Stream[str]",
    "acount.async_call(3).result()": "list[str]",
    "Model.predict('x')": "int",
    "Model.later('x')": "bytes",
    "next(Model.count(3))": "int",
    "ref(1, x=2)": "Any",
    "ref.async_call()": "pelton.client.futures.CallFuture[Any]",
    "context().attempt": "int",
}

REFUSED = {
    "Model.predict(3)": "arg-type",
    "plain(3)": "arg-type",
    "plain()": "call-arg",
    "plain('x', 3)": "call-arg",
    "plain.async_call('x', limit='3')": "arg-type",
    "later.submit()": "call-arg",
    "count('3')": "arg-type",
    "plain.async_call('x')": "unused-awaitable",
    "function(3)": "call-overload",
    "Container(name='c', max_instances='3')": "arg-type",
}


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What mypy says of each line of a program that uses the SDK, by line."""
    lines = DECLARED.splitlines()
    lines += [f"reveal_type({expression})" for expression in REVEALED]
    lines += REFUSED
    lines += ["async def main() -> None:", "    reveal_type(await later.async_call('x'))"]
    lines += ["    async for value in acount(3): reveal_type(value)"]
    program = tmp_path_factory.mktemp("typing") / "program.py"
    program.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(ROOT / "pyproject.toml"),
            "--no-error-summary",
            "--cache-dir",
            str(program.parent / "cache"),
            str(program),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    found: dict[int, str] = {}
    for line in done.stdout.splitlines():
        path, number, rest = line.split(":", 2)
        assert path.endswith("program.py"), line
        found[int(number)] = f"{found.get(int(number), '')} {rest.strip()}".strip()
    return found


FIRST_REVEALED = len(DECLARED.splitlines()) + 1
FIRST_REFUSED = FIRST_REVEALED + len(REVEALED)
LAST = FIRST_REFUSED + len(REFUSED)


@pytest.mark.parametrize("expression", REVEALED)
def test_types_flow_from_the_signature(findings: dict[int, str], expression: str) -> None:
    """Values, futures, lists and streams have the type the function declares."""
    line = FIRST_REVEALED + list(REVEALED).index(expression)
    assert findings.get(line, "").endswith(f'{REVEALED[expression]}"')


@pytest.mark.parametrize("expression", REFUSED)
def test_wrong_uses_are_type_errors(findings: dict[int, str], expression: str) -> None:
    """Arguments are checked against the signature of the function, keywords against the decorator's."""
    line = FIRST_REFUSED + list(REFUSED).index(expression)
    assert f"[{REFUSED[expression]}]" in findings.get(line, "")


def test_awaiting_and_async_for_are_typed(findings: dict[int, str]) -> None:
    """Futures can be awaited, streams iterated asynchronously; nothing else is an error."""
    assert findings.get(LAST + 1) == 'note: Revealed type is "bytes"'
    assert findings.get(LAST + 2) == 'note: Revealed type is "str"'
    assert all(line >= FIRST_REVEALED for line in findings)

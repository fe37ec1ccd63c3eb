"""The code of functions without a module: what travels, what is refused, and that the same stays the same."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from pelton.core.spec import FunctionKind, FunctionSpec
from pelton.errors import DefinitionError
from pelton.protocol.signing import Key, Keyring
from pelton.runtime import pickled
from pelton_platform.coordinator.specs import NothingToServe, check_code
from pelton_platform.deploy import bundles
from pelton_platform.executor.loading import LoadError, load_code

RING = Keyring([Key("0123456789abcdef", bytes(range(32)))], "pelton")
OTHER = Keyring([Key("fedcba9876543210", bytes(range(32)))], "pelton")
ELSEWHERE = Keyring([Key("0123456789abcdef", bytes(range(32)))], "staging")
SPEC = FunctionSpec("f", 1, "f", FunctionKind.SYNC, (), pickled.MAIN, "f", "ab" * 32)

PROGRAM = """
from __future__ import annotations
import json, sys
from dataclasses import dataclass, field
from enum import Enum
import pelton
from pelton.runtime import pickled

class Tone(Enum):
    CALM = "calm"

@dataclass
class Line:
    text: str

@dataclass
class Text:
    lines: list[Line] = field(default_factory=list)
    tone: Tone = Tone.CALM

FACTOR = 3

@pelton.function
def child(x: int) -> int:
    return parent(x)

@pelton.function
def parent(x: int) -> int:
    return child(x)

def helper(line: Line) -> Line:
    return Line(line.text * FACTOR)

@pelton.function
def shout(text: Text, more: int = 1) -> Text:
    json.dumps(more)
    return Text([helper(line) for line in text.lines], Tone.CALM) if more else child(parent(1))

sys.stdout.buffer.write(pickled.dump("shout", shout.fn))
"""


def dumped(tmp_path: Path, program: str = PROGRAM, seed: str = "1") -> bytes:
    """What a script takes along of its functions."""
    script = tmp_path / "script.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["PELTON_HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, script], capture_output=True, timeout=30, env=environment)
    assert done.stdout, done.stderr.decode()
    return done.stdout


LOADED = """
import sys, typing
from pathlib import Path
from pelton.protocol import payload
from pelton.runtime import pickled
from pelton.runtime.calling import Target
from pelton.core.spec import FunctionKind
fn, _ = pickled.load(Path(sys.argv[1]).read_bytes())
target = Target.of("shout", FunctionKind.SYNC, fn)
main = sys.modules["__main__"]
text = main.Text([main.Line("a")])
(back,), _ = target.decode(payload.encode_arguments((text,), {}))
assert type(back) is main.Text and type(back.lines[0]) is main.Line, back
print(fn(back), fn.__globals__["child"].name, fn.__globals__["child"].fn.__globals__["parent"].name)
"""


def test_code_brings_along_what_it_uses_of_the_script(tmp_path: Path) -> None:
    """Helpers, globals, classes, also those that only annotations name, and functions that it calls."""
    found = tmp_path / "code"
    found.write_bytes(dumped(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, found], capture_output=True, text=True, timeout=30, env=environment
    )
    assert done.stderr == ""
    assert done.stdout == "Text(lines=[Line(text='aaa')], tone=<Tone.CALM: 'calm'>) child parent\n"


def test_code_is_the_same_in_every_process(tmp_path: Path) -> None:
    """A script that is run again deploys nothing anew: hash seeds and drawn ids make no difference."""
    assert dumped(tmp_path, seed="1") == dumped(tmp_path, seed="2")


def test_code_that_differs_is_told_apart(tmp_path: Path) -> None:
    """The value of a global is a part of the code."""
    assert dumped(tmp_path) != dumped(tmp_path, PROGRAM.replace("FACTOR = 3", "FACTOR = 4"))


def main_function(monkeypatch: pytest.MonkeyPatch, source: str) -> ModuleType:
    """A module that looks like a script."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(source, vars(main))
    return main


def test_code_that_cannot_travel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal says which of all the things that the function uses is the one."""
    main = main_function(monkeypatch, "limit = 3\ndef f(x):\n    with lock:\n        return limit\n")
    vars(main)["lock"] = threading.Lock()
    with pytest.raises(DefinitionError, match=r"function 'f' .*the global 'lock', a lock, cannot be pickled"):
        pickled.dump("f", main.f)
    main = main_function(monkeypatch, "def make(held):\n    def f(x):\n        return held\n    return f\n")
    with pytest.raises(DefinitionError, match="the variable 'held', a lock, cannot be pickled"):
        pickled.dump("f", main.make(threading.Lock()))


def test_code_of_another_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte code means something else there: it is not even unpickled."""
    main = main_function(monkeypatch, "def f(x):\n    return x\n")
    head, _, _ = pickled.dump("f", main.f).partition(b"\n")
    hostile = pickle.dumps(Hostile())
    other = json.dumps({**json.loads(head), "python": "3.9"}).encode()
    with pytest.raises(pickled.CodeError, match=r"deployed from Python 3\.9, and the platform runs Python 3"):
        pickled.load(other + b"\n" + hostile)
    later = json.dumps({**json.loads(head), "format": 2}).encode()
    with pytest.raises(pickled.CodeError, match="another version of Pelton"):
        pickled.load(later + b"\n" + hostile)
    assert Hostile.ran == 0


class Hostile:
    """A pickle of it runs something when it is loaded."""

    ran = 0

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return _ran, ()


def _ran() -> None:
    Hostile.ran += 1


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A store with the code of the function `f`, which is hostile: loading it would be noticed."""
    made = tmp_path / "bundles"
    (made / SPEC.bundle).mkdir(parents=True)
    Hostile.ran = 0
    return made


CODE = b'{"format": 1, "python": "%d.%d"}\n' % sys.version_info[:2] + pickle.dumps(Hostile())


def stored(shelf: Path, ring: Keyring = RING, name: str = "f") -> tuple[FunctionSpec, Path]:
    """The spec of a function whose code is stored, and where it is."""
    digest = bundles.store_code(name, CODE, shelf, ring)
    return replace(SPEC, code=digest), shelf / pickled.file_name(name, digest)


def test_signed_code_is_loaded(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests below refuse would run otherwise."""
    monkeypatch.chdir(shelf)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    spec, _ = stored(shelf)
    check_code(shelf, spec, RING)
    with pytest.raises(TypeError):  # it is no function
        load_code(shelf / spec.bundle, "f", spec.code)
    assert Hostile.ran == 1


def test_unsigned_and_altered_code_is_refused(shelf: Path) -> None:
    """By the coordinator, and by an executor that finds other code than the coordinator did."""
    spec, path = stored(shelf)
    sealed = path.read_bytes()
    for data in (CODE, sealed[:-1] + b"?", sealed + b"?", sealed[:40], b""):
        path.write_bytes(data)
        with pytest.raises(NothingToServe, match="the code of 'f' does not verify and is not loaded"):
            check_code(shelf, spec, RING)
        with pytest.raises(LoadError):
            load_code(shelf / spec.bundle, "f", spec.code)
    path.unlink()
    with pytest.raises(NothingToServe, match="No such file"):
        check_code(shelf, spec, RING)
    assert Hostile.ran == 0


@pytest.mark.parametrize("ring", [OTHER, ELSEWHERE], ids=["key", "namespace"])
def test_code_signed_elsewhere_is_refused(shelf: Path, ring: Keyring) -> None:
    """With a key that is not active here, or for another namespace."""
    spec, _ = stored(shelf, ring)
    with pytest.raises(NothingToServe, match="does not verify"):
        check_code(shelf, spec, RING)
    assert Hostile.ran == 0


def test_code_of_another_function_or_version_is_refused(shelf: Path) -> None:
    """A signature is for one function, and a spec for one code of it."""
    spec, path = stored(shelf)
    _, others = stored(shelf, name="g")
    path.write_bytes(others.read_bytes())
    with pytest.raises(NothingToServe, match="does not verify"):
        check_code(shelf, spec, RING)
    later = bundles.store_code("f", CODE + b"?", shelf, RING)
    path.write_bytes((shelf / pickled.file_name("f", later)).read_bytes())
    with pytest.raises(NothingToServe, match="it is the code of another version"):
        check_code(shelf, spec, RING)
    assert Hostile.ran == 0


def test_only_the_loader_of_verified_code_unpickles() -> None:
    """Nowhere else in the product is there a call that could turn data into code."""
    root = Path(pickled.__file__).parents[3]
    # `exec` as a method starts a program, as its callers ask.
    words = ("pickle.load", "Unpickler", "marshal.load", "eval(", " exec(", "shelve")
    found = {
        (path.relative_to(root).as_posix(), word)
        for folder in ("sdk", "platform", "schemas", "consumer_templates")
        for path in (root / folder).rglob("*.py")
        for word in words
        if word in path.read_text().replace("def exec(", "")
    }
    assert found == {
        ("sdk/pelton/runtime/pickled.py", "pickle.load"),
        ("sdk/pelton/protocol/payload.py", "pickle.load"),  # inside of what was signed
    }


HOOKED = """
import pelton, sys
from pelton import hooks
from pelton.runtime import pickled
seen = []
@pelton.on_start
def begin(): seen.append("begun")
@pelton.on_stop
def end(): print("ended", seen)
def shout(text): return text + str(seen)
sys.stdout.buffer.write(pickled.dump("shout", shout, hooks.of_main()))
"""
HOOKED_ELSEWHERE = """
import sys
from pathlib import Path
from pelton import hooks
from pelton.runtime import pickled
fn, (starts, stops) = pickled.load(Path(sys.argv[1]).read_bytes())
hooks.adopt(list(starts), list(stops))
hooks.start(fn, None)
print(fn("a"))
hooks.stop(fn, None)
"""


def test_hooks_of_a_script_travel_with_its_functions(tmp_path: Path) -> None:
    """They see the same globals as the function."""
    found = tmp_path / "code"
    found.write_bytes(dumped(tmp_path, HOOKED))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", HOOKED_ELSEWHERE, found],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
    )
    assert (done.stdout, done.stderr) == ("a['begun']\nended ['begun']\n", "")

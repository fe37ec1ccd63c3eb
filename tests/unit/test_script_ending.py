"""When a script is deployed and when it is not, and how it ends; no platform runs, so deploying says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.interpreters import bare_environment, interpreters

DEFINES = """
import pelton

@pelton.function
def double(x: int) -> int:
    return 2 * x

"""
TRIED = (
    "pelton: not deployed: double: no Pelton platform is running here: PELTON_BOOTSTRAP_SERVERS is not set"
)


@pytest.fixture(params=interpreters(), ids=lambda path: Path(path).name)
def python(request: pytest.FixtureRequest) -> str:
    """Each interpreter of this machine that has what the SDK needs."""
    return str(request.param)


def run(
    python: str, folder: Path, source: str, *words: str, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """A script, run to its end in a folder whose home has no platform."""
    (folder / "script.py").write_text(source)
    return subprocess.run(
        [python, *(words or ("script.py",))],
        cwd=folder,
        env=bare_environment() | {"PELTON_HOME": str(folder / "home")},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "print('done')\n",
        "import threading\nthreading.Thread(target=print, args=('later',)).start()\n",
        "import atexit\natexit.register(print, 'leaving')\n",
        "def main():\n    return 0\nif __name__ == '__main__':\n    main()\n",
        "try:\n    raise ValueError\nexcept ValueError:\n    pass\n",
    ],
    ids=["defines", "prints", "threads", "atexit", "main", "handled"],
)
def test_a_script_that_ends_well_is_deployed(python: str, tmp_path: Path, rest: str) -> None:
    """The reason why it could not be is on stderr, and the exit code is 1."""
    done = run(python, tmp_path, DEFINES + rest)
    assert done.stderr.startswith(TRIED)
    assert "Start one with `pelton up`" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1
    assert done.stdout == {
        "print('done')\n": "done\n",
        "import threading\nthreading.Thread(target=print, args=('later',)).start()\n": "later\n",
        "import atexit\natexit.register(print, 'leaving')\n": "leaving\n",
    }.get(rest, "")


def test_a_script_that_fails_is_not_deployed(python: str, tmp_path: Path) -> None:
    """Its own traceback says what happened."""
    done = run(python, tmp_path, DEFINES + "1 / 0\n")
    assert "ZeroDivisionError" in done.stderr
    assert "pelton" not in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("leaving", ["import sys; sys.exit(%d)", "raise SystemExit(%d)"])
@pytest.mark.parametrize("code", [0, 3])
def test_a_script_that_exits_is_not_deployed(python: str, tmp_path: Path, leaving: str, code: int) -> None:
    """Whoever leaves in the middle did not finish; the exit code is the script's own, and a line says it."""
    done = run(python, tmp_path, DEFINES + leaving % code + "\n")
    assert done.stderr == "pelton: not deployed, since the script ended by an exit: double\n"
    assert done.returncode == code


def test_a_call_without_a_platform_says_what_was_tried(python: str, tmp_path: Path) -> None:
    """First use comes first: the call raises, with the contexts that were tried and the way out."""
    done = run(python, tmp_path, DEFINES + "double(1)\n")
    assert "PlatformNotRunning: no Pelton platform is running here" in done.stderr
    assert "`pelton up`" in done.stderr
    assert done.returncode == 1


def test_a_module_and_standard_input_are_scripts_as_well(python: str, tmp_path: Path) -> None:
    """`python -m`, `python -c` and `python -` run what is `__main__`."""
    for words, stdin in ((("-m", "script"), None), (("-c", DEFINES), None), (("-",), DEFINES)):
        done = run(python, tmp_path, DEFINES, *words, stdin=stdin)
        assert done.stderr.startswith(TRIED), words
        assert done.returncode == 1


def test_what_is_imported_is_never_deployed(python: str, tmp_path: Path) -> None:
    """Importing a module that defines functions changes nothing."""
    (tmp_path / "worker.py").write_text(DEFINES)
    done = run(python, tmp_path, "import worker\nprint(worker.double.local(4))\n")
    assert (done.stdout, done.stderr, done.returncode) == ("8\n", "", 0)


def test_a_repl_deploys_nothing_at_its_end(python: str, tmp_path: Path) -> None:
    """Nobody knows which definition was meant to be the last."""
    done = run(python, tmp_path, "", "-i", "-q", stdin=DEFINES)
    assert "not deployed" not in done.stderr
    assert done.returncode == 0


FORKS = """
import os, sys
child = os.fork()
if child == 0:
    try:
        double(1)
    except BaseException as error:
        print(type(error).__name__, flush=True)
    os._exit(0)
os.waitpid(child, 0)
sys.exit(0)
"""
SPAWNS = """
import multiprocessing

def child():
    print(double.local(2), flush=True)

if __name__ == "__main__":
    started = multiprocessing.get_context("spawn").Process(target=child)
    started.start()
    started.join()
    import sys
    sys.exit(started.exitcode)
"""


@pytest.mark.parametrize(("source", "said"), [(FORKS, "PlatformNotRunning\n"), (SPAWNS, "4\n")])
def test_children_of_a_script_deploy_nothing(tmp_path: Path, source: str, said: str) -> None:
    """Neither when they use a function, nor when they end."""
    done = run(sys.executable, tmp_path, DEFINES + source)
    assert done.stdout == said
    assert done.stderr == "pelton: not deployed, since the script ended by an exit: double\n"
    assert done.returncode == 0


def test_tests_deploy_nothing(tmp_path: Path) -> None:
    """Neither functions of a test module, nor those of a script that a test runs in its own process."""
    test = DEFINES + (
        "import runpy\n"
        "def test_it():\n"
        "    runpy.run_path('program.py', run_name='__main__')\n"
        "    assert double.local(1) == 2\n"
    )
    (tmp_path / "program.py").write_text(DEFINES.replace("double", "treble"))
    (tmp_path / "test_it.py").write_text(test)
    done = run(sys.executable, tmp_path, "", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py")
    assert "1 passed" in done.stdout
    assert "not deployed" not in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_sends_that_were_not_accepted_end_a_child_with_1(tmp_path: Path, method: str) -> None:
    """Also in a process that `multiprocessing` started; a forked one takes nothing down when it ends."""
    support = str(Path(__file__).parents[1])
    program = f"""
import multiprocessing, sys

def child(lost):
    sys.path.insert(0, {support!r})
    from support.callers import ScriptedTransport, spec_of
    from pelton.client import session
    from pelton import function_ref
    transport = ScriptedTransport()
    transport.scripted.change(spec_of("f"))
    session.install(transport)
    function_ref("f").submit(1)
    transport.accept(transport.last.call_id)
    transport.unacknowledged = lost

if __name__ == "__main__":
    for lost in (0, 2):
        started = multiprocessing.get_context({method!r}).Process(target=child, args=(lost,))
        started.start()
        started.join()
        print(started.exitcode, flush=True)
"""
    done = run(sys.executable, tmp_path, program)
    assert done.stdout == "0\n1\n"
    assert done.stderr.startswith("pelton: 2 call(s) were not acknowledged by Kafka within 10 s")


def test_sends_that_were_not_accepted_end_a_program_with_1(tmp_path: Path) -> None:
    """After everything that others registered for the end; those that were accepted end it with 0."""
    support = str(Path(__file__).parents[1])
    program = f"""
import atexit, sys
sys.path.insert(0, {support!r})
atexit.register(print, "registered before")
from support.callers import ScriptedTransport, spec_of
from pelton.client import session
from pelton import function_ref
transport = ScriptedTransport()
transport.scripted.change(spec_of("f"))
session.install(transport)
atexit.register(print, "registered after")
function_ref("f").submit(1)
transport.accept(transport.last.call_id)
"""
    assert run(sys.executable, tmp_path, program).returncode == 0
    done = run(sys.executable, tmp_path, program + "transport.unacknowledged = 2\n")
    assert done.stderr.startswith("pelton: 2 call(s) were not acknowledged by Kafka within 10 s")
    assert done.stdout == "registered after\nregistered before\n"
    assert done.returncode == 1

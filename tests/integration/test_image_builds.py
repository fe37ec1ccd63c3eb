"""Environments that images become on this machine: built with real packages, in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton import Image
from pelton.core.spec import ImageSpec
from pelton.errors import DeployError
from pelton_platform import process
from pelton_platform.deploy import environments, image_root, interpreters
from pelton_platform.deploy.environments import Environment, Environments
from pelton_platform.deploy.home import Home

pytestmark = pytest.mark.integration

PACKAGE = "humanize==4.9.0"
"""A small package that the platform itself does not need."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """One home folder for the module."""
    made = Home(tmp_path_factory.mktemp("images") / "home")
    made.prepare()
    return made


@pytest.fixture
def store(home: Home) -> Environments:
    """Its environments."""
    return Environments(home)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder that is deployed."""
    (tmp_path / "consumer.py").write_text("print('from', __file__)\n")
    (tmp_path / "assets" / "deep").mkdir(parents=True)
    (tmp_path / "assets" / "deep" / "a.txt").write_text("one")
    (tmp_path / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "run.sh").chmod(0o755)
    return tmp_path


def build(store: Environments, image: Image, source: Path, told: list[str] | None = None) -> Environment:
    """Build an image as a deploy does."""
    spec = image.spec(source)
    store.keep_files(spec, source)
    return store.build(spec, "container 'c'", (told if told is not None else []).append)


def python(environment: Environment, code: str) -> str:
    """What a program says in an environment."""
    done = subprocess.run(
        [environment.python, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_image_has_its_packages_and_the_running_pelton(store: Environments, source: Path, home: Home) -> None:
    """Packages asked for in all three ways, `pelton` never from a registry; the platform stays as it is."""
    (source / "needs.txt").write_text("toolz==1.0.0\n")
    told: list[str] = []
    image = (
        Image.debian_slim()
        .pip_install([PACKAGE, "pelton>=99"])
        .pip_install(requirements="needs.txt")
        .run_commands("pip install 'roman==4.2'")
    )
    made = build(store, image, source, told)
    said = python(
        made,
        """
        import importlib.metadata as m, json, humanize, toolz, roman, greenlet, pelton
        from pelton_platform.executor import __main__
        place = m.distribution("pelton").read_text("direct_url.json")
        print(json.dumps([m.version("humanize"), m.version("pelton"), json.loads(place)["url"]]))
        """,
    )
    humanize, pelton, url = json.loads(said)
    assert humanize == "4.9.0"
    assert pelton == interpreters_version()
    assert url.startswith(home.wheels.as_uri())
    with pytest.raises(ImportError):
        __import__("humanize")
    assert any("humanize" in line for line in told), "what the build writes is told"
    assert any(line.startswith("container 'c': step 3 of 3: pip install") for line in told)


def interpreters_version() -> str:
    """The version of the running platform."""
    from importlib.metadata import version

    return version("pelton")


def test_image_that_was_built_is_there_at_once(store: Environments, source: Path) -> None:
    """The same steps are the same environment, and another package another one."""
    image = Image().pip_install([PACKAGE])
    first = build(store, image, source)
    told: list[str] = []
    assert build(store, Image().pip_install([PACKAGE]), source, told) == first
    assert told == []
    assert store.find(Image().pip_install(["humanize==4.8.0"]).spec()) is None


def test_image_without_packages_runs_on_the_platforms_own_python(store: Environments, source: Path) -> None:
    """Nothing is built for an image that asks for nothing; variables need no environment."""
    made = build(store, Image.debian_slim().env({"A": "1"}), source)
    assert (made.key, made.python, made.root, made.notes) == ("", sys.executable, None, ())


def test_image_of_a_locked_project(store: Environments, source: Path) -> None:
    """`uv_sync` installs what the lock file says, without the project."""
    (source / "pyproject.toml").write_text(
        f'[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["{PACKAGE}"]\n'
    )
    with pytest.raises(Exception, match=r"has no uv\.lock; run `uv lock` there"):
        build(store, Image().uv_sync("."), source)
    subprocess.run([interpreters.uv_command(), "lock", "--quiet"], cwd=source, check=True)
    made = build(store, Image().uv_sync("."), source)
    assert python(made, "import humanize; print(humanize.__version__)") == "4.9.0"


def test_image_step_that_fails_shows_itself_and_its_last_lines(store: Environments, source: Path) -> None:
    """The message names the step and ends with what it wrote; done again it goes on at that step."""
    image = Image().pip_install([PACKAGE]).run_commands("echo going; echo wrong >&2; test -e /app/fixed")
    image = Image().workdir("/app").pip_install([PACKAGE]).run_commands("echo oh dear >&2; exit 7")
    with pytest.raises(DeployError) as caught:
        build(store, image, source)
    text = str(caught.value)
    assert "container 'c': step 3 of 3, echo oh dear >&2; exit 7, failed with exit code 7:" in text
    assert text.endswith("  oh dear")
    told: list[str] = []
    with pytest.raises(DeployError):
        build(store, image, source, told)
    assert not any("step 2 of 3" in line for line in told), "what was done is not done again"
    missing = Image().pip_install(["humanize==0.0.0.1"])
    with pytest.raises(
        DeployError, match=r"(?s)pip_install\(humanize==0.0.0.1\), failed.*no version of humanize"
    ):
        build(store, missing, source)


def test_image_commands_cannot_change_the_machine(store: Environments, source: Path, tmp_path: Path) -> None:
    """What they write into folders of the image is kept; the machine's own files are read-only for them."""
    if image_root.reason_against():
        pytest.skip("this machine gives no mount namespaces")
    made = build(
        store, Image().workdir("/data").run_commands("echo kept > made; echo x > $TMPDIR/scratch"), source
    )
    assert made.root is not None
    assert (made.root / "data" / "made").read_text() == "kept\n"
    assert not list(made.root.parent.rglob("scratch"))
    outside = Path(sys.executable).parent / "made-by-a-build"
    with pytest.raises(DeployError, match="Read-only file system"):
        build(store, Image().run_commands(f"echo x > {outside}"), source)
    assert not outside.exists()


def test_image_commands_are_not_run_without_protection(
    store: Environments, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the machine cannot be protected a command is left out, and that is said."""
    monkeypatch.setattr(image_root, "reason_against", lambda: "forbidden here")
    made = build(store, Image().run_commands("echo x > /data"), source)
    assert made.notes == (
        "`echo x > /data` was not run: this machine gives builds no mount namespace (forbidden here)",
    )


def test_image_files_are_seen_at_their_places(store: Environments, source: Path) -> None:
    """Files and folders, over what the machine has and beside it; with their executable bits."""
    image = (
        Image()
        .add_local_file("consumer.py", "/app/consumer.py")
        .add_local_file("run.sh", "/app/run.sh")
        .add_local_dir("assets", "/etc/pelton-assets")
        .workdir("/app")
    )
    made = build(store, image, source)
    assert made.root is not None
    assert made.python == sys.executable
    if image_root.reason_against():
        pytest.skip("this machine gives no mount namespaces")
    script = "cd /app && python3 consumer.py && ./run.sh && cat /etc/pelton-assets/deep/a.txt"
    done = subprocess.run(
        [sys.executable, "-m", "pelton_platform.deploy.image_root", str(made.root), "sh", "-c", script],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("from /app/consumer.py\nran\none", "")
    assert not Path("/app/consumer.py").exists(), "nobody else sees them"


def test_image_command_is_rewritten_where_nothing_can_be_shown(store: Environments, source: Path) -> None:
    """Arguments that name files of the image lead to them; others stay as they are."""
    made = build(store, Image().add_local_file("consumer.py", "/app/consumer.py"), source)
    root = str(made.root)
    command = ["python", "/app/consumer.py", "--etc", "/etc/passwd", "/app/none"]
    assert image_root.rewritten(command, root) == [
        "python",
        f"{root}/app/consumer.py",
        "--etc",
        "/etc/passwd",
        "/app/none",
    ]


def test_image_is_built_once_by_many(home: Home, source: Path) -> None:
    """Builds of one image at the same time: one builds, the others wait and say so."""
    image = Image().pip_install([PACKAGE]).env({"ONCE": "1"})
    told: list[list[str]] = [[], [], []]
    made: list[Environment] = []
    threads = [
        threading.Thread(
            target=lambda lines=lines: made.append(build(Environments(home), image, source, lines))
        )
        for lines in told
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert len(made) == 3
    assert len(set(made)) == 1
    assert sum(any("was built in" in line for line in lines) for lines in told) == 1


BUILDER = """
import sys
from pathlib import Path
from pelton import Image
from pelton_platform.deploy.environments import Environments
from pelton_platform.deploy.home import Home
folder = Path(sys.argv[2])
image = Image().workdir("/app").run_commands("echo 1 >> count", "echo started; test -e go || sleep 600")
image = image.run_commands("echo 3 >> count").spec(folder)
environment = Environments(Home(Path(sys.argv[1]))).build(image, "c", lambda line: print(line, flush=True))
print(environment.root)
"""


def test_image_build_that_was_killed_goes_on_where_it_was(home: Home, source: Path) -> None:
    """SIGKILL in the middle of a step: nothing of it stays running, and what was done is not done again."""
    if image_root.reason_against():
        pytest.skip("this machine gives no mount namespaces")
    words = [sys.executable, "-c", BUILDER, str(home.root), str(source)]
    first = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "MARK": str(source)}
    )
    assert first.stdout is not None
    assert any(line == "  started\n" for line in iter(first.stdout.readline, ""))
    first.kill()
    first.wait()
    first.stdout.close()
    (count,) = home.images.rglob("count")
    assert count.read_text() == "1\n"
    (count.parent / "go").touch()
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert count.read_text() == "1\n3\n"
    left = process.processes_with_environment("MARK", str(source))
    assert left == ()


def test_image_asking_for_another_python(store: Environments, source: Path, another_python: str) -> None:
    """The one asked for runs it; packages are those for that Python."""
    made = build(store, Image.debian_slim(python=another_python).pip_install([PACKAGE]), source)
    assert made.version.startswith(f"{another_python}.")
    assert made.notes == ()
    assert (
        python(made, "import humanize, pelton, sys; print('%d.%d' % sys.version_info[:2])") == another_python
    )


@pytest.fixture
def another_python() -> Iterator[str]:
    """A minor version that this machine has beside the one of the tests."""
    for minor in (12, 13, 14, 11):
        if minor != sys.version_info[1] and interpreters.find(f"3.{minor}").version[1] == minor:
            yield f"3.{minor}"
            return
    pytest.skip("this machine has one Python that is new enough")


def test_image_asking_for_a_python_that_is_not_there(store: Environments, source: Path) -> None:
    """The nearest one runs it, and the difference is noted."""
    made = build(store, Image.debian_slim(python="3.99").pip_install([PACKAGE]), source)
    (note,) = made.notes
    assert note == f"Python {made.version} instead of 3.99, which this machine does not have"


def test_image_names_debian_packages_that_are_missing(store: Environments, source: Path) -> None:
    """What is installed is not named; what is not is, with the way out."""
    (note,) = build(store, Image().apt_install(["no-such-package", "dpkg"]), source).notes
    assert note == "this machine lacks the Debian packages no-such-package: apt-get install them"


def test_image_store_is_listed_and_pruned(tmp_path: Path, source: Path) -> None:
    """Sizes, steps and states; pruning keeps what is deployed and removes the rest, unfinished builds too."""
    home = Home(tmp_path / "home")
    home.prepare()
    store = Environments(home)
    kept = Image().workdir("/kept")
    build(store, kept, source)
    build(store, Image().workdir("/gone"), source)
    with pytest.raises(DeployError):
        build(store, Image().pip_install(["humanize==0.0.0.1"]), source)
    assert sorted((built.steps, built.complete) for built in store.built()) == [
        (("pip_install(humanize==0.0.0.1)",), False),
        (("workdir(/gone)",), True),
        (("workdir(/kept)",), True),
    ]
    removed, size = store.prune(frozenset({kept.spec().digest}))
    assert len(removed) == 2
    assert size > 0
    assert [built.steps for built in store.built()] == [("workdir(/kept)",)]
    assert store.find(ImageSpec(steps=(("workdir", ("/gone",)),), digest="")) is None
    assert not list(home.images.glob(f"{removed[0]}*"))


def test_image_files_that_change_while_they_are_kept_are_refused(
    store: Environments, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spec names content: other content is never kept under its name."""
    spec = Image().add_local_file("consumer.py", "/app/consumer.py").env({"X": "1"}).spec(source)
    (source / "consumer.py").write_text("something else, for this test alone")
    with pytest.raises(DeployError, match=r"consumer\.py has changed while it was deployed"):
        Environments(Home(source / "home")).keep_files(spec, source)


def test_image_build_is_ended_with_its_own_processes(home: Home, source: Path) -> None:
    """Ctrl-C ends what a build started."""
    if image_root.reason_against():
        pytest.skip("this machine gives no mount namespaces")
    code = BUILDER.replace("/app", "/ended")
    words = [sys.executable, "-c", code, str(home.root), str(source)]
    child = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "MARK": str(source)},
    )
    assert child.stdout is not None
    assert any(line == "  started\n" for line in iter(child.stdout.readline, ""))
    child.send_signal(signal.SIGINT)
    assert child.wait(20) != 0
    child.stdout.close()
    assert process.processes_with_environment("MARK", str(source)) == ()


def test_environment_module_says_where_its_python_is() -> None:
    """The folder of programs of an environment comes first on the path of what runs in it."""
    made = Environment("k", "/images/k/venv/bin/python", "3.12.1", None)
    assert made.binaries == "/images/k/venv/bin"
    assert made.is_separate
    assert environments.Environment("", sys.executable, "3.11.7", None).is_separate is False

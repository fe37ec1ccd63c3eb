"""What the steps of an image mean, which Python serves it, and the Dockerfile that says the same."""

from __future__ import annotations

import pytest

from pelton import Image
from pelton.core.spec import ImageSpec
from pelton_platform.deploy import images
from pelton_platform.deploy.dockerfile import dockerfile
from pelton_platform.deploy.interpreters import Interpreter, choose

WHEEL = "file:///somewhere/pelton-0.1.0-py3-none-any.whl"


def python(version: str, path: str = "") -> Interpreter:
    """A Python of a machine."""
    major, minor, micro = map(int, version.split("."))
    return Interpreter(path or f"/usr/bin/python{major}.{minor}", (major, minor, micro))


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("pip install httpx", ["httpx"]),
        ("pip3 install 'httpx>=0.27' rich", ["httpx>=0.27", "rich"]),
        ("python -m pip install --no-cache-dir httpx==0.27", ["--no-cache-dir", "httpx==0.27"]),
        ("python3 -m pip install httpx[http2]", ["httpx[http2]"]),
        ("uv pip install httpx", ["httpx"]),
        ("pip install httpx # for calls", ["httpx", "#", "for", "calls"]),
        ("pip install httpx && make", None),
        ("pip install httpx>=0.27", None),
        ("pip install $PACKAGES", None),
        ("pip install", None),
        ("pip list", None),
        ("make install", None),
        ("pip install 'unfinished", None),
    ],
)
def test_image_command_that_only_installs_is_understood(command: str, arguments: list[str] | None) -> None:
    """`pip install` in its spellings is a package step; whatever needs a shell is left to one."""
    assert images.pip_arguments(command) == arguments


def test_image_steps_are_built_in_their_order() -> None:
    """Commands one by one; settings that build nothing are no steps; digests are not shown."""
    image = ImageSpec(
        steps=(
            ("debian_slim", ("3.12",)),
            ("run_commands", ("pip install a", "make")),
            ("env", ("A=1",)),
            ("add_local_file", ("a.txt", "/app/a.txt", "f00")),
            ("apt_install", ("git",)),
        )
    )
    assert [(step.kind, step.label) for step in images.build_steps(image)] == [
        ("pip", "pip install a"),
        ("run_commands", "make"),
        ("add_local_file", "add_local_file(a.txt, /app/a.txt)"),
        ("apt_install", "apt_install(git)"),
    ]


def test_image_settings_of_equal_names_end_with_the_last() -> None:
    """Variables and the working folder."""
    image = Image().env({"A": "1", "B": "x=y"}).workdir("/a").env({"A": "2"}).workdir("/b").spec()
    assert images.image_environment(image) == {"A": "2", "B": "x=y"}
    assert images.working_folder(image) == "/b"
    assert images.working_folder(Image().spec()) == ""


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("pelton", f"pelton @ {WHEEL}"),
        ("Pelton==99", f"pelton @ {WHEEL}"),
        ("pelton[platform, embedded]>=0.1", f"pelton[embedded,platform] @ {WHEEL}"),
        ("pelton @ https://example.org/pelton.whl", f"pelton @ {WHEEL}"),
        ("pelton-tools", "pelton-tools"),
        ("--upgrade", "--upgrade"),
    ],
)
def test_image_pelton_is_the_wheel_of_the_platform(written: str, meant: str) -> None:
    """However `pelton` is asked for, it is what runs here, with the extras asked for."""
    assert images.with_own_wheel([written], WHEEL) == [meant]


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (None, "3.11.7"),
        ("3.11", "3.11.7"),
        ("3.12", "3.12.4"),
        ("3.12.1", "3.12.1"),
        ("3.14", "3.13.0"),
        ("3.9", "3.11.7"),
        ("3.12.9", "3.12.4"),
    ],
)
def test_image_python_is_the_asked_one_or_the_nearest(asked: str | None, chosen: str) -> None:
    """Exact when it is there, the newest of a minor version; else the nearest minor version."""
    found = [python("3.11.7"), python("3.12.1"), python("3.12.4"), python("3.13.0")]
    if asked == "3.12.9":
        found = [python("3.11.7"), python("3.12.4")]
    assert choose(asked, found).name == chosen


def test_image_python_too_old_for_the_platform_is_never_chosen() -> None:
    """A 3.10 is nearer to 3.10 than 3.11 is, and cannot run it."""
    assert choose("3.9", [python("3.11.7"), python("3.10.1")]).name == "3.11.7"


def test_image_as_a_dockerfile() -> None:
    """Each step in the words of container builders, in order, with quotes where shells need them."""
    image = (
        Image.debian_slim(python="3.12")
        .apt_install(["git"])
        .pip_install(["httpx>=0.27", "pelton"])
        .run_commands("pip install 'rich<14'", "make all")
        .env({"GREETING": 'say "hi" for $5'})
        .workdir("/app")
        .entrypoint(["python", "/app/main.py"])
    ).spec()
    assert dockerfile(image, "pelton-0.1.0-py3-none-any.whl", "3.11").splitlines() == [
        "FROM python:3.12-slim",
        "",
        "COPY pelton-0.1.0-py3-none-any.whl /opt/pelton/pelton-0.1.0-py3-none-any.whl",
        "RUN pip install --no-cache-dir "
        "'pelton[executor] @ file:///opt/pelton/pelton-0.1.0-py3-none-any.whl'",
        "RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*",
        "RUN pip install --no-cache-dir 'httpx>=0.27' "
        "'pelton @ file:///opt/pelton/pelton-0.1.0-py3-none-any.whl'",
        "RUN pip install 'rich<14'",
        "RUN make all",
        'ENV GREETING="say \\"hi\\" for \\$5"',
        "WORKDIR /app",
        'ENTRYPOINT ["python", "/app/main.py"]',
    ]


def test_image_as_a_dockerfile_with_local_files() -> None:
    """What the folder that is deployed has is copied; the base is the one that was named."""
    image = ImageSpec(
        steps=(
            ("base", ("registry.example/team/python:3",)),
            ("pip_requirements", ("needs/base.txt", "f00")),
            ("uv_sync", (".", "f00")),
            ("add_local_dir", ("assets", "/app/assets", "f00")),
        )
    )
    text = dockerfile(image, "pelton.whl", "3.11")
    assert text.startswith("FROM registry.example/team/python:3\n")
    assert 'COPY ["needs/base.txt", "/opt/pelton/build/base.txt"]' in text
    assert 'COPY ["pyproject.toml", "uv.lock", "/opt/pelton/build/"]' in text
    assert 'COPY ["assets", "/app/assets/"]' in text

"""Images as people use them: packages and files of their own, builds that fail, and what the commands say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton_platform.deploy import image_root
from support.local_platform import LocalPlatform, local_platform, wait_for

# Processes of a whole platform start and stop here, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)

EXAMPLE = Path(__file__).parents[2] / "docs/examples/images"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """One platform for the module that stops idle instances soon."""
    settings = {"PELTON_KEEP_WARM": "2s", "PELTON_DRAIN": "5s"}
    with local_platform(tmp_path_factory.mktemp("images"), settings) as running:
        yield running


def test_cli_image_example_of_the_guide(platform: LocalPlatform) -> None:
    """Packages that the platform lacks, files at their places, variables and folder, for both kinds."""
    folder = platform.work / "example"
    shutil.copytree(EXAMPLE, folder)
    report = platform.json("deploy", str(folder / "report.py"))
    assert report["images"] == {"reports": "built", "report-consumer": "cached"}
    assert platform.run("call", "report", '"a.bin"', "3000000").stdout == "a.bin has 3.0 MB\n"
    said = ["12,345 a.bin has 3.0 MB"]
    if not image_root.reason_against():
        said.insert(0, "Hello from /app/consumer.py in /app")

    def lines() -> list[str]:
        told = platform.run("logs", "report-consumer", "--json").stdout.splitlines()
        return [json.loads(line)["text"] for line in told]

    wait_for(lambda: set(said) <= set(lines()), "the program has said all", 60, lambda: str(lines()))
    unchanged = platform.json("deploy", str(folder / "report.py"))
    assert unchanged["changed"] is False
    assert set(unchanged["images"].values()) == {"cached"}


def test_cli_image_commands(platform: LocalPlatform) -> None:
    """What is listed, built ahead, written as a Dockerfile with its wheel, and removed when unused."""
    file = platform.write(
        "ahead/ahead.py",
        """
        import pelton

        @pelton.function(image=pelton.Image.debian_slim().workdir("/ahead"))
        def ahead() -> str:
            return "ahead"
        """,
    )
    (built,) = platform.json("images", "build", str(file))
    assert built["container"] == "ahead"
    assert platform.run("images", "build", str(file)).stderr == ""
    keys = {row["key"]: row for row in platform.json("images", "ls")}
    assert keys[built["key"]]["complete"] is True
    assert "workdir(/ahead)" in platform.run("images", "ls").stdout
    pruned = platform.json("images", "prune")
    assert built["key"] in pruned["removed"]
    assert all(key not in pruned["removed"] for key, row in keys.items() if "humanize" in str(row["steps"]))
    example = str(EXAMPLE / "report.py")
    failed = platform.run("images", "dockerfile", example, code=1)
    assert "choose with --container: report-consumer, reports" in failed.stderr
    text = platform.run("images", "dockerfile", example, "--container", "reports").stdout
    assert 'COPY ["templates", "/app/templates/"]' in text
    target = platform.work / "context"
    platform.run("images", "dockerfile", example, "--container", "reports", "-o", str(target))
    assert (target / "Dockerfile").read_text() == text
    (wheel,) = target.glob("pelton-*.whl")
    assert f"COPY {wheel.name} " in text


def test_cli_image_that_cannot_be_built_leaves_what_runs(platform: LocalPlatform) -> None:
    """The deploy shows the step and its last lines, and the version that runs goes on answering."""
    source = """
        import pelton

        @pelton.function(image=pelton.Image.debian_slim(){step})
        def steady() -> str:
            return "{text}"
    """
    platform.deploy("steady.py", source.format(step="", text="before"))
    file = platform.write(
        "steady/steady.py", source.format(step='.pip_install(["humanize==0.0.1.1"])', text="after")
    )
    failed = platform.run("deploy", str(file), code=1)
    assert "step 1 of 1, pip_install(humanize==0.0.1.1), failed with exit code 1:" in failed.stderr
    assert "there is no version of humanize==0.0.1.1" in failed.stderr
    assert platform.run("call", "steady").stdout == "before\n"
    assert [row["version"] for row in platform.json("functions") if row["name"] == "steady"] == [1]


def test_cli_image_of_a_python_that_is_not_there(platform: LocalPlatform) -> None:
    """A warning in the deploy and in `pelton ps`; refused when told to be strict."""
    source = """
        import pelton

        @pelton.function(image=pelton.Image.debian_slim(python="3.99"), min_instances=1)
        def future() -> str:
            return "now"
    """
    file = platform.write("future/future.py", source)
    refused = platform.run("deploy", "--strict-python", str(file), code=1)
    assert "asks for Python 3.99, which this machine does not have (the nearest is 3." in refused.stderr
    report = platform.json("deploy", str(file))
    assert any("instead of 3.99" in warning for warning in report["warnings"])
    assert platform.run("call", "future").stdout == "now\n"
    assert "instead of 3.99" in platform.run("ps").stdout
    (row,) = [row for row in platform.json("ps") if row["container"] == "future"]
    assert "instead of 3.99" in row["notes"][0]


def test_cli_image_that_was_removed_is_built_again(platform: LocalPlatform) -> None:
    """Nothing of an image is lost with its environment: the deployer builds it before the next instance."""
    platform.write("again/note.txt", "kept")
    source = """
        import os, pelton

        @pelton.function(image=pelton.Image.debian_slim().add_local_file("note.txt", "/notes/note.txt"))
        def again() -> str:
            return open(os.environ["PELTON_IMAGE_ROOT"] + "/notes/note.txt").read()
    """
    platform.deploy("again.py", source)
    assert platform.run("call", "again").stdout == "kept\n"
    wait_for(lambda: not platform.instances("again"), "no instance is left", 60)
    (platform.work / "again" / "note.txt").unlink()
    removed = json.loads(platform.run("images", "prune", "--all", "--json").stdout)["removed"]
    assert removed
    assert platform.run("call", "again").stdout == "kept\n"

"""Images and secrets: recorded and hashed, values never written anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pelton import Container, Image, Secret
from pelton.core.spec import SecretRef
from pelton.errors import DefinitionError, DeployError
from pelton.loading import collecting
from pelton.secret import captured


def test_steps_are_recorded_in_order() -> None:
    """Each method gives a new image; the old one stays as it was."""
    base = Image.debian_slim(python="3.12")
    image = (
        base.apt_install(["git"])
        .pip_install(["httpx>=0.27", "rich"])
        .run_commands("make", "make install")
        .env({"B": "2", "A": "1"})
        .workdir("/app")
    )
    assert image.packages == ("httpx>=0.27", "rich")
    assert image.spec().python == "3.12"
    assert [kind for kind, _ in image.spec().steps] == [
        "debian_slim",
        "apt_install",
        "pip_install",
        "run_commands",
        "env",
        "workdir",
    ]
    assert dict(image.spec().steps)["env"] == ("A=1", "B=2")
    assert [kind for kind, _ in base.spec().steps] == ["debian_slim"]
    assert Image.base("python:3.12-slim").spec().steps == (("base", ("python:3.12-slim",)),)


def test_the_digest_follows_what_is_asked_for() -> None:
    """Equal steps, equal digest; words never run into each other."""
    assert Image().pip_install(["a"]).spec().digest == Image().pip_install(["a"]).spec().digest
    different = [
        Image(),
        Image().pip_install(["a", "b"]),
        Image().pip_install(["ab"]),
        Image().pip_install(["a"]).pip_install(["b"]),
        Image().apt_install(["a", "b"]),
        Image().run_commands("pip_install", "a"),
    ]
    assert len({image.spec().digest for image in different}) == len(different)
    assert len(set(different)) == len(different)


def test_the_digest_follows_local_files(tmp_path: Path) -> None:
    """A changed, added or renamed file is another image."""
    folder = tmp_path / "assets"
    folder.mkdir()
    (folder / "a.txt").write_text("1")
    image = Image().add_local_file("assets/a.txt", "/app/a.txt").add_local_dir("assets", "/app/assets")
    digests = [image.spec(tmp_path).digest]
    (folder / "a.txt").write_text("2")
    digests.append(image.spec(tmp_path).digest)
    (folder / "b.txt").write_text("")
    digests.append(image.spec(tmp_path).digest)
    (folder / "b.txt").rename(folder / "c.txt")
    digests.append(image.spec(tmp_path).digest)
    assert len(set(digests)) == 4
    assert image.spec(tmp_path).digest == digests[-1]
    (folder / "a.txt").unlink()
    with pytest.raises(DefinitionError, match="there is no file"):
        image.spec(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Image.base(""),
        lambda: Image.base("two words"),
        lambda: Image.debian_slim("2.7"),
        lambda: Image.debian_slim("latest"),
        lambda: Image().pip_install("httpx"),  # type: ignore[arg-type]
        lambda: Image().pip_install([]),
        lambda: Image().apt_install([3]),  # type: ignore[list-item]
        lambda: Image().run_commands(),
        lambda: Image().add_local_file("a", "relative"),
        lambda: Image().add_local_dir("", "/app"),
        lambda: Image().workdir("app"),
        lambda: Image().env({"A": 1}),  # type: ignore[dict-item]
    ],
)
def test_wrong_steps_are_refused(make: Any) -> None:
    """At the line that says them."""
    with pytest.raises(DefinitionError):
        make()


def test_a_secret_of_the_environment_is_captured_at_deploy() -> None:
    """Under its own name, from the environment of the deploy; neither spec nor repr shows it."""
    secret = Secret.from_env("API_KEY")
    assert captured("container 'c'", [secret], {"API_KEY": "s3cret"}) == {"API_KEY": "s3cret"}
    assert secret.ref == SecretRef("API_KEY", "API_KEY")
    assert repr(secret) == "Secret.from_env('API_KEY')"
    with pytest.raises(DeployError, match=r"container 'c' asks for .*export API_KEY"):
        captured("container 'c'", [secret], {})


def test_a_secret_of_the_store_is_not_taken_from_the_environment() -> None:
    """It arrives in a variable of its name, or in the one that is named."""
    secret = Secret(name="db-password")
    assert secret.ref == SecretRef("db-password", "DB_PASSWORD")
    assert captured("container 'c'", [secret], {"DB_PASSWORD": "x"}) == {}
    other = Secret(name="db-password", env="PGPASSWORD")
    assert other.ref == SecretRef("db-password", "PGPASSWORD")
    assert repr(other) == "Secret(name='db-password', env='PGPASSWORD')"
    assert repr(secret) == "Secret(name='db-password')"
    with pytest.raises(DefinitionError, match="A=B"):
        Secret(name="x", env="A=B")


@pytest.mark.parametrize(
    "make", [lambda: Secret("a.b"), lambda: Secret.from_env(""), lambda: Secret.from_env("A=B")]
)
def test_secrets_need_names(make: Any) -> None:
    """A name that cannot be one is refused where it is written."""
    with pytest.raises(DefinitionError):
        make()


def test_the_python_of_a_base_is_read_from_its_tag() -> None:
    """`python:3.12-slim`, of any registry, asks for Python 3.12; other references say nothing of it."""
    assert Image.base("python:3.12-slim").python == "3.12"
    assert Image.base("registry.example/library/python:3.13.1").python == "3.13.1"
    assert Image.base("python:3").python is None
    assert Image.base("ubuntu:24.04").python is None


def test_requirements_files_and_locked_projects_are_part_of_the_digest(tmp_path: Path) -> None:
    """Their content counts, not their name alone."""
    (tmp_path / "needs.txt").write_text("a")
    (tmp_path / "pyproject.toml").write_text("[project]")
    with pytest.raises(DefinitionError, match=r"has no uv\.lock"):
        Image().uv_sync(".").spec(tmp_path)
    (tmp_path / "uv.lock").write_text("version = 1")
    image = Image().pip_install(["b"], requirements="needs.txt").uv_sync()
    assert [kind for kind, _ in image.spec(tmp_path).steps] == ["pip_install", "pip_requirements", "uv_sync"]
    digests = {image.spec(tmp_path).digest}
    (tmp_path / "needs.txt").write_text("b")
    digests.add(image.spec(tmp_path).digest)
    (tmp_path / "uv.lock").write_text("version = 2")
    digests.add(image.spec(tmp_path).digest)
    assert len(digests) == 3
    with pytest.raises(DefinitionError, match="takes a list, or requirements="):
        Image().pip_install()


def test_an_image_may_bring_the_command_of_a_container() -> None:
    """The container's own entrypoint wins; of several the last one of the image counts."""
    image = Image().entrypoint(["python", "a.py"]).entrypoint(["python", "b.py"])
    assert Container(name="one", image=image).entrypoint == ("python", "b.py")
    assert Container(name="two", image=image, entrypoint=["sh"]).entrypoint == ("sh",)
    with pytest.raises(DefinitionError, match="at least one"):
        Image().entrypoint([])


def test_imports_of_an_image_may_be_missing_only_while_a_file_is_deployed() -> None:
    """In executors and everywhere else a missing package is an error as usual."""
    image = Image().pip_install(["no-such-package"])
    with pytest.raises(ModuleNotFoundError), image.imports():
        import no_such_package  # type: ignore[import-not-found]
    with collecting("worker"), image.imports():
        import no_such_package  # noqa: F401
    with pytest.raises(ValueError, match="other"), collecting("worker"), image.imports():
        raise ValueError("other faults are told")

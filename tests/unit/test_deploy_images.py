"""What is checked of an image before anything is deployed."""

from __future__ import annotations

import platform

import pytest

from pelton.core.spec import ImageSpec
from pelton.errors import DeployError
from pelton_platform.deploy.images import check_image, image_environment


def image(*packages: str, python: str | None = None) -> ImageSpec:
    """An image that asks for packages."""
    return ImageSpec(python=python, steps=(("pip_install", packages),))


def test_deploy_image_with_installed_packages_passes() -> None:
    """Names, versions, extras and markers that this environment satisfies give no warning."""
    asked = image("pytest", "Hypothesis>=6", "psycopg[binary]>=3", "no-such-package; python_version < '3'")
    assert check_image(asked, "container 'c'") == []


def test_deploy_image_names_everything_that_is_missing() -> None:
    """Missing packages, other versions and missing extras are all named in one refusal."""
    asked = image("no-such-package>=2", "pytest<1", "psycopg[pool]", "git+file:///somewhere")
    with pytest.raises(DeployError) as caught:
        check_image(asked, "container 'c'")
    text = str(caught.value)
    assert text.startswith("container 'c' asks for packages")
    assert "no-such-package>=2 (not installed)" in text
    assert f"pytest<1 (installed is {pytest.__version__})" in text
    assert "psycopg-pool" in text
    assert "'git+file:///somewhere' (only names with versions can be checked" in text


def test_deploy_image_of_another_python_warns() -> None:
    """Another Python version is a warning that names both; the same one, however exact, is none."""
    ours = platform.python_version_tuple()
    assert check_image(image(python=f"{ours[0]}.{ours[1]}"), "container 'c'") == []
    assert check_image(image(python=platform.python_version()), "container 'c'") == []
    (warning,) = check_image(image(python="3.1"), "container 'c'")
    assert "asks for Python 3.1;" in warning
    assert platform.python_version() in warning


def test_deploy_image_steps_without_effect_are_named() -> None:
    """Steps that only a built image has are said to change nothing here."""
    steps = (("apt_install", ("ffmpeg",)), ("run_commands", ("make",)), ("env", ("A=1",)))
    (warning,) = check_image(ImageSpec(steps=steps), "container 'c'")
    assert warning.endswith("change nothing here: apt_install, run_commands")


def test_deploy_image_variables() -> None:
    """`Image.env` reaches the container; the last value of a name counts."""
    assert image_environment(ImageSpec(steps=(("env", ("A=1", "B=x=y")), ("env", ("A=2",))))) == {
        "A": "2",
        "B": "x=y",
    }

"""The root of the repository: seven given names, floors that are folders and never packages."""

from __future__ import annotations

import pytest

from support.tree import FLOORS, ROOT, files, python_files, relative

GIVEN = {"platform", "consumer_templates", "schemas", "sdk", "helm", "tests", "pyproject.toml"}


def test_the_seven_names_stand_at_the_root() -> None:
    """Every given name exists at the root."""
    assert {path.name for path in ROOT.iterdir()} >= GIVEN


def test_the_root_holds_no_other_folder_than_the_given_ones_and_docs() -> None:
    """No folder appears at the root beside the given ones, docs and hidden configuration."""
    folders = {relative(path).parts[0] for path in files() if len(relative(path).parts) > 1}
    assert {name for name in folders if not name.startswith(".")} <= GIVEN | {"docs"}


@pytest.mark.parametrize("floor", ["platform", "consumer_templates", "schemas", "sdk", "helm", "tests"])
def test_a_root_folder_is_a_floor_and_never_a_package(floor: str) -> None:
    """Without `__init__.py` a root folder shadows no module; `platform` would break pytest itself."""
    assert not (ROOT / floor / "__init__.py").exists()


def test_no_test_folder_is_a_package() -> None:
    """Test folders have no `__init__.py`, so that no folder of tests can shadow what it tests."""
    assert [str(relative(path)) for path in python_files("tests") if path.name == "__init__.py"] == []


def test_no_test_folder_is_called_platform() -> None:
    """A folder `tests/unit/platform` on the path would shadow the standard library's `platform`."""
    assert [str(relative(path)) for path in files() if "platform" in relative(path).parts[1:-1]] == []


@pytest.mark.parametrize(("floor", "package"), FLOORS.items())
def test_a_floor_holds_one_typed_import_package(floor: str, package: str) -> None:
    """Each floor holds exactly its import package, and that one carries `py.typed`."""
    inside = {relative(path).parts[1] for path in files() if relative(path).parts[0] == floor}
    assert inside == {package}
    assert (ROOT / floor / package / "py.typed").exists()

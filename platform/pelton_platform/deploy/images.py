"""What an image asks for, held against the Python environment that the platform runs in."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from pelton.core.spec import ImageSpec
from pelton.errors import DeployError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PIP_INSTALL = "pip_install"
ENV = "env"

_FOLLOWED = frozenset({PIP_INSTALL, ENV, "debian_slim"})


def check_image(image: ImageSpec, what: str) -> list[str]:
    """Make sure that the platform's environment has what an image asks for.

    Args:
        image: The image.
        what: Whose image it is, for messages: `container 'train'`.

    Returns:
        Warnings, one sentence each.

    Raises:
        DeployError: Packages are missing or have another version; the message names them all.
    """
    asked = [word for kind, words in image.steps if kind == PIP_INSTALL for word in words]
    faults = [fault for word in asked for fault in _faults(word)]
    if faults:
        raise DeployError(
            f"{what} asks for packages that the platform's Python environment does not have: "
            f"{'; '.join(faults)}. Install them there, then deploy again"
        )
    warnings = []
    if image.python is not None and not _is_this_python(image.python):
        warnings.append(
            f"{what} asks for Python {image.python}; the local platform runs it with its own "
            f"Python {platform.python_version()}"
        )
    others = sorted({kind for kind, _ in image.steps} - _FOLLOWED)
    if others:
        warnings.append(
            f"{what}: the local platform runs code in its own environment, so these image steps change "
            f"nothing here: {', '.join(others)}"
        )
    return warnings


def image_environment(image: ImageSpec) -> dict[str, str]:
    """Return the variables that an image sets; of equal names the last one counts."""
    pairs = (word.partition("=") for kind, words in image.steps if kind == ENV for word in words)
    return {name: value for name, _, value in pairs}


def _is_this_python(asked: str) -> bool:
    parts = asked.split(".")
    return list(platform.python_version_tuple()[: len(parts)]) == parts


def _faults(word: str) -> Iterator[str]:
    """Say what is wrong with one requirement; nothing when the environment satisfies it."""
    # Late: only deploys read requirements, and deployers and supervisors start sooner without the parser.
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(word)
    except InvalidRequirement:
        yield f"{word!r} (only names with versions can be checked, such as 'numpy>=2')"
        return
    yield from _unsatisfied(requirement, extras=("",), seen=set())


def _unsatisfied(requirement: Requirement, extras: Iterable[str], seen: set[str]) -> Iterator[str]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    marker = requirement.marker
    if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
        return
    asked = str(requirement.specifier)
    try:
        found = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        yield f"{requirement.name}{asked} (not installed)"
        return
    if requirement.url is not None or not requirement.specifier.contains(found.version, prereleases=True):
        wanted = f" @ {requirement.url}" if requirement.url is not None else asked
        yield f"{requirement.name}{wanted} (installed is {found.version})"
        return
    # An extra asks for more packages, which the plain package may be installed without.
    for extra in requirement.extras:
        name = f"{canonicalize_name(requirement.name)}[{extra}]"
        if name in seen:
            continue
        seen.add(name)
        for line in found.requires or ():
            more = Requirement(line)
            if more.marker is not None and "extra" in str(more.marker):
                yield from _unsatisfied(more, (extra,), seen)

"""An image as a Dockerfile: the same steps in the words of container builders."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

from pelton.core.spec import ImageSpec
from pelton_platform.deploy import images

WHEEL_PLACE = "/opt/pelton"
_PLACE = "/opt/pelton/build"


def dockerfile(image: ImageSpec, wheel: str, python: str) -> str:
    """Return the text of a Dockerfile.

    Args:
        image: The image.
        wheel: File name of the platform's own wheel, which lies in the build context.
        python: Version of Python for images that ask for none.

    Returns:
        Its text. Local files are copied from the folder that is deployed, which is the build context.
    """
    lines = [f"FROM {_base(image, python)}", ""]
    lines += [
        f"COPY {wheel} {WHEEL_PLACE}/{wheel}",
        f"RUN pip install --no-cache-dir '{_own('pelton[executor]', wheel)}'",
    ]
    for kind, words in image.steps:
        lines += _instructions(kind, words, wheel)
    return "\n".join(lines) + "\n"


def _base(image: ImageSpec, python: str) -> str:
    return images.base_of(image) or f"python:{image.python or python}-slim"


def _instructions(kind: str, words: tuple[str, ...], wheel: str) -> Iterator[str]:
    if kind == images.PIP_INSTALL:
        packages = images.with_own_wheel(words, _place(wheel))
        yield f"RUN pip install --no-cache-dir {shlex.join(packages)}"
    elif kind == images.PIP_REQUIREMENTS:
        yield f"COPY {_json(words[0], f'{_PLACE}/{PurePosixPath(words[0]).name}')}"
        yield f"RUN pip install --no-cache-dir -r {shlex.quote(f'{_PLACE}/{PurePosixPath(words[0]).name}')}"
    elif kind == images.UV_SYNC:
        folder = PurePosixPath(words[0])
        yield f"COPY {_json(str(folder / 'pyproject.toml'), str(folder / 'uv.lock'), f'{_PLACE}/')}"
        yield (
            f"RUN pip install --no-cache-dir uv && cd {_PLACE} && uv export --frozen --no-emit-project "
            "--no-dev -o requirements.txt && pip install --no-cache-dir -r requirements.txt"
        )
    elif kind == images.APT_INSTALL:
        yield (
            f"RUN apt-get update && apt-get install -y --no-install-recommends {shlex.join(words)} "
            "&& rm -rf /var/lib/apt/lists/*"
        )
    elif kind == images.RUN_COMMANDS:
        for command in words:
            arguments = images.pip_arguments(command)
            if arguments is None:
                yield f"RUN {command}"
            else:
                yield f"RUN pip install {shlex.join(images.with_own_wheel(arguments, _place(wheel)))}"
    elif kind in (images.ADD_FILE, images.ADD_DIR):
        yield f"COPY {_json(words[0], words[1] + ('/' if kind == images.ADD_DIR else ''))}"
    elif kind == images.ENV:
        for word in words:
            name, _, value = word.partition("=")
            yield f"ENV {name}={json.dumps(value, ensure_ascii=False).replace('$', chr(92) + '$')}"
    elif kind == images.WORKDIR:
        yield f"WORKDIR {words[0]}"
    elif kind == images.ENTRYPOINT:
        yield f"ENTRYPOINT {_json(*words)}"


def _own(word: str, wheel: str) -> str:
    return images.with_own_wheel([word], _place(wheel))[0]


def _place(wheel: str) -> str:
    return f"file://{WHEEL_PLACE}/{wheel}"


def _json(*words: str) -> str:
    return json.dumps(words, ensure_ascii=False)

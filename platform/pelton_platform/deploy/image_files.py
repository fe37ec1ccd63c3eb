"""Local files of images: kept under the hash of their content, and laid out where an image wants them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from pelton.core.spec import ImageSpec
from pelton.errors import DeployError
from pelton.image import LOCAL_STEPS, content_digest, local_files


def keep(image: ImageSpec, source: Path, store: Path) -> None:
    """Copy the local files of an image into the store, unless they are there.

    Args:
        image: The image.
        source: The folder that is deployed, from which its paths are read.
        store: Where they are kept, by the digest in the step.

    Raises:
        DeployError: A file changed while it was copied.
        DefinitionError: A file is not there.
    """
    for kind, words in image.steps:
        if kind not in LOCAL_STEPS or (store / words[-1]).exists():
            continue
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=store, prefix=".draft-"))
        try:
            files = local_files(source, kind, words[0])
            for place, path in files.items():
                target = draft / place if place else draft / "file"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
            whole = draft / "file" if list(files) == [""] else draft
            if content_digest(draft, kind, str(whole)) != words[-1]:
                raise DeployError(f"{words[0]} has changed while it was deployed; deploy again")
            if not (store / words[-1]).exists():
                os.rename(whole, store / words[-1])
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def lay(kept: Path, target: Path) -> None:
    """Put what was kept at its place, over what may be there; executable files stay executable."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if kept.is_dir():
        shutil.copytree(kept, target, dirs_exist_ok=True)
    else:
        shutil.copy(kept, target)

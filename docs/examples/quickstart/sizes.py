"""A function with a package that only its image has, and a secret that only its executors see."""

from __future__ import annotations

import os

from pelton import Image, Secret, function

image = Image.debian_slim().pip_install(["humanize>=4.9,<5"])

with image.imports():
    import humanize


@function(image=image, secrets=[Secret(name="signature")], memory="256Mi", max_instances=2)
def size(number: int) -> str:
    """A number of bytes in words, signed."""
    return f"{humanize.naturalsize(number)}, says {os.environ['SIGNATURE']}"

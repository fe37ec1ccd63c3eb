"""Large arguments and values: arrays of tens of megabytes go in and come back."""

from __future__ import annotations

import numpy as np

import pelton

studio = pelton.Container(name="studio", max_instances=1, max_concurrent_requests=2)


@pelton.function(container=studio)
def brighten(image: np.ndarray, by: int) -> np.ndarray:
    """Adds to each pixel of an image, in place: the array that arrives is the function's own."""
    image += np.uint8(by)
    return image


if __name__ == "__main__":
    photo = np.zeros((4000, 3000, 3), dtype=np.uint8)  # 34 MiB
    brighter = brighten(photo, 7)
    print(brighter.shape, int(brighter.min()), int(brighter.max()), int(photo.max()))

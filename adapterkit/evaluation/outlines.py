"""Outlines of masks as SVG paths, which stay sharp however large they are shown."""

from typing import cast

import contourpy
import numpy as np
from jaxtyping import Bool, Float


def outline(height: Float[np.ndarray, "H W"], inside: Bool[np.ndarray, "H W"]) -> str:
    """SVG path around the pixels inside, in pixels from the image's upper left corner.

    Args:
        height: above 0 inside, if only roughly; the path runs where it crosses 0.
        inside: which pixels the path encloses.
    """
    tiny = np.float32(1e-6)
    level = np.where(inside, np.maximum(height, tiny), np.minimum(height, -tiny))
    # Where the mask reaches the image's border, the path follows it.
    level = np.pad(level, 1, mode="edge")
    ring = np.pad(np.zeros_like(inside), 1, constant_values=True)
    level[ring] = -abs(level[ring])
    lines = cast(
        list[np.ndarray], contourpy.contour_generator(z=level, line_type="Separate").lines(0)
    )
    # The centre of the padding's first pixel lies half a pixel outside of the image.
    paths = (" ".join(f"{x - 0.5:.1f},{y - 0.5:.1f}" for x, y in line) for line in lines)
    return " ".join(f"M{path}Z" for path in paths)

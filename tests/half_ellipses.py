"""Hearts whose ventricle and atrium are half ellipsoids, of known volumes."""

import math

import numpy as np
from jaxtyping import UInt8

Labels = UInt8[np.ndarray, "H W"]


def half_ellipses(
    length: float = 80,
    radius: float = 24,
    angle: float = 0,
    spacing: tuple[float, float] = (0.5, 0.5),
    middle: tuple[float, float] = (75, 80),
    size: float = 160,
) -> Labels:
    """A ventricle that is half an ellipse, and an atrium of half its length, in mm.

    They meet in the middle, (x, y); with angle 0 the ventricle's apex points up.
    """
    row, column = spacing
    y, x = np.mgrid[: round(size / row), : round(size / column)] * np.reshape(spacing, (2, 1, 1))
    dx, dy = x - middle[0], y - middle[1]
    along = dx * math.sin(angle) - dy * math.cos(angle)
    across = dx * math.cos(angle) + dy * math.sin(angle)
    ventricle = (along > 0) & ((along / length) ** 2 + (across / radius) ** 2 < 1)
    atrium = (along <= 0) & ((along / length * 2) ** 2 + (across / radius) ** 2 < 1)
    return np.select([ventricle, atrium], [1, 3], 0).astype(np.uint8)


def of_half_ellipsoid(length: float, radius: float) -> float:
    return 2 / 3 * math.pi * radius**2 * length


def beat(frames: int = 21) -> np.ndarray:
    """A sequence that contracts and fills again: ED is in frame 0, ES in the middle."""
    times = 0.5 + 0.5 * np.cos(np.linspace(0, 1.8 * math.pi, frames))
    return np.stack([half_ellipses(45 + 15 * t, 16 + 8 * t, spacing=(1, 1)) for t in times])

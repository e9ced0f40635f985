"""Outlines of procedural objects, and the pixels that they cover."""

import math

import numpy as np
from jaxtyping import Float
from numpy.random import Generator
from PIL import Image, ImageDraw

Outline = Float[np.ndarray, "n 2"]
"""Corners (x, y) of a closed polygon, in units of the image's side."""


def random_outline(rng: Generator, radius: float) -> Outline:
    """A closed polygon around the origin, of one of several kinds."""
    kind = rng.choice(["blob", "blob", "ellipse", "polygon", "box", "stroke"])
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    if kind == "stroke":
        return _stroke(rng, radius)
    if kind == "blob":
        orders = np.arange(1, 7)
        waves = rng.normal(size=(2, 6)) * rng.uniform(0.1, 0.5) / orders
        phases = orders * angles[:, None]
        radii = np.exp(np.cos(phases) @ waves[0] + np.sin(phases) @ waves[1])
    elif kind == "polygon":
        angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 10)))
        radii = rng.uniform(0.5, 1.2, len(angles))
    elif kind == "box":
        # A superellipse, from rounded to nearly square.
        power = rng.uniform(3, 12)
        cos, sin = np.abs(np.cos(angles)), np.abs(np.sin(angles))
        radii = (cos**power + sin**power) ** (-1 / power)
    else:
        radii = np.ones_like(angles)
    points = radius * radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points[:, 1] *= rng.uniform(0.35, 1)
    return turn(points, rng.uniform(0, 2 * math.pi))


def _stroke(rng: Generator, radius: float) -> Outline:
    """A thin curved band, as of a branch, a cable or a limb."""
    along = np.linspace(-1, 1, 24)
    bend = rng.normal(size=3) * (0.5, 0.35, 0.2)
    centre = np.stack([along, bend @ np.stack([along**2, along**3, np.sin(3 * along)])], axis=1)
    tangent = np.gradient(centre, axis=0)
    normal = tangent[:, ::-1] * (-1, 1) / np.linalg.norm(tangent, axis=1, keepdims=True)
    half_width = rng.uniform(0.06, 0.2) * np.linspace(1, rng.uniform(0.3, 1), 24)[:, None]
    band = np.concatenate([centre + half_width * normal, (centre - half_width * normal)[::-1]])
    return turn(1.5 * radius * band, rng.uniform(0, 2 * math.pi))


def turn(points: Outline, angle: float) -> Outline:
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def bounding_box(outline: Outline, size: int) -> tuple[slice, slice]:
    """The pixels that an outline may touch, at least one."""
    low = np.clip(np.floor(size * outline.min(0)).astype(int) - 1, 0, size - 1)
    high = np.clip(np.ceil(size * outline.max(0)).astype(int) + 1, low + 1, size)
    return slice(low[1], high[1]), slice(low[0], high[0])


def rasterise(outline: Outline, box: tuple[slice, slice], size: int) -> Float[np.ndarray, "h w"]:
    """Coverage in [0, 1] of a polygon, antialiased."""
    rows, columns = box
    fine = Image.new("L", (2 * (columns.stop - columns.start), 2 * (rows.stop - rows.start)))
    corners = 2 * (size * outline - (columns.start, rows.start))
    ImageDraw.Draw(fine).polygon(corners.ravel().tolist(), fill=255)
    return np.asarray(fine.reduce(2), np.float32) / 255

"""Procedural scenes of overlapping objects with exact masks: something for a `Sam` to learn from.

A scene is drawn back to front, as things hide each other in a photograph: background regions, then
objects, some with parts that lie within them. Each has its own colour, shading and texture with the
1/f spectrum of natural images; light, blur, noise and contrast are the whole image's. Nothing in it
is modelled on ultrasound or on any other medical image.

What may be segmented is every background region, object, part and whole: a whole is an object
together with its parts, so a point on a part means either.
"""

import math

import numpy as np
from jaxtyping import Float, UInt8
from numpy.random import Generator
from scipy import ndimage

from adapterkit.data.synthetic.canvas import Canvas, Coverage, Scene
from adapterkit.data.synthetic.materials import Material, random_texture
from adapterkit.data.synthetic.outlines import bounding_box, random_outline, rasterise


def draw_scene(rng: Generator, size: int) -> Scene:
    """A scene of `size` x `size` pixels; the same for a generator in the same state.

    Raises:
        ValueError: `size` is not between 32 and 512.
    """
    canvas = Canvas(size)
    draw_background(rng, canvas)
    for _ in range(rng.integers(2, 10)):
        draw_object(rng, canvas)
    return Scene(photograph(rng, canvas.colour), canvas.masks())


def draw_background(rng: Generator, canvas: Canvas) -> None:
    size = canvas.size
    everywhere = (slice(0, size), slice(0, size))
    canvas.paint(Coverage(everywhere, np.ones((size, size), np.float32)), Material(rng, size))
    for _ in range(rng.choice([0, 0, 1, 2])):
        field = random_texture(rng, size, smoothest=True)
        # A tilt makes horizons and walls of what would else be islands.
        angle, tilt = rng.uniform(0, 2 * math.pi), rng.uniform(0, 6)
        across = np.linspace(-0.5, 0.5, size, dtype=np.float32)
        field = field + tilt * (math.cos(angle) * across + math.sin(angle) * across[:, None])
        field = field - np.quantile(field, rng.uniform(0.3, 0.8))
        slope = np.abs(np.gradient(field, axis=0)) + np.abs(np.gradient(field, axis=1)) + 1e-3
        alpha = np.clip(0.5 + field / slope, 0, 1).astype(np.float32)
        canvas.paint(Coverage(everywhere, alpha), Material(rng, size))


def draw_object(rng: Generator, canvas: Canvas) -> None:
    size = canvas.size
    outline = random_outline(rng, radius=math.exp(rng.uniform(math.log(0.06), math.log(0.35))))
    outline = outline + rng.uniform(0.02, 0.98, 2)
    box = bounding_box(outline, size)
    coverage = Coverage(box, rasterise(outline, box, size))
    if rng.random() < 0.12:
        # A hole shows what lies behind.
        inner = outline.mean(0) + rng.uniform(0.4, 0.75) * (outline - outline.mean(0))
        coverage = coverage.times(1 - rasterise(inner, box, size))
    if rng.random() < 0.3:
        _cast_shadow(rng, canvas, coverage)
    members = [canvas.paint(coverage, Material(rng, size))]
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 3])):
        anchor = outline[rng.integers(len(outline))] * 0.6 + outline.mean(0) * 0.4
        extent = np.ptp(outline, axis=0).min()
        part = anchor + random_outline(rng, radius=extent * rng.uniform(0.12, 0.4))
        inside = coverage.times(rasterise(part, box, size))
        members.append(canvas.paint(inside, Material(rng, size)))
    if len(members) > 1:
        canvas.wholes.append(members)


def _cast_shadow(rng: Generator, canvas: Canvas, coverage: Coverage) -> None:
    size, (rows, columns) = canvas.size, coverage.box
    down, right = np.round(rng.uniform(-0.04, 0.04, 2) * size).astype(int)
    margin = size // 16
    box = (
        slice(max(rows.start - margin, 0), min(rows.stop + margin, size)),
        slice(max(columns.start - margin, 0), min(columns.stop + margin, size)),
    )
    shadow = np.zeros((size, size), np.float32)
    shadow[coverage.box] = coverage.alpha
    shadow = np.roll(shadow[box], (down, right), axis=(0, 1))
    shadow = ndimage.uniform_filter(shadow, max(3, size // 40))
    canvas.colour[box] *= 1 - rng.uniform(0.2, 0.6) * shadow[..., None]


def photograph(rng: Generator, colour: Float[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "S S 3"]:
    """The scene under its light, through a lens and on a sensor."""
    size = len(colour)
    light = np.float32(rng.uniform(0, 0.25)) * random_texture(rng, size, smoothest=True)
    image = colour * (1 + light[..., None])
    if rng.random() < 0.5:
        sigma = rng.uniform(0.3, 2.0) * size / 512
        image = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    if rng.random() < 0.25:
        image = np.repeat(image @ np.full((3, 1), 1 / 3, np.float32), 3, axis=-1)
    image = 0.5 + rng.uniform(0.6, 1.2) * (image - 0.5) + rng.uniform(-0.1, 0.1)
    if rng.random() < 0.7:
        image = image + rng.uniform(0, 0.08) * rng.standard_normal(image.shape, dtype=np.float32)
    return (255 * np.clip(image, 0, 1)).round().astype(np.uint8)

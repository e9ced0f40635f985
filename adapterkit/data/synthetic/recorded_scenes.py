"""Procedural scenes as instruments record them: what a `Sam` meets beyond photographs.

Things lie within things and in thin layers, many of them with hardly a contrast to what surrounds
them; the image is a photograph, or grey with the multiplicative speckle of coherent waves
(ultrasound, radar, coherence tomography), or grey with the noise of few quanta, and may end at the
border of a fan-shaped, round or rectangular field of view. That is physics of imaging; no shape in
it is modelled on an organ.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.random import Generator
from scipy import ndimage

from adapterkit.data.synthetic.canvas import MIN_AREA, Canvas, Coverage, Scene
from adapterkit.data.synthetic.materials import Material, random_texture
from adapterkit.data.synthetic.outlines import (
    Outline,
    bounding_box,
    random_outline,
    rasterise,
    turn,
)
from adapterkit.data.synthetic.scenes import draw_background, draw_object, photograph

Grey = Float[np.ndarray, "S S"]


def draw_recorded_scene(rng: Generator, size: int) -> Scene:
    """A scene of `size` x `size` pixels; the same for a generator in the same state.

    Masks end where the field of view does.

    Args:
        rng: the source of all that is random.
        size: between 32 and 512.

    Raises:
        ValueError: `size` is not.
    """
    canvas = Canvas(size)
    draw_background(rng, canvas)
    draw = (draw_object, _draw_nested, _draw_layers)
    for kind in rng.choice(3, rng.integers(2, 9), p=[0.35, 0.45, 0.2]):
        draw[kind](rng, canvas)
    if rng.random() < 0.2:
        length = rng.integers(2, 14) * size // 512 + 1
        ndimage.uniform_filter1d(
            canvas.colour, length, axis=int(rng.integers(2)), output=canvas.colour
        )
    record = (photograph, _in_waves, _in_quanta)[rng.choice(3, p=[0.3, 0.45, 0.25])]
    image, masks = record(rng, canvas.colour), canvas.masks()
    if rng.random() < 0.5:
        seen = _field_of_view(rng, size)
        image = np.where(seen[..., None], image, np.uint8(rng.choice([0, 0, 0, 8, 30, 255])))
        masks = masks & seen
    masks = masks[masks.sum((1, 2)) >= MIN_AREA * size**2]
    # A whole of which the field of view shows one member is that member again.
    distinct = {mask.tobytes(): mask for mask in masks}
    return Scene(image, np.stack(list(distinct.values())) if len(masks) else masks)


def _material(rng: Generator, canvas: Canvas, coverage: Coverage) -> Material:
    """Any, or one of nearly the colour that it will cover, told by its texture or its edge."""
    material = Material(rng, canvas.size)
    if rng.random() < 0.5:
        weight = coverage.alpha.sum() + 1e-3
        under = (coverage.alpha[..., None] * canvas.colour[coverage.box]).sum((0, 1)) / weight
        difference = rng.normal() * rng.choice([0.01, 0.05, 0.12])
        material.base = (under + difference).astype(np.float32)
    return material


def _softened(rng: Generator, canvas: Canvas, coverage: Coverage) -> Coverage:
    """With a border of a random sharpness of its own."""
    if rng.random() < 0.6:
        return coverage
    width = rng.uniform(0.5, 6) * canvas.size / 512
    return Coverage(coverage.box, ndimage.gaussian_filter(coverage.alpha, width, mode="nearest"))


def _draw_nested(rng: Generator, canvas: Canvas) -> None:
    """A thing with a smaller one of its own shape in it, and perhaps one more: a shell and its
    cavity. The inner one may reach through the shell, which is then open to one side."""
    size = canvas.size
    shape = random_outline(rng, radius=math.exp(rng.uniform(math.log(0.1), math.log(0.45))))
    shape = shape + rng.uniform(0.1, 0.9, 2)
    members = []
    for level in range(int(rng.choice([2, 2, 3]))):
        if level:
            middle = shape.mean(0)
            shrunken = middle + rng.uniform(0.5, 0.88) * (shape - middle)
            shape = shrunken + rng.normal(size=2) * rng.choice([0.02, 0.15]) * np.ptp(shape, axis=0)
        box = bounding_box(shape, size)
        coverage = Coverage(box, rasterise(shape, box, size))
        material = _material(rng, canvas, coverage)
        members.append(canvas.paint(_softened(rng, canvas, coverage), material))
    canvas.wholes.append(members)


def _draw_layers(rng: Generator, canvas: Canvas) -> None:
    """One to three bands that lie on each other and cross the image."""
    size, bands = canvas.size, int(rng.integers(1, 4))
    along = np.linspace(-0.75, 0.75, 48)
    waves = rng.normal(size=3) * (0.12, 0.06, 0.03) * rng.uniform(0, 1)
    phases = rng.uniform(0, 2 * math.pi, 3)
    edge = rng.uniform(-0.4, 0.4) + np.sin(np.outer(along, (3, 7, 15)) + phases) @ waves
    angle, members = rng.uniform(0, math.pi), []
    for _ in range(bands):
        thickness = math.exp(rng.uniform(math.log(0.012), math.log(0.12)))
        ripple = 1 + 0.3 * np.sin(rng.uniform(2, 8) * along + rng.uniform(0, 6))
        lower = edge + thickness * ripple
        band: Outline = np.concatenate(
            [np.stack([along, edge], 1), np.stack([along, lower], 1)[::-1]]
        )
        edge = lower
        shape = turn(band, angle) + 0.5
        box = bounding_box(shape, size)
        coverage = Coverage(box, rasterise(shape, box, size))
        material = _material(rng, canvas, coverage)
        members.append(canvas.paint(_softened(rng, canvas, coverage), material))
    if bands > 1:
        canvas.wholes.append(members)


def _grey(rng: Generator, colour: Float[np.ndarray, "S S 3"]) -> Grey:
    """In [0, 1]; now and then inverted, as scales of instruments are arbitrary."""
    grey = np.clip(colour.mean(-1), 0, 1)
    return 1 - grey if rng.random() < 0.3 else grey


def _in_waves(rng: Generator, colour: Float[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "S S 3"]:
    """The log-compressed envelope of coherent waves: speckle, and loss with depth.

    Fully developed speckle is Rayleigh distributed; looks are independent and averaged. Its grains
    are wider across the beam than along it.
    """
    size = len(colour)
    range_db = rng.uniform(25, 60)
    level = (_grey(rng, colour) - 1) * range_db * rng.uniform(0.5, 1)
    depth = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    level = level + (rng.normal() * 8 * depth + rng.normal() * 4 * depth**2)[:, None]
    level = level + rng.uniform(0, 4) * random_texture(rng, size, smoothest=True)
    looks = int(rng.choice([1, 2, 3]))
    along = rng.uniform(0.5, 1.6) * size / 512
    across = along * rng.uniform(1, 3.5)
    noise = rng.standard_normal((2 * looks, size, size), dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0, along, across), truncate=3)
    power = (noise**2).sum(0)
    haze = 10 ** (rng.uniform(-range_db, -10) / 10)
    intensity = (10 ** (level / 10) + haze) * power / power.mean()
    grey = 1 + 10 * np.log10(intensity + 1e-9) / range_db + rng.uniform(-0.25, 0.1)
    if rng.random() < 0.4:
        grey = ndimage.gaussian_filter(grey, rng.uniform(0.3, 1.5) * size / 512)
    return _rgb(grey)


def _in_quanta(rng: Generator, colour: Float[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "S S 3"]:
    """Few quanta: noise that grows with the signal, of a grain of its own, after a blur."""
    size = len(colour)
    grey = ndimage.gaussian_filter(_grey(rng, colour), rng.uniform(0.3, 2.5) * size / 512)
    grey = 0.5 + rng.uniform(0.3, 1.2) * (grey - 0.5) + rng.uniform(-0.2, 0.2)
    grey = grey + rng.uniform(0, 0.15) * random_texture(rng, size, smoothest=True)
    noise = rng.standard_normal((size, size), dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, rng.uniform(0.0, 1.5) * size / 512)
    noise /= noise.std()
    spread = rng.uniform(0, 0.12) * np.sqrt(np.clip(grey, 0.05, 1))
    return _rgb(grey + spread * noise)


def _rgb(grey: Grey) -> UInt8[np.ndarray, "S S 3"]:
    pixels = (255 * np.clip(grey, 0, 1)).round().astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=-1)


def _field_of_view(rng: Generator, size: int) -> Bool[np.ndarray, "S S"]:
    """A fan from a point above the image, a disc or a rectangle; turned by quarters."""
    x, y = np.meshgrid(*2 * [(np.arange(size) + 0.5) / size])
    kind = rng.choice(["fan", "fan", "disc", "rectangle"])
    if kind == "fan":
        apex_x, apex_y = rng.uniform(0.35, 0.65), rng.uniform(-0.4, 0.08)
        radius, angle = np.hypot(x - apex_x, y - apex_y), np.arctan2(x - apex_x, y - apex_y)
        near = max(0.0, 0.05 - apex_y) if rng.random() < 0.7 else 0.0
        far = rng.uniform(0.8, 1.1) - apex_y
        seen = (np.abs(angle) < rng.uniform(0.45, 0.85)) & (radius > near) & (radius < far)
    elif kind == "disc":
        centre = rng.uniform(0.4, 0.6, 2)
        seen = np.hypot(x - centre[0], y - centre[1]) < rng.uniform(0.35, 0.6)
    else:
        left, top = rng.uniform(0, 0.2, 2)
        right, bottom = rng.uniform(0.8, 1, 2)
        seen = (x > left) & (x < right) & (y > top) & (y < bottom)
    return np.rot90(seen, int(rng.choice([0, 0, 0, 1, 2, 3])))

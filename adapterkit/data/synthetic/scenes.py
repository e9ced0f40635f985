"""Procedural scenes of overlapping objects with exact masks: something for a `Sam` to learn from.

A scene is drawn back to front, as things hide each other in a photograph: background regions, then
objects, some with parts that lie within them. Each has its own colour, shading and texture with the
1/f spectrum of natural images; light, blur, noise and contrast are the whole image's. Nothing in it
is modelled on ultrasound or on any other medical image.

What may be segmented is every background region, object, part and whole: a whole is an object
together with its parts, so a point on a part means either.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy import ndimage

_TILE = 512
_TILES = 24

Outline = Float[np.ndarray, "n 2"]
"""Corners (x, y) of a closed polygon, in units of the image's side."""


@dataclass(frozen=True)
class Scene:
    """A drawn image and the masks of all that may be segmented in it.

    Attributes:
        image: RGB in [0, 255].
        masks: the visible pixels of each background region, object, part and whole, every one at
            least `MIN_AREA` of the image.
    """

    image: UInt8[np.ndarray, "S S 3"]
    masks: Bool[np.ndarray, "n S S"]


MIN_AREA = 0.005
"""Smallest mask, as a share of the image: 18 x 18 pixels of 256 x 256."""


def draw_scene(rng: Generator, size: int) -> Scene:
    """A scene of `size` x `size` pixels; the same for a generator in the same state.

    Raises:
        ValueError: `size` is not between 32 and 512.
    """
    if not 32 <= size <= _TILE:
        raise ValueError(f"size is {size} pixels: expected between 32 and {_TILE}")
    canvas = _Canvas(size)
    _draw_background(rng, canvas)
    for _ in range(rng.integers(2, 10)):
        _draw_object(rng, canvas)
    return Scene(_photograph(rng, canvas.colour), canvas.masks())


@dataclass(frozen=True)
class _Coverage:
    """How much of each pixel of a box is covered, in [0, 1]; nothing is covered outside."""

    box: tuple[slice, slice]
    alpha: Float[np.ndarray, "h w"]

    def times(self, alpha: Float[np.ndarray, "h w"]) -> "_Coverage":
        return _Coverage(self.box, self.alpha * alpha)


class _Canvas:
    """The image so far, and which thing each pixel shows."""

    def __init__(self, size: int):
        self.size = size
        self.colour = np.zeros((size, size, 3), np.float32)
        self.shown = np.zeros((size, size), np.uint8)
        self.things = 0
        self.wholes: list[list[int]] = []

    def paint(self, coverage: _Coverage, material: "_Material") -> int:
        """Lay a new thing over the image; its number."""
        self.things += 1
        box, alpha = coverage.box, coverage.alpha
        under = self.colour[box]
        under += alpha[..., None] * (material.colour(box) - under)
        self.shown[box][alpha > 0.5] = self.things
        return self.things

    def masks(self) -> Bool[np.ndarray, "n S S"]:
        pixels = np.bincount(self.shown.ravel(), minlength=self.things + 1)
        groups = [[thing] for thing in range(1, self.things + 1)]
        # A whole of which only one member is seen is that member again.
        groups += [[each for each in whole if pixels[each]] for whole in self.wholes]
        groups = groups[: self.things] + [
            whole for whole in groups[self.things :] if len(whole) > 1
        ]
        large = [group for group in groups if pixels[group].sum() >= MIN_AREA * self.shown.size]
        chosen = np.zeros((len(large), self.things + 1), bool)
        for row, group in zip(chosen, large, strict=True):
            row[group] = True
        return chosen[:, self.shown]


def _draw_background(rng: Generator, canvas: _Canvas) -> None:
    size = canvas.size
    everywhere = (slice(0, size), slice(0, size))
    canvas.paint(_Coverage(everywhere, np.ones((size, size), np.float32)), _Material(rng, size))
    for _ in range(rng.choice([0, 0, 1, 2])):
        field = _tile(rng, size, smoothest=True)
        # A tilt makes horizons and walls of what would else be islands.
        angle, tilt = rng.uniform(0, 2 * math.pi), rng.uniform(0, 6)
        across = np.linspace(-0.5, 0.5, size, dtype=np.float32)
        field = field + tilt * (math.cos(angle) * across + math.sin(angle) * across[:, None])
        field = field - np.quantile(field, rng.uniform(0.3, 0.8))
        slope = np.abs(np.gradient(field, axis=0)) + np.abs(np.gradient(field, axis=1)) + 1e-3
        alpha = np.clip(0.5 + field / slope, 0, 1).astype(np.float32)
        canvas.paint(_Coverage(everywhere, alpha), _Material(rng, size))


def _draw_object(rng: Generator, canvas: _Canvas) -> None:
    size = canvas.size
    outline = _outline(rng, radius=math.exp(rng.uniform(math.log(0.06), math.log(0.35))))
    outline = outline + rng.uniform(0.02, 0.98, 2)
    box = _bounding_box(outline, size)
    coverage = _Coverage(box, _rasterise(outline, box, size))
    if rng.random() < 0.12:
        # A hole shows what lies behind.
        inner = outline.mean(0) + rng.uniform(0.4, 0.75) * (outline - outline.mean(0))
        coverage = coverage.times(1 - _rasterise(inner, box, size))
    if rng.random() < 0.3:
        _cast_shadow(rng, canvas, coverage)
    members = [canvas.paint(coverage, _Material(rng, size))]
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 3])):
        anchor = outline[rng.integers(len(outline))] * 0.6 + outline.mean(0) * 0.4
        extent = np.ptp(outline, axis=0).min()
        part = anchor + _outline(rng, radius=extent * rng.uniform(0.12, 0.4))
        inside = coverage.times(_rasterise(part, box, size))
        members.append(canvas.paint(inside, _Material(rng, size)))
    if len(members) > 1:
        canvas.wholes.append(members)


def _cast_shadow(rng: Generator, canvas: _Canvas, coverage: _Coverage) -> None:
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


def _outline(rng: Generator, radius: float) -> Outline:
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
    return _turn(points, rng.uniform(0, 2 * math.pi))


def _stroke(rng: Generator, radius: float) -> Outline:
    """A thin curved band, as of a branch, a cable or a limb."""
    along = np.linspace(-1, 1, 24)
    bend = rng.normal(size=3) * (0.5, 0.35, 0.2)
    centre = np.stack([along, bend @ np.stack([along**2, along**3, np.sin(3 * along)])], axis=1)
    tangent = np.gradient(centre, axis=0)
    normal = tangent[:, ::-1] * (-1, 1) / np.linalg.norm(tangent, axis=1, keepdims=True)
    half_width = rng.uniform(0.06, 0.2) * np.linspace(1, rng.uniform(0.3, 1), 24)[:, None]
    band = np.concatenate([centre + half_width * normal, (centre - half_width * normal)[::-1]])
    return _turn(1.5 * radius * band, rng.uniform(0, 2 * math.pi))


def _turn(points: Outline, angle: float) -> Outline:
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _bounding_box(outline: Outline, size: int) -> tuple[slice, slice]:
    """The pixels that an outline may touch, at least one."""
    low = np.clip(np.floor(size * outline.min(0)).astype(int) - 1, 0, size - 1)
    high = np.clip(np.ceil(size * outline.max(0)).astype(int) + 1, low + 1, size)
    return slice(low[1], high[1]), slice(low[0], high[0])


def _rasterise(outline: Outline, box: tuple[slice, slice], size: int) -> Float[np.ndarray, "h w"]:
    """Coverage in [0, 1] of a polygon, antialiased."""
    rows, columns = box
    fine = Image.new("L", (2 * (columns.stop - columns.start), 2 * (rows.stop - rows.start)))
    corners = 2 * (size * outline - (columns.start, rows.start))
    ImageDraw.Draw(fine).polygon(corners.ravel().tolist(), fill=255)
    return np.asarray(fine.reduce(2), np.float32) / 255


class _Material:
    """A colour for every pixel: a hue, its shading and a texture."""

    def __init__(self, rng: Generator, size: int):
        tint = 1 + 0.3 * rng.normal(size=3)
        self.tint = tint.astype(np.float32)
        base = rng.uniform(0.05, 0.95) + rng.normal(size=3) * rng.uniform(0.02, 0.25)
        self.base = base.astype(np.float32)
        contrast = math.exp(rng.uniform(math.log(0.01), math.log(0.12)))
        self.contrast = np.float32(contrast)
        self.texture = _tile(rng, size)
        self.slope = (rng.normal(size=2) * rng.uniform(0, 0.25)).astype(np.float32)
        self.striped = rng.random() < 0.15
        angle, frequency = rng.uniform(0, math.pi), rng.uniform(0.05, 0.5) * 512 / size
        self.wave = np.float32(frequency) * np.array([math.cos(angle), math.sin(angle)], np.float32)

    def colour(self, box: tuple[slice, slice]) -> Float[np.ndarray, "h w 3"]:
        rows = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None]
        columns = np.arange(box[1].start, box[1].stop, dtype=np.float32)[None]
        # Shading runs over the thing itself, not over the image.
        level = self.slope[0] * _centred(rows) + self.slope[1] * _centred(columns)
        level = level + self.contrast * self.texture[box]
        if self.striped:
            level += np.float32(0.1) * np.sign(np.sin(self.wave[0] * rows + self.wave[1] * columns))
        return self.base + level[..., None] * self.tint


def _centred(positions: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return (positions - positions.mean()) / np.float32(max(np.ptp(positions), 1))


@cache
def _tiles() -> Float[np.ndarray, "n T T"]:
    """Periodic textures of zero mean and unit variance, from coarse to fine; the same always."""
    rng = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None]) * _TILE
    tiles = []
    for index in range(_TILES):
        # Amplitudes of natural images fall with the frequency to the power of about 1.
        amplitude = np.maximum(frequency, 1) ** -(2.2 - 1.5 * index / (_TILES - 1))
        amplitude[0, 0] = 0
        noise = np.fft.rfft2(rng.standard_normal((_TILE, _TILE)))
        tile = np.fft.irfft2(noise * amplitude, s=(_TILE, _TILE))
        tiles.append(tile / tile.std())
    return np.stack(tiles).astype(np.float32)


def _tile(rng: Generator, size: int, smoothest: bool = False) -> Float[np.ndarray, "S S"]:
    """A random window of a texture, turned and mirrored at random."""
    tile = _tiles()[0 if smoothest else rng.integers(_TILES)]
    row, column = rng.integers(0, _TILE - size + 1, 2)
    window = tile[row : row + size, column : column + size]
    window = np.rot90(window, int(rng.integers(4)))
    return window[:, ::-1] if rng.random() < 0.5 else window


def _photograph(rng: Generator, colour: Float[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "S S 3"]:
    """The scene under its light, through a lens and on a sensor."""
    size = len(colour)
    light = np.float32(rng.uniform(0, 0.25)) * _tile(rng, size, smoothest=True)
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

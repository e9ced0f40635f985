"""What procedural objects are made of: colours, shading and textures."""

import math
from functools import cache

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

LARGEST = 512
"""Side in pixels of the largest image that a texture fills."""

_TILES = 24


class Material:
    """A colour for every pixel: a hue, its shading and a texture."""

    def __init__(self, rng: Generator, size: int):
        tint = 1 + 0.3 * rng.normal(size=3)
        self.tint = tint.astype(np.float32)
        base = rng.uniform(0.05, 0.95) + rng.normal(size=3) * rng.uniform(0.02, 0.25)
        self.base = base.astype(np.float32)
        contrast = math.exp(rng.uniform(math.log(0.01), math.log(0.12)))
        self.contrast = np.float32(contrast)
        self.texture = random_texture(rng, size)
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
    frequency = np.hypot(np.fft.fftfreq(LARGEST)[:, None], np.fft.rfftfreq(LARGEST)[None]) * LARGEST
    tiles = []
    for index in range(_TILES):
        # Amplitudes of natural images fall with the frequency to the power of about 1.
        amplitude = np.maximum(frequency, 1) ** -(2.2 - 1.5 * index / (_TILES - 1))
        amplitude[0, 0] = 0
        noise = np.fft.rfft2(rng.standard_normal((LARGEST, LARGEST)))
        tile = np.fft.irfft2(noise * amplitude, s=(LARGEST, LARGEST))
        tiles.append(tile / tile.std())
    return np.stack(tiles).astype(np.float32)


def random_texture(rng: Generator, size: int, smoothest: bool = False) -> Float[np.ndarray, "S S"]:
    """A random window of a texture, turned and mirrored at random."""
    tile = _tiles()[0 if smoothest else rng.integers(_TILES)]
    row, column = rng.integers(0, LARGEST - size + 1, 2)
    window = tile[row : row + size, column : column + size]
    window = np.rot90(window, int(rng.integers(4)))
    return window[:, ::-1] if rng.random() < 0.5 else window

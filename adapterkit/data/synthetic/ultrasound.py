"""Synthetic ultrasound of a heart: a simple model of B-mode imaging.

The image is formed on the scanner's polar grid (depth, beam), where speckle has a constant shape,
and is then scan-converted, so that speckle widens with depth. Speckle is the envelope of filtered
complex Gaussian noise (fully developed speckle is Rayleigh distributed), log-compressed.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex, Float, UInt8
from numpy.random import Generator
from scipy import ndimage

from adapterkit.data.image_file import Spacing
from adapterkit.data.synthetic.heart import (
    Heart,
    distance_to_leaflets,
    draw_labels,
    draw_right_heart,
)


@dataclass(frozen=True)
class Sector:
    """The scanner's field of view, with the probe at the top centre of a square image."""

    depth: float
    """In mm; the image's height."""
    half_angle: float
    """In radians; the image is as wide as the sector."""
    image_size: int

    @property
    def spacing(self) -> Spacing:
        """(row, column) in mm."""
        width = 2 * self.depth * math.sin(self.half_angle)
        return self.depth / self.image_size, width / self.image_size

    def pixels(self) -> tuple[Float[np.ndarray, "H W"], Float[np.ndarray, "H W"]]:
        """Pixel centres in mm from the probe: (across, deep)."""
        row, column = self.spacing
        centres = np.arange(self.image_size) + 0.5
        across, deep = np.meshgrid((centres - self.image_size / 2) * column, centres * row)
        return across, deep

    def beams(self) -> tuple[Float[np.ndarray, "R B"], Float[np.ndarray, "R B"]]:
        """The polar grid: (depth along the beam in mm, angle in radians)."""
        samples, beams = round(1.25 * self.image_size), round(0.75 * self.image_size)
        range_, angle = np.meshgrid(
            np.linspace(0, self.depth, samples),
            np.linspace(-self.half_angle, self.half_angle, beams),
            indexing="ij",
        )
        return range_, angle

    @property
    def blur(self) -> tuple[float, float]:
        """The point spread function in samples: 0.6 mm along the beam, 0.7 degrees across."""
        samples, beams = self.beams()[0].shape
        return (
            0.6 / self.depth * samples,
            math.radians(0.7) / (2 * self.half_angle) * beams,
        )

    def scan_convert(self, polar: Float[np.ndarray, "R B"]) -> Float[np.ndarray, "H W"]:
        """The polar image on the pixels; 0 outside the sector."""
        across, deep = self.pixels()
        sample = np.hypot(across, deep) / self.depth * (polar.shape[0] - 1)
        angle = np.arctan2(across, deep) / self.half_angle
        beam = (angle + 1) / 2 * (polar.shape[1] - 1)
        return ndimage.map_coordinates(polar, [sample, beam], order=1, cval=0.0)


def fit_sector(rng: Generator, heart: Heart, image_size: int) -> Sector:
    """A sector deep enough for the heart, now and then cutting the atrium short."""
    extent = heart.apex[1] + (heart.length + heart.atrium_length) * math.cos(heart.tilt)
    return Sector(extent * rng.uniform(1.0, 1.16), rng.uniform(0.6, 0.68), image_size)


_LOOKS = 2
"""Independent looks averaged per frame: scanners compound frequencies to calm the speckle."""


@dataclass(frozen=True)
class Quality:
    """What an ImageQuality means; levels in dB relative to well-seen myocardium."""

    blood: float
    clutter: float
    dropout: float
    """Loss of echo where the wall drops out."""


QUALITIES = {
    "Good": Quality(blood=-22.0, clutter=-20.0, dropout=10.0),
    "Medium": Quality(blood=-18.0, clutter=-16.0, dropout=17.0),
    "Poor": Quality(blood=-13.0, clutter=-11.0, dropout=22.0),
}


@dataclass(frozen=True)
class Acoustics:
    """What frames of one view share; coarse fields are stretched over the polar grid."""

    quality: Quality
    gain: float
    """Grey value of well-seen myocardium."""
    dynamic_range: float
    """dB from black to white."""
    attenuation: float
    """dB lost over the depth; negative where the scanner compensates too much."""
    surroundings: Float[np.ndarray, "R0 B0"]
    bands: Float[np.ndarray, "R1 B1"]
    clumps: Float[np.ndarray, "R5 B5"]
    dropout: Float[np.ndarray, "R2 B2"]
    shadow: Float[np.ndarray, "1 B3"]
    haze: Float[np.ndarray, "R4 B4"]
    near_field: float
    """Reach of the near-field clutter in mm."""
    lost: Float[np.ndarray, "B"] | None = None
    """Echo that each beam loses behind a rib or the lung, in dB; None where nothing is."""


def random_acoustics(rng: Generator, quality: Quality) -> Acoustics:
    """How one view is seen, at a given quality."""
    return Acoustics(
        quality=quality,
        gain=rng.uniform(85, 200),
        dynamic_range=rng.uniform(42, 56),
        attenuation=rng.uniform(-8, 12),
        surroundings=rng.normal(size=(5, 5)),
        bands=rng.normal(size=(26, 6)),
        clumps=rng.normal(size=(60, 30)),
        dropout=rng.normal(size=(7, 6)),
        shadow=rng.normal(size=(1, 7)),
        haze=rng.normal(size=(5, 4)),
        near_field=rng.uniform(8, 20),
    )


def draw_image(
    speckle: Complex[np.ndarray, "looks 2 R B"],
    heart: Heart,
    sector: Sector,
    acoustics: Acoustics,
) -> UInt8[np.ndarray, "H W"]:
    """One B-mode frame; black outside the sector."""
    range_, angle = sector.beams()
    level = ndimage.gaussian_filter(_echo(heart, range_, angle, acoustics), sector.blur)
    tissue, haze = _amplitude(level), _amplitude(_clutter(range_, acoustics))
    power = (np.abs(tissue * speckle[:, 0] + haze * speckle[:, 1]) ** 2).mean(axis=0)
    level = 10 * np.log10(power + 1e-9)
    level -= acoustics.attenuation * (range_ / sector.depth - 0.5)
    grey = acoustics.gain + level * 255 / acoustics.dynamic_range
    return sector.scan_convert(np.clip(grey, 1, 255)).round().astype(np.uint8)


def _amplitude(level: Float[np.ndarray, "R B"]) -> Float[np.ndarray, "R B"]:
    return 10 ** (level / 20)


def random_speckle(rng: Generator, sector: Sector) -> Complex[np.ndarray, "looks 2 R B"]:
    """For each look one field of tissue and one of haze: complex Gaussian noise of unit power."""
    range_, _ = sector.beams()
    parts = rng.standard_normal((_LOOKS, 2, 2, *range_.shape), dtype=np.float32)
    parts = ndimage.gaussian_filter(parts, sector.blur, axes=(-2, -1))
    fields = parts[:, :, 0] + 1j * parts[:, :, 1]
    return fields / np.sqrt((np.abs(fields) ** 2).mean(axis=(-2, -1), keepdims=True))


def _stretch(coarse: Float[np.ndarray, "h w"], shape: tuple[int, ...]) -> Float[np.ndarray, "R B"]:
    """A coarse white field as a smooth one of the given shape and, again, unit variance."""
    weights = []
    for knots, samples in zip(coarse.shape, shape, strict=True):
        position = np.linspace(0, knots - 1, samples)[:, None]
        weight = np.exp(-((position - np.arange(knots)) ** 2) / (2 * 0.6**2))
        weights.append(weight / np.linalg.norm(weight, axis=1, keepdims=True))
    return weights[0] @ coarse @ weights[1].T


def _echo(
    heart: Heart,
    range_: Float[np.ndarray, "R B"],
    angle: Float[np.ndarray, "R B"],
    acoustics: Acoustics,
) -> Float[np.ndarray, "R B"]:
    """Echo level of the anatomy in dB; 0 is well-seen myocardium."""
    across, deep = range_ * np.sin(angle), range_ * np.cos(angle)
    quality, shape = acoustics.quality, range_.shape
    labels = draw_labels(heart, across, deep)
    clumps = _stretch(acoustics.clumps, shape)
    fields = _stretch(acoustics.surroundings, shape) + _stretch(acoustics.bands, shape)
    surroundings = 3.5 * fields + 3 * clumps - 8

    blood = (labels == 1) | (labels == 3)
    if heart.right_heart:
        blood |= draw_right_heart(heart, across, deep)
    # Endocardium and atrial wall reflect most where they lie across the beam, as the base does.
    edges = ndimage.gaussian_filter(blood.astype(float), 1.5 * shape[0] / 320)
    across_beam = np.abs(np.gradient(edges, axis=0)) * shape[0] / 320
    level = np.where(labels == 2, fields + 4 * clumps, surroundings)
    level += 24 * np.sqrt(across_beam) + 5 * edges
    # Septum and inferior wall, on the left, lie better in the beam than the wall on the right.
    unseen = _stretch(acoustics.dropout, shape) + 1.2 * angle / angle.max() - 0.3
    level -= quality.dropout * np.clip(unseen, 0, 1)
    # The atrium fills with side-lobe and reverberation echoes of the valve and wall above it.
    cavity = quality.blood + 6 * (labels == 3) + fields + 1.5 * clumps
    level = np.where(blood, cavity, level)
    valve = np.exp(-((distance_to_leaflets(heart, across, deep) / 1.3) ** 2))
    level = level * (1 - valve) + valve * (9 + 3 * clumps)
    level = level - 4 * np.clip(_stretch(acoustics.shadow, shape) - 0.5, 0, 2)
    return level if acoustics.lost is None else level - acoustics.lost


def _clutter(range_: Float[np.ndarray, "R B"], acoustics: Acoustics) -> Float[np.ndarray, "R B"]:
    """Level in dB of haze, reverberation below the probe and noise."""
    near = np.exp(-((range_ / acoustics.near_field) ** 2))
    ringing = 3 * np.cos(2 * math.pi * range_ / 3.5) * near
    haze = 3 * _stretch(acoustics.haze, range_.shape)
    return acoustics.quality.clutter * (1 - near) + haze * (1 - near) + ringing

"""Random hearts, as an apical view of echocardiography cuts them.

A heart is described in millimetres in its own coordinates: t runs along the long axis of the left
ventricle from the apex (0) to the mitral base, s across it, positive to the viewer's right. Points
of the image plane are given from the probe: across, positive to the viewer's right, and deep.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.random import Generator

STEPS = 256
"""Equal steps from apex to base at which half-widths are tabulated."""


@dataclass(frozen=True)
class Heart:
    """One heart in one view at one phase; lengths in mm, angles in radians."""

    apex: tuple[float, float]
    """Endocardial apex: across, positive right of the probe, and deep from the probe."""
    tilt: float
    """Angle of the long axis to the central beam, positive with the base to the right."""
    length: float
    radius: float
    fullness: float
    """Where the ventricle is widest, as a fraction of its length."""
    taper: float
    """Narrowing from there to the base, as a fraction of the radius."""
    bend: float
    """Sideways bow of the long axis."""
    base_slope: float
    """Obliqueness of the mitral plane, d t / d s."""
    walls: tuple[float, float]
    """Thickness of the left and the right wall."""
    apical_wall: float
    ripple: Float[np.ndarray, "2 2 K"]
    """Contour perturbation of each side: amplitudes (relative) and phases of K harmonics."""
    atrium_length: float
    atrium_radius: float
    atrium_shift: float
    """Sideways shift of the atrium's far end."""
    valve_opening: float
    """0 for leaflets that meet at the annulus, 1 for leaflets that point to the apex."""
    right_heart: bool
    right_width: float
    uneven: Float[np.ndarray, "2 n"] | None = None
    """What the half-widths to the left and to the right are multiplied by, at equal steps from apex
    to base, where walls do not move alike; None where they do."""


def random_heart(rng: Generator) -> Heart:
    """A heart at end-diastole, in no view yet."""
    length = rng.uniform(70, 98)
    return Heart(
        apex=(rng.uniform(-6, 6), rng.uniform(13, 26)),
        tilt=rng.normal(0.05, 0.1),
        length=length,
        radius=length * rng.uniform(0.24, 0.33),
        fullness=rng.uniform(0.5, 0.75),
        taper=rng.uniform(0.1, 0.4),
        bend=rng.normal(0, 2.5),
        base_slope=rng.normal(-0.08, 0.12),
        walls=(rng.uniform(8, 13), rng.uniform(8, 13)),
        apical_wall=rng.uniform(6, 11),
        ripple=_random_ripple(rng),
        atrium_length=rng.uniform(30, 48),
        atrium_radius=rng.uniform(17, 24),
        atrium_shift=rng.normal(2, 5),
        valve_opening=rng.uniform(0, 0.9),
        right_heart=False,
        right_width=rng.uniform(14, 30),
    )


def _random_ripple(rng: Generator) -> Float[np.ndarray, "2 2 K"]:
    harmonics = np.arange(1, 6)
    amplitudes = rng.normal(0, 0.05, (2, 5)) / harmonics**0.7
    return np.stack([amplitudes, rng.uniform(0, 2 * math.pi, (2, 5))], axis=1)


def random_view(rng: Generator, heart: Heart, four_chamber: bool) -> Heart:
    """The same heart cut along another plane."""
    return replace(
        heart,
        apex=(heart.apex[0] + rng.normal(0, 2), heart.apex[1] + rng.normal(0, 1.5)),
        tilt=heart.tilt + rng.normal(0, 0.05),
        length=heart.length * rng.uniform(0.96, 1.0),
        radius=heart.radius * rng.uniform(0.92, 1.08),
        bend=heart.bend + rng.normal(0, 1.5),
        base_slope=heart.base_slope + rng.normal(0, 0.06),
        ripple=_random_ripple(rng),
        atrium_length=heart.atrium_length * rng.uniform(0.9, 1.0),
        atrium_shift=heart.atrium_shift + rng.normal(0, 2),
        right_heart=four_chamber,
    )


def random_contraction(rng: Generator) -> tuple[float, float]:
    """Shortening of the length and of the radius from ED to ES, as fractions."""
    return rng.uniform(0.05, 0.18), rng.uniform(0.12, 0.36)


def contract(heart: Heart, contraction: tuple[float, float], amount: float) -> Heart:
    """The heart on its way from ED (0) to ES (1): smaller cavity, thicker walls, fuller atrium."""
    shortening, narrowing = amount * contraction[0], amount * contraction[1]
    left, right = heart.walls
    thickening = 1 + 0.8 * narrowing
    return replace(
        heart,
        length=heart.length * (1 - shortening),
        radius=heart.radius * (1 - narrowing),
        walls=(left * thickening, right * thickening),
        apical_wall=heart.apical_wall * (1 + 0.4 * narrowing),
        atrium_length=heart.atrium_length * (1 + shortening) + 0.6 * heart.length * shortening,
        atrium_radius=heart.atrium_radius * (1 + 0.3 * narrowing),
        valve_opening=(1 - amount) * heart.valve_opening + amount * 0.15,
    )


def biplane_volume(two_chamber: Heart, four_chamber: Heart) -> float:
    """Volume of the ventricle in mm^3: elliptical discs, spanned by the diameters in both views."""
    u = np.linspace(0, 1, 257)
    diameters = [sum(_endocardium(h, u * h.length)) for h in (two_chamber, four_chamber)]
    length = max(two_chamber.length, four_chamber.length)
    return math.pi / 4 * length * float(np.trapezoid(diameters[0] * diameters[1], u))


def _heart_coordinates(
    heart: Heart, across: Float[np.ndarray, "..."], deep: Float[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Points of the image plane in mm as (t, s); s is measured from the bowed long axis."""
    x, z = across - heart.apex[0], deep - heart.apex[1]
    t = z * math.cos(heart.tilt) + x * math.sin(heart.tilt)
    s = x * math.cos(heart.tilt) - z * math.sin(heart.tilt)
    return t, s - heart.bend * np.sin(math.pi * np.clip(t / heart.length, 0, 1))


def _bullet(heart: Heart, u: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Half-width over radius at the fraction u of the length: an ellipse that tapers to a base."""
    u = np.clip(u, 0, 1)
    rise = np.sqrt(1 - (1 - np.minimum(u / heart.fullness, 1)) ** 2)
    fall = np.maximum(u - heart.fullness, 0) / (1 - heart.fullness)
    return rise * (1 - heart.taper * fall**2)


def _endocardium(
    heart: Heart, t: Float[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Half-widths of the cavity to the left and to the right at t."""
    # Tabulated along the axis: the harmonics are too dear to sum at every pixel.
    u = np.linspace(0, 1, STEPS)
    harmonics = np.arange(1, heart.ripple.shape[-1] + 1)[:, None]
    half_width = heart.radius * _bullet(heart, u)
    left, right = (
        half_width * (1 + amplitudes @ np.sin(math.pi * harmonics * u + phases[:, None]))
        for amplitudes, phases in heart.ripple
    )
    if heart.uneven is not None:
        left, right = heart.uneven * (left, right)
    return np.interp(t / heart.length, u, left), np.interp(t / heart.length, u, right)


def _annulus(heart: Heart) -> tuple[float, float]:
    """Half-widths of the cavity to the left and to the right at the base."""
    left, right = _endocardium(heart, np.array([heart.length]))
    return float(left[0]), float(right[0])


def _epicardium(
    heart: Heart, t: Float[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Half-widths of the ventricle with its wall to the left and to the right at t."""
    outer = _bullet(heart, (t + heart.apical_wall) / (heart.length + heart.apical_wall))
    left, right = (
        # The outer bullet may cut into a bulging cavity; a third of the wall is always left.
        np.maximum(outer * (heart.radius + wall), inner + wall * np.minimum(outer, 1 / 3))
        for inner, wall in zip(_endocardium(heart, t), heart.walls, strict=True)
    )
    return left, right


def _atrium(
    heart: Heart, beyond: Float[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Centre and half-width of the atrium, in s, at a distance beyond the mitral plane."""
    left, right = _annulus(heart)
    v = np.clip(beyond / heart.atrium_length, 0, 1)
    widest = 0.45
    swell = np.sin(math.pi / 2 * np.minimum(v / widest, 1))
    annulus = (left + right) / 2
    closing = np.sqrt(1 - (np.maximum(v - widest, 0) / (1 - widest)) ** 2)
    half_width = (annulus + (heart.atrium_radius - annulus) * swell) * closing
    return (right - left) / 2 + heart.atrium_shift * v, half_width


def draw_labels(
    heart: Heart, across: Float[np.ndarray, "..."], deep: Float[np.ndarray, "..."]
) -> UInt8[np.ndarray, "..."]:
    """CAMUS labels at points of the image plane, in mm from the probe."""
    t, s = _heart_coordinates(heart, across, deep)
    beyond = t - heart.length - heart.base_slope * s
    endo_left, endo_right = _endocardium(heart, t)
    epi_left, epi_right = _epicardium(heart, t)
    centre, half_width = _atrium(heart, beyond)
    cavity = (t > 0) & (beyond <= 0) & (s > -endo_left) & (s < endo_right)
    wall = (t > -heart.apical_wall) & (beyond <= 2) & (s > -epi_left) & (s < epi_right)
    wall &= (beyond <= 0) | (s < -endo_left) | (s > endo_right)
    atrium = (beyond > 0) & (beyond < heart.atrium_length) & (np.abs(s - centre) < half_width)
    return np.select([cavity, atrium, wall], [1, 3, 2], 0).astype(np.uint8)


def draw_right_heart(
    heart: Heart, across: Float[np.ndarray, "..."], deep: Float[np.ndarray, "..."]
) -> Bool[np.ndarray, "..."]:
    """Where the right ventricle and the right atrium lie, left of the septum."""
    t, s = _heart_coordinates(heart, across, deep)
    beyond = t - heart.length
    septum, _ = _epicardium(heart, t)
    reach = np.clip((t / heart.length - 0.25) / 0.75, 0, 1)
    outside = -septum - s
    ventricle = (outside > 0) & (outside < heart.right_width * np.sin(reach * 2)) & (beyond < -2)
    atrium_radius = 0.9 * heart.atrium_radius
    septum_at_base, _ = _epicardium(heart, np.array([heart.length]))
    centre = -(septum_at_base[0] + 0.7 * atrium_radius)
    atrium = ((s - centre) / atrium_radius) ** 2 + (
        (beyond - 0.5 * heart.atrium_length) / (0.5 * heart.atrium_length)
    ) ** 2 < 1
    return ventricle | (atrium & (beyond > 1))


def distance_to_leaflets(
    heart: Heart, across: Float[np.ndarray, "..."], deep: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Distance in mm to the nearer of the two mitral leaflets."""
    t, s = _heart_coordinates(heart, across, deep)
    left, right = _annulus(heart)
    swing = heart.valve_opening * 1.2
    distances = []
    for hinge, inwards in ((-left, 1), (right, -1)):
        reach = (left + right) / 2
        step_s = inwards * reach * math.cos(swing)
        step_t = -reach * math.sin(swing) - 3 + heart.base_slope * step_s
        from_s, from_t = s - hinge, t - heart.length - heart.base_slope * hinge
        along = np.clip((from_s * step_s + from_t * step_t) / (step_s**2 + step_t**2), 0, 1)
        sag = 2 * np.sin(math.pi * along)
        distances.append(np.hypot(from_s - along * step_s, from_t + sag - along * step_t))
    return np.minimum(*distances)

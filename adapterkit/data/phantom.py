"""Synthetic apical echocardiography, written in the layout and files of CAMUS.

For tests, tutorials and trials where the real data are not at hand: `write_phantom` draws random
hearts, images them with a simple model of ultrasound and writes a folder that
`adapterkit.data.camus` reads like the real release. No patient data are involved, and scores on
the phantom say nothing about scores on patients.

A heart is described in millimetres in its own coordinates: t runs along the long axis of the left
ventricle from the apex (0) to the mitral base, s across it, positive to the viewer's right. The
image is formed on the scanner's polar grid (depth, beam), where speckle has a constant shape, and
is then scan-converted, so that speckle widens with depth. Speckle is the envelope of filtered
complex Gaussian noise (fully developed speckle is Rayleigh distributed), log-compressed.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Bool, Complex, Float, UInt8
from numpy.random import Generator
from scipy import ndimage

from adapterkit.data.camus import PHASES, VIEWS
from adapterkit.data.images import Spacing

_VERSION = 2
_README = """\
Synthetic echocardiography, made by adapterkit (adapterkit.data.phantom).

These images are drawn from a model. They show no patient and hold no patient data.
Layout, file names and labels follow the CAMUS data set: 0 background, 1 left ventricle
(endocardium), 2 myocardium, 3 left atrium. phantom.json holds the parameters.
"""


def write_phantom(
    folder: Path,
    patients: int = 24,
    seed: int = 0,
    image_size: int = 256,
    half_sequences: bool = False,
) -> Path:
    """Writes synthetic patients below `folder/database_nifti` and returns `folder`.

    Each patient has both views at ED and ES with label maps (uint8, image_size x image_size,
    spacing in mm in the header), and `Info_2CH.cfg` and `Info_4CH.cfg`, whose EF is that of the
    model, by the biplane method of discs. With `half_sequences` also the frames from ED to ES with
    theirs, of which the first and the last are the two; they take several times as long to write.
    Patient k depends on `seed`, k and `image_size` only, not on how many patients there are.

    The folder appears complete or not at all. One that already holds a phantom with the same
    parameters is reused as it is. Raises `FileExistsError` where the folder holds anything else,
    and `ValueError` for patients outside 1 to 9999, a negative seed or an image size below 32.
    """
    folder = Path(folder)
    if not 1 <= patients <= 9999:
        raise ValueError(f"patients is {patients}: expected 1 to 9999.")
    if seed < 0:
        raise ValueError(f"seed is {seed}: expected 0 or more.")
    if image_size < 32:
        raise ValueError(f"image_size is {image_size}: expected a side of at least 32 pixels.")
    parameters = {
        "synthetic": True,
        "version": _VERSION,
        "patients": patients,
        "seed": seed,
        "image_size": image_size,
        "half_sequences": half_sequences,
    }
    if _is_written(folder, parameters):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        draft = Path(beside) / folder.name
        for number in range(1, patients + 1):
            _write_patient(draft / "database_nifti", number, seed, image_size, half_sequences)
        (draft / "README.txt").write_text(_README, encoding="utf-8")
        (draft / "phantom.json").write_text(json.dumps(parameters) + "\n", encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:
            # Another process may have written the same phantom in the meantime.
            if not _is_written(folder, parameters):
                raise
    return folder


def _is_written(folder: Path, parameters: Mapping[str, int]) -> bool:
    """Whether the phantom is there already; an error if something else is."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: expected a folder or nothing there.")
    if not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / "phantom.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = "no readable phantom.json"
    if found != parameters:
        raise FileExistsError(
            f"{folder} holds something else (found {found}, expected {dict(parameters)}): "
            "give another folder, or remove this one."
        )
    return True


def _write_patient(
    database: Path, number: int, seed: int, image_size: int, half_sequences: bool
) -> None:
    rng = np.random.default_rng([seed, number])
    quality = list(_QUALITIES)[rng.choice(3, p=(0.4, 0.4, 0.2))]
    diastole = _random_heart(rng)
    contraction = _random_contraction(rng)
    sector = _fit_sector(rng, diastole, image_size)
    hearts = {view: _random_view(rng, diastole, four_chamber=view == "4CH") for view in VIEWS}
    full, empty = (
        _biplane_volume(*(_contract(heart, contraction, amount) for heart in hearts.values()))
        for amount in (0, 1)
    )
    age, sex, rate = rng.integers(20, 91), "FM"[rng.integers(2)], rng.uniform(40, 80)
    patient = f"patient{number:04d}"
    folder = database / patient
    folder.mkdir(parents=True)
    for view, heart in hearts.items():
        acoustics = _random_acoustics(rng, _QUALITIES[quality])
        diastolic, systolic = (_random_speckle(rng, sector) for _ in PHASES)
        count = int(rng.integers(12, 26))
        times = np.linspace(0, 1, count if half_sequences else 2)
        images, labels = [], []
        for time in times:
            # The ventricle contracts slowly, fast and slowly. Speckle moves on with it: a mixture
            # of two fields whose power stays 1.
            shown = _contract(heart, contraction, (1 - math.cos(math.pi * time)) / 2)
            mixed = math.cos(math.pi / 2 * time), math.sin(math.pi / 2 * time)
            speckle = mixed[0] * diastolic + mixed[1] * systolic
            images.append(_draw_image(speckle, shown, sector, acoustics))
            labels.append(_draw_labels(shown, *sector.pixels()))
        stem = f"{patient}_{view}"
        for phase, index in zip(PHASES, (0, -1), strict=True):
            _write_pair(folder, f"{stem}_{phase}", images[index], labels[index], sector.spacing)
        if half_sequences:
            _write_pair(
                folder, f"{stem}_half_sequence", np.stack(images), np.stack(labels), sector.spacing
            )
        (folder / f"Info_{view}.cfg").write_text(
            f"ED: 1\nES: {count}\nNbFrame: {count}\nSex: {sex}\nAge: {age}\n"
            f"ImageQuality: {quality}\nEF: {100 * (1 - empty / full):.1f}\nFrameRate: {rate:.1f}\n",
            encoding="utf-8",
        )


def _write_pair(
    folder: Path,
    stem: str,
    image: UInt8[np.ndarray, "*time H W"],
    labels: UInt8[np.ndarray, "*time H W"],
    spacing: Spacing,
) -> None:
    row, column = spacing
    for name, array in ((stem, image), (f"{stem}_gt", labels)):
        nifti = nibabel.Nifti1Image(array.T, np.diag([column, row, 1.0, 1.0]))
        nifti.header.set_xyzt_units("mm")
        nifti.header["descrip"] = b"synthetic echocardiography, adapterkit"
        nibabel.save(nifti, folder / f"{name}.nii.gz")


# Anatomy


@dataclass(frozen=True)
class _Heart:
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


def _random_heart(rng: Generator) -> _Heart:
    length = rng.uniform(70, 98)
    return _Heart(
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


def _random_view(rng: Generator, heart: _Heart, four_chamber: bool) -> _Heart:
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


def _random_contraction(rng: Generator) -> tuple[float, float]:
    """Shortening of the length and of the radius from ED to ES, as fractions."""
    return rng.uniform(0.05, 0.18), rng.uniform(0.12, 0.36)


def _contract(heart: _Heart, contraction: tuple[float, float], amount: float) -> _Heart:
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


def _biplane_volume(two_chamber: _Heart, four_chamber: _Heart) -> float:
    """Volume of the ventricle in mm^3: elliptical discs, spanned by the diameters in both views."""
    u = np.linspace(0, 1, 257)
    diameters = [sum(_endocardium(h, u * h.length)) for h in (two_chamber, four_chamber)]
    length = max(two_chamber.length, four_chamber.length)
    return math.pi / 4 * length * float(np.trapezoid(diameters[0] * diameters[1], u))


def _heart_coordinates(
    heart: _Heart, across: Float[np.ndarray, "..."], deep: Float[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Points of the image plane in mm as (t, s); s is measured from the bowed long axis."""
    x, z = across - heart.apex[0], deep - heart.apex[1]
    t = z * math.cos(heart.tilt) + x * math.sin(heart.tilt)
    s = x * math.cos(heart.tilt) - z * math.sin(heart.tilt)
    return t, s - heart.bend * np.sin(math.pi * np.clip(t / heart.length, 0, 1))


def _bullet(heart: _Heart, u: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Half-width over radius at the fraction u of the length: an ellipse that tapers to a base."""
    u = np.clip(u, 0, 1)
    rise = np.sqrt(1 - (1 - np.minimum(u / heart.fullness, 1)) ** 2)
    fall = np.maximum(u - heart.fullness, 0) / (1 - heart.fullness)
    return rise * (1 - heart.taper * fall**2)


def _endocardium(
    heart: _Heart, t: Float[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Half-widths of the cavity to the left and to the right at t."""
    # Tabulated along the axis: the harmonics are too dear to sum at every pixel.
    u = np.linspace(0, 1, 256)
    harmonics = np.arange(1, heart.ripple.shape[-1] + 1)[:, None]
    half_width = heart.radius * _bullet(heart, u)
    left, right = (
        half_width * (1 + amplitudes @ np.sin(math.pi * harmonics * u + phases[:, None]))
        for amplitudes, phases in heart.ripple
    )
    return np.interp(t / heart.length, u, left), np.interp(t / heart.length, u, right)


def _annulus(heart: _Heart) -> tuple[float, float]:
    """Half-widths of the cavity to the left and to the right at the base."""
    left, right = _endocardium(heart, np.array([heart.length]))
    return float(left[0]), float(right[0])


def _epicardium(
    heart: _Heart, t: Float[np.ndarray, "..."]
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
    heart: _Heart, beyond: Float[np.ndarray, "..."]
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


def _draw_labels(
    heart: _Heart, across: Float[np.ndarray, "..."], deep: Float[np.ndarray, "..."]
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


def _draw_right_heart(
    heart: _Heart, across: Float[np.ndarray, "..."], deep: Float[np.ndarray, "..."]
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


def _leaflets(
    heart: _Heart, across: Float[np.ndarray, "..."], deep: Float[np.ndarray, "..."]
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


# Imaging


@dataclass(frozen=True)
class _Sector:
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


def _fit_sector(rng: Generator, heart: _Heart, image_size: int) -> _Sector:
    """A sector deep enough for the heart, now and then cutting the atrium short."""
    extent = heart.apex[1] + (heart.length + heart.atrium_length) * math.cos(heart.tilt)
    return _Sector(extent * rng.uniform(1.0, 1.16), rng.uniform(0.6, 0.68), image_size)


_LOOKS = 2
"""Independent looks averaged per frame: scanners compound frequencies to calm the speckle."""


@dataclass(frozen=True)
class _Quality:
    """What an ImageQuality means; levels in dB relative to well-seen myocardium."""

    blood: float
    clutter: float
    dropout: float
    """Loss of echo where the wall drops out."""


_QUALITIES = {
    "Good": _Quality(blood=-22.0, clutter=-20.0, dropout=10.0),
    "Medium": _Quality(blood=-18.0, clutter=-16.0, dropout=17.0),
    "Poor": _Quality(blood=-13.0, clutter=-11.0, dropout=22.0),
}


@dataclass(frozen=True)
class _Acoustics:
    """What ED and ES of one view share; coarse fields are stretched over the polar grid."""

    quality: _Quality
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


def _random_acoustics(rng: Generator, quality: _Quality) -> _Acoustics:
    return _Acoustics(
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


def _draw_image(
    speckle: Complex[np.ndarray, "looks 2 R B"],
    heart: _Heart,
    sector: _Sector,
    acoustics: _Acoustics,
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


def _random_speckle(rng: Generator, sector: _Sector) -> Complex[np.ndarray, "looks 2 R B"]:
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
    heart: _Heart,
    range_: Float[np.ndarray, "R B"],
    angle: Float[np.ndarray, "R B"],
    acoustics: _Acoustics,
) -> Float[np.ndarray, "R B"]:
    """Echo level of the anatomy in dB; 0 is well-seen myocardium."""
    across, deep = range_ * np.sin(angle), range_ * np.cos(angle)
    quality, shape = acoustics.quality, range_.shape
    labels = _draw_labels(heart, across, deep)
    clumps = _stretch(acoustics.clumps, shape)
    fields = _stretch(acoustics.surroundings, shape) + _stretch(acoustics.bands, shape)
    surroundings = 3.5 * fields + 3 * clumps - 8

    blood = (labels == 1) | (labels == 3)
    if heart.right_heart:
        blood |= _draw_right_heart(heart, across, deep)
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
    valve = np.exp(-((_leaflets(heart, across, deep) / 1.3) ** 2))
    level = level * (1 - valve) + valve * (9 + 3 * clumps)
    return level - 4 * np.clip(_stretch(acoustics.shadow, shape) - 0.5, 0, 2)


def _clutter(range_: Float[np.ndarray, "R B"], acoustics: _Acoustics) -> Float[np.ndarray, "R B"]:
    """Level in dB of haze, reverberation below the probe and noise."""
    near = np.exp(-((range_ / acoustics.near_field) ** 2))
    ringing = 3 * np.cos(2 * math.pi * range_ / 3.5) * near
    haze = 3 * _stretch(acoustics.haze, range_.shape)
    return acoustics.quality.clutter * (1 - near) + haze * (1 - near) + ringing

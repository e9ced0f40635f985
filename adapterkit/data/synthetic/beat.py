"""Beating hearts: how their walls move, what volumes that makes, and how unsteadily they are seen.

Time counts systoles: 0 is end-diastole, 1 the end of the contraction, `_CYCLE` the next
end-diastole.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8
from numpy.random import Generator

from adapterkit.data.synthetic.heart import (
    STEPS,
    Heart,
    biplane_volume,
    contract,
    draw_labels,
    random_heart,
    random_view,
)
from adapterkit.data.synthetic.ultrasound import (
    QUALITIES,
    Acoustics,
    Sector,
    draw_image,
    fit_sector,
    random_acoustics,
    random_speckle,
)

_CYCLE = 2.4
_MOST = 0.62
"""The highest narrowing that a wall is given; the cavity's sides stay apart."""


@dataclass(frozen=True)
class Beat:
    """How synthetic hearts beat, and how unsteadily they are seen.

    Attributes:
        ejection_fraction: the lowest and the highest, in %; drawn uniformly between them. A heart
            with a wall that hardly moves may not reach what was drawn.
        irregular: the share of hearts of which one or two stretches of wall move less, late, or
            outwards.
        flicker: how much brightness, speckle and what is seen of the walls change from frame to
            frame; 0: not at all, 1: as in a poor recording.
        dropouts: the share of frames in which a sector begins to be lost, for one to three frames,
            as behind a rib or the lung.
        whole: from end-diastole to the next one; else to end-systole, a half sequence.
    """

    ejection_fraction: tuple[float, float] = (20, 75)
    irregular: float = 0.4
    flicker: float = 1.0
    dropouts: float = 0.15
    whole: bool = False

    def __post_init__(self) -> None:
        low, high = self.ejection_fraction
        if not 0 < low <= high < 85:
            raise ValueError(
                f"ejection_fraction is {self.ejection_fraction}: expected the lowest and the "
                "highest, in %, above 0 and below 85."
            )
        for name in ("irregular", "dropouts"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a share, 0 to 1.")
        if not 0 <= self.flicker <= 2:
            raise ValueError(f"flicker is {self.flicker}: expected 0, none, to 2.")


@dataclass(frozen=True)
class Recording:
    """A beating heart as it was seen, and what is true of it.

    Attributes:
        images: of each view, its frames.
        labels: of each view, CAMUS's labels in every frame.
        sector: the field of view.
        volumes: of the left ventricle in each frame, in ml; the frames of the views are at the
            same times.
        quality: one of `ultrasound.QUALITIES`.
    """

    images: Mapping[str, UInt8[np.ndarray, "T H W"]]
    labels: Mapping[str, UInt8[np.ndarray, "T H W"]]
    sector: Sector
    volumes: Float[np.ndarray, "T"]
    quality: str

    @property
    def ed(self) -> int:
        """The frame of end-diastole, of the largest volume, from 0."""
        return int(self.volumes.argmax())

    @property
    def es(self) -> int:
        """The frame of end-systole, of the smallest volume, from 0."""
        return int(self.volumes.argmin())

    @property
    def ejection_fraction(self) -> float:
        """In %."""
        return 100 * float(1 - self.volumes.min() / self.volumes.max())


def record(rng: Generator, beat: Beat, views: Sequence[str], image_size: int) -> Recording:
    """A random heart that beats, in both views.

    Args:
        rng: what it is drawn from.
        beat: how it beats and is seen.
        views: the two-chamber view and the four-chamber view, as they are called.
        image_size: side of the frames, in pixels.
    """
    quality = list(QUALITIES)[rng.choice(3, p=(0.4, 0.4, 0.2))]
    diastole = random_heart(rng)
    sector = fit_sector(rng, diastole, image_size)
    two, four = views
    hearts = {view: random_view(rng, diastole, four_chamber=view == four) for view in views}
    motion = _random_motion(rng, beat, hearts)
    count = int(rng.integers(12, 22)) * (2 if beat.whole else 1)
    times = np.linspace(0, _CYCLE if beat.whole else 1, count, endpoint=not beat.whole)
    moved = {view: [motion.at(view, time, hearts[view]) for time in times] for view in views}
    volumes = [biplane_volume(*pair) / 1000 for pair in zip(moved[two], moved[four], strict=True)]
    images = {
        view: _film(
            rng, moved[view], times, sector, random_acoustics(rng, QUALITIES[quality]), beat
        )
        for view in views
    }
    pixels = sector.pixels()
    labels = {
        view: np.stack([draw_labels(each, *pixels) for each in moved[view]]) for view in views
    }
    return Recording(images, labels, sector, np.array(volumes), quality)


# Motion


@dataclass(frozen=True)
class _Motion:
    """How the walls move.

    Attributes:
        shortening: of the length at end-systole, as a fraction.
        narrowing: of the radius.
        lost: for each view, how much less the walls move, to the left and to the right at `STEPS`
            from apex to base, as a fraction; above 1: outwards. None where all move alike.
        late: by how many systoles later they move.
    """

    shortening: float
    narrowing: float
    lost: Mapping[str, Float[np.ndarray, "2 n"] | None]
    late: Mapping[str, Float[np.ndarray, "2 n"]]

    def at(self, view: str, time: float, heart: Heart) -> Heart:
        """A view of the heart at a time."""
        amount = float(_contraction(time))
        moved = contract(heart, (self.shortening, self.narrowing), amount)
        lost = self.lost[view]
        if lost is None:
            return moved
        own = self.narrowing * (1 - lost) * _contraction(time - self.late[view])
        return replace(moved, uneven=(1 - own) / (1 - self.narrowing * amount))


_Time = float | Float[np.ndarray, "..."]


def _contraction(time: _Time) -> Float[np.ndarray, "..."]:
    """How far a wall is on its way from end-diastole, 0, to end-systole, 1.

    It contracts slowly, fast and slowly; then the ventricle fills fast, rests, and is filled by the
    atrium.
    """
    time = time % _CYCLE
    filling = (time - 1) / (_CYCLE - 1)
    filled = 0.75 * _smooth(filling / 0.45) + 0.25 * _smooth((filling - 0.75) / 0.25)
    return np.where(time <= 1, _smooth(time), 1 - filled)


def _smooth(time: _Time) -> _Time:
    return (1 - np.cos(math.pi * np.clip(time, 0, 1))) / 2


def _random_motion(rng: Generator, beat: Beat, hearts: Mapping[str, Heart]) -> _Motion:
    """One that ejects what was drawn, as far as its walls can."""
    wanted = rng.uniform(*beat.ejection_fraction)
    ratio = rng.uniform(0.25, 0.5)
    is_irregular = rng.random() < beat.irregular
    lost, late = {}, {}
    for view in hearts:
        regions = np.stack([_region(rng) for _ in range(rng.integers(1, 3))])
        lost[view] = (regions * rng.uniform(0.4, 1.1)).sum(axis=0) if is_irregular else None
        late[view] = regions.max(axis=0) * rng.uniform(0, 0.25)

    def ejected(motion: _Motion) -> float:
        full, empty = (
            biplane_volume(*(motion.at(view, time, heart) for view, heart in hearts.items()))
            for time in (0.0, 1.0)
        )
        return 100 * (1 - empty / full)

    still = motion = _Motion(0, 0, lost, late)
    low, high = 0.0, _MOST
    for _ in range(20):
        narrowing = (low + high) / 2
        motion = replace(still, shortening=ratio * narrowing, narrowing=narrowing)
        low, high = (low, narrowing) if ejected(motion) > wanted else (narrowing, high)
    return motion


def _region(rng: Generator) -> Float[np.ndarray, "2 n"]:
    """Where a stretch of one wall is, 1 in its middle."""
    u = np.linspace(0, 1, STEPS)
    along = np.exp(-(((u - rng.uniform(0.15, 0.8)) / rng.uniform(0.12, 0.25)) ** 2))
    return np.stack([along, 0.1 * along])[:: rng.choice((-1, 1))]


# Imaging


def _film(
    rng: Generator,
    hearts: Sequence[Heart],
    times: Float[np.ndarray, "T"],
    sector: Sector,
    acoustics: Acoustics,
    beat: Beat,
) -> UInt8[np.ndarray, "T H W"]:
    """The frames of a view."""
    diastolic, systolic, own = (random_speckle(rng, sector) for _ in range(3))
    lost = _lost_sectors(rng, len(hearts), sector, beat)
    share = min(0.6 * beat.flicker, 1)
    frames = []
    for heart, time, of_frame in zip(hearts, times, lost, strict=True):
        # Speckle moves on with the tissue: a mixture of fields whose power stays 1. What changes
        # from frame to frame is another place of a third field.
        turn = math.pi / 2 * float(_contraction(time))
        moving = math.cos(turn) * diastolic + math.sin(turn) * systolic
        shift = tuple(int(each) for each in rng.integers(0, own.shape[-2:]))
        speckle = math.sqrt(1 - share**2) * moving + share * np.roll(own, shift, axis=(-2, -1))
        frames.append(draw_image(speckle, heart, sector, _unsteady(rng, acoustics, beat, of_frame)))
    return np.stack(frames)


def _unsteady(
    rng: Generator, acoustics: Acoustics, beat: Beat, lost: Float[np.ndarray, "B"]
) -> Acoustics:
    """How one frame is seen."""
    flicker, quality = beat.flicker, acoustics.quality
    return replace(
        acoustics,
        quality=replace(quality, clutter=quality.clutter + 2 * flicker * rng.normal()),
        gain=acoustics.gain + 10 * flicker * rng.normal(),
        dropout=acoustics.dropout + 0.6 * flicker * rng.normal(size=acoustics.dropout.shape),
        lost=lost,
    )


def _lost_sectors(
    rng: Generator, count: int, sector: Sector, beat: Beat
) -> Float[np.ndarray, "T B"]:
    """The loss of each beam in each frame, in dB."""
    angle = sector.beams()[1][0] / sector.half_angle
    lost = np.zeros((count, len(angle)))
    for start in np.flatnonzero(rng.random(count) < beat.dropouts):
        centre, width = rng.uniform(-0.8, 0.8), rng.uniform(0.08, 0.25)
        seen = rng.uniform(12, 25) * np.exp(-(((angle - centre) / width) ** 4))
        stretch = slice(start, start + rng.integers(1, 4))
        lost[stretch] = np.maximum(lost[stretch], seen)
    return lost

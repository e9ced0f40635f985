"""A chamber of the heart in one frame: its area, its long axis and its twenty discs."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import ndimage

from adapterkit.data.image_file import Spacing
from adapterkit.evaluation.clinical.contours import contour_of, plane_at_neighbour, plane_by_shape

VENTRICLE, ATRIUM = "left ventricle", "left atrium"
"""What is measured, by the names that the structures have in CAMUS."""

DISCS = 20
"""That a chamber is divided into, as the American Society of Echocardiography recommends."""

_LINES = 5
"""Across each disc, whose widths are averaged, so that a ragged edge counts little."""
_WORTH_SAYING = 0.01
"""Share of a mask's area that is left out or filled in without a note."""
_SPIKES = 0.04
"""Half the width of what is no part of an apex, relative to the root of the chamber's area."""

XY = tuple[float, float]
"""A point in pixels, (x, y) = (column, row); (0, 0) is the centre of the first pixel."""


@dataclass(frozen=True)
class Chamber:
    """A chamber as one frame shows it.

    Attributes:
        name: of the frame.
        unit: of lengths and, squared, of areas: "mm", or "px" where the spacing is not known.
        area: of the mask; 0 where it is empty.
        length: of the long axis; NaN where there is none.
        diameters: of the discs, from the apex (of an atrium the roof) to the mitral plane; () where
            there is no axis.
        apex: the end of the long axis opposite to the mitral plane; None where there is no axis.
        mitral: the two ends of the mitral plane; the long axis begins in their middle.
        discs: the ends of each disc's middle line, for drawings.
        notes: what is wrong with the mask, each with the frame's name; () where nothing is.
    """

    name: str
    unit: Literal["mm", "px"]
    area: float
    length: float
    diameters: tuple[float, ...] = ()
    apex: XY | None = None
    mitral: tuple[XY, XY] | None = None
    discs: tuple[tuple[XY, XY], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_measured(self) -> bool:
        """Whether it has an axis and discs."""
        return bool(self.diameters)

    @property
    def area_cm2(self) -> float:
        """In square centimetres; NaN where the spacing is not known."""
        return self.area / 100 if self.unit == "mm" else math.nan


@dataclass(frozen=True)
class View:
    """What one frame of an apical view shows of the left heart.

    Attributes:
        ventricle: the left ventricle's cavity.
        atrium: the left atrium; None where the label map does not tell it.
    """

    ventricle: Chamber
    atrium: Chamber | None = None

    @property
    def name(self) -> str:
        """Of the frame."""
        return self.ventricle.name

    @property
    def notes(self) -> tuple[str, ...]:
        """Of the ventricle, then of the atrium."""
        return self.ventricle.notes + (self.atrium.notes if self.atrium else ())


def measure_view(
    labels: Integer[np.ndarray, "H W"],
    spacing: Spacing | None,
    name: str,
    ventricle: int = 1,
    atrium: int | None = 3,
) -> View:
    """Measure the left ventricle, and the left atrium, of one frame of an apical view.

    The mitral plane is where the two meet; where there is no atrium, it is the flat end of the
    ventricle. The heart may lie in any direction in the image. An atrium is measured only if it
    meets the ventricle, because nothing else tells its mitral plane.

    Args:
        labels: a label map.
        spacing: pixel size in mm, (row, column); None: not known, and pixels are taken as square.
        name: of the frame, for the notes.
        ventricle: the label of the left ventricle's cavity.
        atrium: the label of the left atrium; None: there is none.
    """
    found = structure_of(labels == ventricle, spacing)
    beside = None if atrium is None else structure_of(labels == atrium, spacing)
    notes = found.notes(name, "left ventricle")
    if not found.area:
        unmeasured = beside and _unmeasured(name, "left atrium", beside, spacing)
        return View(_unmeasured(name, "left ventricle", found, spacing), unmeasured)
    scale = spacing or (1.0, 1.0)
    contour, size = contour_of(found.mask, scale), math.sqrt(found.area)
    plane = None
    if beside is not None and beside.area:
        plane = plane_at_neighbour(contour, beside.mask, scale, size)
        if plane is None:
            notes += (
                f"{name}: the left atrium does not meet the left ventricle, whose shape tells the "
                "mitral plane instead",
            )
    ends = plane_by_shape(contour) if plane is None else plane
    cavity = _chamber(found, ends, spacing, name, notes)
    if beside is None or plane is None:
        return View(cavity, beside and _unmeasured(name, "left atrium", beside, spacing))
    notes = beside.notes(name, "left atrium")
    return View(cavity, _chamber(beside, plane, spacing, name, notes))


@dataclass(frozen=True)
class Structure:
    """The largest piece of a structure in a frame, without holes.

    Attributes:
        mask: of that piece.
        area: in mm², or square pixels.
        faults: what is wrong, each a kind and what else there is to say of it.
    """

    mask: Bool[np.ndarray, "H W"]
    area: float
    faults: tuple[tuple[str, str], ...]

    def notes(self, name: str, structure: str) -> tuple[str, ...]:
        """The faults as sentences about a frame."""
        return tuple(f"{name}: the {structure} {kind}{more}" for kind, more in self.faults)


def structure_of(mask: Bool[np.ndarray, "H W"], spacing: Spacing | None) -> Structure:
    """What is measured of a structure's mask; what is under 1 % of it is no fault."""
    if not mask.any():
        return Structure(mask, 0.0, (("is empty", ""),))
    faults = []
    pieces, _ = ndimage.label(mask, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    sizes = np.bincount(pieces.ravel())[1:]
    share = sizes.max() / sizes.sum()
    if 1 - share > _WORTH_SAYING:
        faults.append(
            ("is in pieces", f" ({len(sizes)}); the largest, {100 * share:.0f} %, is measured")
        )
    largest = pieces == sizes.argmax() + 1
    filled = np.asarray(ndimage.binary_fill_holes(largest))
    holes = 1 - largest.sum() / filled.sum()
    if holes > _WORTH_SAYING:
        faults.append(("has holes", f", {100 * holes:.0f} % of it, which are filled"))
    if filled[[0, -1]].any() or filled[:, [0, -1]].any():
        faults.append(("touches the image's border", ", and may go on beyond it"))
    row, column = spacing or (1.0, 1.0)
    return Structure(filled, float(filled.sum() * row * column), tuple(faults))


def _unmeasured(name: str, structure: str, found: Structure, spacing: Spacing | None) -> Chamber:
    notes = found.notes(name, structure)
    return Chamber(name, _unit(spacing), found.area, math.nan, notes=notes)


def _unit(spacing: Spacing | None) -> Literal["mm", "px"]:
    return "px" if spacing is None else "mm"


def _chamber(
    found: Structure,
    plane: Float[np.ndarray, "2 2"],
    spacing: Spacing | None,
    name: str,
    notes: tuple[str, ...],
) -> Chamber:
    scale = spacing or (1.0, 1.0)
    middle = plane.mean(axis=0)
    smooth = _without_spikes(found.mask, scale, _SPIKES * math.sqrt(found.area))
    outline = contour_of(smooth, scale)
    distances = np.linalg.norm(outline - middle, axis=1)
    # The far end is round: the middle of its cap is surer than its farthest point.
    direction = outline[distances >= 0.99 * distances.max()].mean(axis=0) - middle
    direction /= np.linalg.norm(direction)
    length = float(((outline - middle) @ direction).max())
    apex = middle + length * direction
    widths, ends = _discs(found.mask, apex, middle, scale)
    return Chamber(
        name,
        _unit(spacing),
        found.area,
        length,
        diameters=tuple(widths.tolist()),
        apex=_pixel(apex, scale),
        mitral=(_pixel(plane[0], scale), _pixel(plane[1], scale)),
        discs=tuple((_pixel(one, scale), _pixel(other, scale)) for one, other in ends),
        notes=notes,
    )


def _without_spikes(
    mask: Bool[np.ndarray, "H W"], scale: Spacing, radius: float
) -> Bool[np.ndarray, "H W"]:
    """Opened by a disc of a radius in mm; the mask itself where nothing of it is left."""
    inside = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1), sampling=scale))
    core = inside > radius
    if not core.any():
        return mask
    opened = np.asarray(ndimage.distance_transform_edt(~core, sampling=scale)) <= radius
    return opened[1:-1, 1:-1] & mask


def _pixel(point: Float[np.ndarray, "2"], scale: Spacing) -> XY:
    return float(point[0] / scale[1]), float(point[1] / scale[0])


def _discs(
    mask: Bool[np.ndarray, "H W"],
    apex: Float[np.ndarray, "2"],
    middle: Float[np.ndarray, "2"],
    scale: Spacing,
) -> tuple[Float[np.ndarray, "discs"], Float[np.ndarray, "discs 2 2"]]:
    """Diameters in mm, and the ends of the middle line of each disc."""
    axis = middle - apex
    length = float(np.linalg.norm(axis))
    across = np.array([-axis[1], axis[0]]) / length
    step = min(scale) / 4
    corners = np.argwhere(mask)[:, ::-1] * (scale[1], scale[0])
    reach = float(np.abs((corners - middle) @ across).max()) + max(scale)
    offsets = np.arange(-reach, reach + step, step)
    fractions = (np.arange(DISCS * _LINES) + 0.5) / (DISCS * _LINES)
    points = apex + fractions[:, None, None] * axis + offsets[:, None] * across
    at = points[..., ::-1] / scale
    inside = ndimage.map_coordinates(mask.astype(np.float64), at.T, order=1).T
    widths = (inside.sum(axis=1) * step).reshape(DISCS, _LINES).mean(axis=1)
    ends = np.zeros((DISCS, 2, 2))
    for disc, line in enumerate(range(_LINES // 2, DISCS * _LINES, _LINES)):
        hit = np.flatnonzero(inside[line] > 0.5)
        ends[disc] = points[line, hit[[0, -1]]] if len(hit) else points[line, len(offsets) // 2]
    return widths, ends

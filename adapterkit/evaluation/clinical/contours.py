"""The contour of a mask, in millimetres, and where the mitral plane cuts it."""

from typing import cast

import contourpy
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from adapterkit.data.image_file import Spacing

Contour = Float[np.ndarray, "points 2"]
"""Points (x, y) = (across, down) in mm from the centre of the first pixel, in order, closed."""

_POINTS = 160
"""Of a contour: some 1.5 mm apart on a ventricle."""
_CLOSENESS = 0.12
"""How far the atrium may lie from the ventricle at most, relative to the root of its area."""
_WIDTH = 0.1
"""Of the mitral plane at least, relative to the same."""
_LINE = 0.03
"""How far from its line the plane is followed, relative to the same."""
_STRAIGHTNESS = 8.0
"""What a contour's deviation from a chord costs, in units of the chord's length."""


def contour_of(mask: Bool[np.ndarray, "H W"], spacing: Spacing) -> Contour:
    """The longest contour of a mask, smooth to a fraction of a pixel, as points evenly apart."""
    # What reaches the image's border is closed there.
    soft = ndimage.gaussian_filter(np.pad(mask, 3).astype(np.float64), 1.0)
    level = min(0.5, 0.9 * float(soft.max()))
    lines = cast(list[np.ndarray], contourpy.contour_generator(z=soft).lines(level))
    row, column = spacing
    lines = [(line - 3) * (column, row) for line in lines]
    return _evenly_apart(max(lines, key=_length))


def _length(line: Float[np.ndarray, "n 2"]) -> float:
    return float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())


def _evenly_apart(line: Float[np.ndarray, "n 2"]) -> Contour:
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    reached = np.concatenate([[0], steps.cumsum()])
    wanted = np.linspace(0, reached[-1], _POINTS, endpoint=False)
    return np.stack([np.interp(wanted, reached, line[:, axis]) for axis in (0, 1)], axis=1)


def plane_at_neighbour(
    contour: Contour, neighbour: Bool[np.ndarray, "H W"], spacing: Spacing, size: float
) -> Float[np.ndarray, "2 2"] | None:
    """The two ends of the plane in which a chamber meets its neighbour.

    The neighbour tells where the plane is, and the contour, as long as it is straight, where it
    ends: the neighbour may be narrower than the plane, or touch the chamber's side too.

    Args:
        contour: of the chamber.
        neighbour: the other chamber's mask.
        spacing: of the pixels.
        size: root of the chamber's area in mm.

    Returns:
        The ends, or None where the neighbour is missing, far away, or touches in a short part.
    """
    if not neighbour.any():
        return None
    away = np.asarray(ndimage.distance_transform_edt(~neighbour, sampling=spacing))
    at = contour[:, ::-1] / spacing
    distances = ndimage.map_coordinates(away, at.T, order=1, mode="nearest")
    if distances.min() > _CLOSENESS * size:
        return None
    pixel = max(spacing)
    first, count = _longest_run(distances <= distances.min() + 1.5 * pixel)
    if count < 3:
        return None
    first, count = _prolonged(contour, first, count, max(pixel, _LINE * size))
    ends = _flattest(contour, first - count // 3, min(count + 2 * (count // 3), len(contour)))
    if ends is None or np.linalg.norm(ends[1] - ends[0]) < _WIDTH * size:
        return None
    return ends


def plane_by_shape(contour: Contour) -> Float[np.ndarray, "2 2"]:
    """The two ends of the mitral plane where no atrium tells it: the flat end of the ventricle.

    It is sought within 45 degrees of the cross-section; the apex is round, and a chord that cuts it
    deviates.
    """
    across = np.linalg.svd(contour - contour.mean(axis=0), full_matrices=False)[2][1]
    ends = _flattest(contour, 0, None, across)
    assert ends is not None
    return ends


def _longest_run(chosen: Bool[np.ndarray, "n"]) -> tuple[int, int]:
    """Where the longest run of a closed line begins, and how long it is."""
    if chosen.all():
        return 0, len(chosen)
    # Begun at a gap, no run goes over the end.
    gap = int(np.argmin(chosen))
    labels, _ = ndimage.label(np.roll(chosen, -gap))  # pyright: ignore[reportGeneralTypeIssues]
    counts = np.bincount(labels)
    counts[0] = 0
    longest = int(counts.argmax())
    return gap + int(np.argmax(labels == longest)), int(counts[longest])


def _prolonged(contour: Contour, first: int, count: int, tolerance: float) -> tuple[int, int]:
    """A run of the contour with the points before and after that lie on its line."""
    inside = contour[np.arange(first, first + count) % len(contour)]
    centre = inside.mean(axis=0)
    along = np.linalg.svd(inside - centre, full_matrices=False)[2][0]
    straight = np.abs((contour - centre) @ np.array([-along[1], along[0]])) <= tolerance
    while count < len(contour) // 2 and straight[(first - 1) % len(contour)]:
        first, count = first - 1, count + 1
    while count < len(contour) // 2 and straight[(first + count) % len(contour)]:
        count += 1
    return first, count


def _flattest(
    contour: Contour,
    first: int,
    count: int | None,
    along: Float[np.ndarray, "2"] | None = None,
) -> Float[np.ndarray, "2 2"] | None:
    """The chord whose length exceeds the contour's deviation from it, times a constant, most.

    Args:
        contour: on which the chord ends.
        first: and count: the part of the contour to choose of; count is None for all of it.
        along: the chord is within 45 degrees of this direction; None: any.
    """
    points = len(contour)
    best, ends = -np.inf, None
    for steps in range(3, min(count or points, points // 2 + 1)):
        begins = points if count is None else count - steps
        runs = (first + np.arange(begins)[:, None] + np.arange(steps + 1)) % points
        starts, stops = contour[runs[:, 0]], contour[runs[:, -1]]
        chords = stops - starts
        lengths = np.linalg.norm(chords, axis=1).clip(1e-9)
        normals = np.stack([-chords[:, 1], chords[:, 0]], axis=1) / lengths[:, None]
        deviations = np.abs(np.einsum("ikc,ic->ik", contour[runs] - starts[:, None], normals))
        scores = lengths - _STRAIGHTNESS * deviations.max(axis=1)
        if along is not None:
            scores[np.abs(chords @ along) < lengths * np.sqrt(0.5)] = -np.inf
        if scores.max() > best:
            best = scores.max()
            ends = np.stack([starts[scores.argmax()], stops[scores.argmax()]])
    return ends

"""A recording in time: the area curve, the frames of ED and ES, and how steady the masks are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import ndimage

from adapterkit.data.image_file import Spacing
from adapterkit.evaluation.clinical.chambers import View, measure_view, structure_of


@dataclass(frozen=True)
class Recording:
    """What a sequence of one apical view shows.

    Attributes:
        name: of the sequence.
        unit: of lengths: "mm", or "px" where the spacing is not known.
        areas: of the left ventricle in each frame, in square units; NaN where the mask is empty.
        ed: the frame of end-diastole, from 0; None where the ventricle is nowhere.
        es: of end-systole.
        at_ed: the view there; None where `ed` is.
        at_es: the same.
        jitter: as the function `jitter`, of `areas`.
        notes: what is wrong with the masks, of the frames by their numbers, from 0.
    """

    name: str
    unit: Literal["mm", "px"]
    areas: tuple[float, ...]
    ed: int | None
    es: int | None
    at_ed: View | None
    at_es: View | None
    jitter: float
    notes: tuple[str, ...]


def measure_sequence(
    labels: Integer[np.ndarray, "T H W"],
    spacing: Spacing | None,
    name: str,
    ventricle: int = 1,
    atrium: int | None = 3,
    ed: int | None = None,
    es: int | None = None,
) -> Recording:
    """Measure a sequence of label maps of one apical view.

    Args:
        labels: of each frame.
        spacing: pixel size in mm, (row, column); None: not known.
        name: of the sequence, for the notes.
        ventricle: the label of the left ventricle's cavity.
        atrium: the label of the left atrium; None: there is none.
        ed: the frame of end-diastole, from 0, where it is known; None: `find_phases` tells.
        es: of end-systole.
    """
    areas = np.full(len(labels), math.nan)
    wrong: dict[str, list[int]] = {}
    for frame, each in enumerate(labels):
        found = structure_of(each == ventricle, spacing)
        areas[frame] = found.area or math.nan
        for fault, _ in found.faults:
            wrong.setdefault(fault, []).append(frame)
    phases = find_phases(areas)
    ed, es = (
        stated if stated is not None else found
        for stated, found in zip((ed, es), phases or (None, None), strict=True)
    )
    at_ed, at_es = (
        None
        if frame is None
        else measure_view(labels[frame], spacing, f"{name} frame {frame}", ventricle, atrium)
        for frame in (ed, es)
    )
    return Recording(
        name,
        "px" if spacing is None else "mm",
        tuple(areas.tolist()),
        ed,
        es,
        at_ed,
        at_es,
        jitter(areas),
        tuple(
            f"{name}: in {_frames(frames, len(labels))} the left ventricle {fault}"
            for fault, frames in wrong.items()
        ),
    )


def _frames(frames: Sequence[int], of: int) -> str:
    if len(frames) == 1:
        return f"frame {frames[0]}"
    if len(frames) == of:
        return f"all {of} frames"
    listed = ", ".join(map(str, frames[:8]))
    return f"{len(frames)} of {of} frames ({listed}{', ...' if frames[8:] else ''})"


def find_phases(areas: Float[np.ndarray, "T"]) -> tuple[int, int] | None:
    """The frames of ED and ES: where the area of the left ventricle is greatest and smallest.

    The curve is smoothed over three frames (weights 1, 2, 1) before, so that one flickering mask
    does not decide. Of several beats they may be of different ones.

    Args:
        areas: of each frame; NaN where it is not known.

    Returns:
        Their numbers, from 0; None where no area is known.
    """
    known = np.flatnonzero(np.isfinite(areas))
    if not len(known):
        return None
    filled = np.interp(np.arange(len(areas)), known, areas[known])
    smooth = ndimage.convolve1d(filled, [0.25, 0.5, 0.25], mode="nearest")[known]
    return int(known[smooth.argmax()]), int(known[smooth.argmin()])


def jitter(areas: Float[np.ndarray, "T"]) -> float:
    """The mean size of an area curve's second difference, relative to the curve's range.

    A smooth beat of 20 frames has some 0.02; masks that flicker have several times as much.

    Args:
        areas: of each frame; frames without one (NaN) are left out with their neighbours'
            differences.

    Returns:
        NaN where no three frames follow each other, or the curve has no range.
    """
    second = np.abs(np.diff(areas, 2))
    second = second[np.isfinite(second)]
    if not len(second):
        return math.nan
    span = float(np.nanmax(areas) - np.nanmin(areas))
    return float(second.mean()) / span if span > 0 else math.nan


def dice_of_frames(
    predicted: Bool[np.ndarray, "T H W"], reference: Bool[np.ndarray, "T H W"]
) -> Float[np.ndarray, "T"]:
    """Dice, in [0, 1], of one structure in each frame; 1 where it is rightly empty."""
    shared = (predicted & reference).sum(axis=(1, 2))
    both = predicted.sum(axis=(1, 2)) + reference.sum(axis=(1, 2))
    return np.where(both > 0, 2 * shared / np.maximum(both, 1), 1.0)

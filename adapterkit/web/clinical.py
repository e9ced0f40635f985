"""Volumes and ejection fraction of the sequences of a work list. Not for clinical use."""

import math
from typing import Any

import numpy as np
from jaxtyping import UInt8

from adapterkit.evaluation.clinical import (
    ATRIUM,
    VENTRICLE,
    VIEWS,
    View,
    find_phases,
    measure_patient,
    measure_view,
)
from adapterkit.web.workspace import Workspace


def view_of(name: str) -> str | None:
    """The apical view that an image's name tells, "2CH" or "4CH"."""
    found = [view for view in VIEWS if view in name]
    return found[0] if len(found) == 1 else None


def partner_of(work: Workspace, name: str) -> str | None:
    """The image of the other apical view, by its name; None where there is none."""
    view = view_of(name)
    if view is None:
        return None
    (other,) = {*VIEWS} - {view}
    partner = name.replace(view, other)
    return partner if partner in work.worklist.images else None


def measure_heart(work: Workspace, name: str) -> dict[str, Any]:
    """ED, ES, volumes and ejection fraction, by both views where both are sequences.

    Args:
        work: the masks as they are now.
        name: of an image.

    Returns:
        `structure` (the ventricle's label), `ed` and `es` (frames of this image, from 0), `edv_ml`,
        `esv_ml`, `ef_percent`, each None where it is not known, and `warnings`, in words.

    Raises:
        KeyError: there is no such image.
        ValueError: it cannot be read.
    """
    unknown = dict.fromkeys(("structure", "ed", "es", "edv_ml", "esv_ml", "ef_percent"))
    labels = {each.casefold(): k for k, each in work.worklist.structures.names.items()}
    if VENTRICLE not in labels or view_of(name) is None:
        return {**unknown, "warnings": []}
    ed: dict[str, View] = {}
    es: dict[str, View] = {}
    phases = None
    for each in (name, partner_of(work, name)):
        if each is None or len(work.worklist.read(each).frames) < 2:
            continue
        maps = work.labels(each)
        found = find_phases(_areas(maps, labels[VENTRICLE]))
        if found is None:
            continue
        phases = found if each == name else phases
        for of, frame in zip((ed, es), found, strict=True):
            of[str(view_of(each))] = measure_view(
                maps[frame],
                work.worklist.read(each).spacing,
                f"{each}, frame {frame + 1}",
                labels[VENTRICLE],
                labels.get(ATRIUM),
            )
    if phases is None:
        return {**unknown, "warnings": []}
    heart = measure_patient(name, ed, es)
    return {
        "structure": labels[VENTRICLE],
        **dict(zip(("ed", "es"), phases, strict=True)),
        "edv_ml": _known(heart.edv),
        "esv_ml": _known(heart.esv),
        "ef_percent": _known(heart.ef),
        "method": heart.method,
        "warnings": list(heart.notes),
    }


def _areas(maps: UInt8[np.ndarray, "T H W"], label: int) -> np.ndarray:
    """Of each frame in pixels; NaN where there is none."""
    areas = (maps == label).sum(axis=(1, 2)).astype(float)
    return np.where(areas > 0, areas, math.nan)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value

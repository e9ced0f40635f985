"""Volumes and ejection fraction of the left heart, of two apical views or of one.

Sources: R. M. Lang et al., "Recommendations for Cardiac Chamber Quantification by Echocardiography
in Adults", Journal of the American Society of Echocardiography 28(1), 1-39, 2015 (discs,
area-length, foreshortening). To stand beside: S. Leclerc et al., "Deep Learning for Segmentation
using an Open Large-Scale Dataset in 2D Echocardiography", IEEE Transactions on Medical Imaging
38(9), 2198-2210, 2019, doi 10.1109/TMI.2019.2900516, whose networks reach a correlation of 0.95 and
a mean absolute error of 9.5 ml for volumes, 0.80 and 5.6 % for the ejection fraction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adapterkit.evaluation.clinical.chambers import DISCS, Chamber, View

VIEWS = ("2CH", "4CH")
"""Apical two-chamber and four-chamber view."""

_FORESHORTENED = 0.10
"""Difference of the long axes of two views, relative to the longer, above which one is suspect."""
_TO_ML = 1e-3
"""From cubic millimetres."""


def volume_of_discs(two_chamber: Chamber | None, four_chamber: Chamber | None) -> float:
    """Simpson's volume, pi / 4 * L / 20 * sum(a_i * b_i), in cubic units of the chambers' lengths.

    L is the longer of the two axes; where one view is missing or could not be measured, a_i = b_i.

    Returns:
        NaN where no view was measured.
    """
    views = [each for each in (two_chamber, four_chamber) if each is not None and each.is_measured]
    if not views:
        return math.nan
    length = max(each.length for each in views)
    products = zip(views[0].diameters, views[-1].diameters, strict=True)
    return math.pi / 4 * length / DISCS * sum(one * other for one, other in products)


def volume_of_area_and_length(two_chamber: Chamber | None, four_chamber: Chamber | None) -> float:
    """The volume 8 / (3 pi) * A1 * A2 / L of an atrium, in cubic units of the chambers' lengths.

    L is the shorter of the two axes; where one view is missing or could not be measured, A1 = A2.

    Returns:
        NaN where no view was measured.
    """
    views = [each for each in (two_chamber, four_chamber) if each is not None and each.is_measured]
    if not views:
        return math.nan
    length = min(each.length for each in views)
    return 8 / (3 * math.pi) * views[0].area * views[-1].area / length


def foreshortening(two_chamber: Chamber, four_chamber: Chamber) -> float:
    """By how much the shorter long axis falls short of the longer one, in [0, 1]; else NaN."""
    if not (two_chamber.is_measured and four_chamber.is_measured):
        return math.nan
    lengths = two_chamber.length, four_chamber.length
    return 1 - min(lengths) / max(lengths)


@dataclass(frozen=True)
class LeftHeart:
    """Volumes and ejection fraction of one patient.

    What is not known is NaN, and `notes` says why.

    Attributes:
        patient: by name.
        views: of which the ventricle's volumes are made: both (biplane), one (monoplane) or none.
        edv: end-diastolic volume of the left ventricle in ml.
        esv: end-systolic volume in ml.
        ef: ejection fraction in %.
        atrium_discs: volume of the left atrium at end-systole in ml, by discs.
        atrium_area_length: the same by areas and length.
        ed: the views at end-diastole.
        es: the views at end-systole.
        notes: what to know of the numbers, each with the name of the frame or the patient.
    """

    patient: str
    views: tuple[str, ...]
    edv: float
    esv: float
    ef: float
    atrium_discs: float
    atrium_area_length: float
    ed: Mapping[str, View]
    es: Mapping[str, View]
    notes: tuple[str, ...]

    @property
    def stroke_volume(self) -> float:
        """In ml."""
        return self.edv - self.esv

    @property
    def method(self) -> str:
        """ "biplane", "monoplane 2CH", "monoplane 4CH" or "none"."""
        if len(self.views) == 2:
            return "biplane"
        return f"monoplane {self.views[0]}" if self.views else "none"


def measure_patient(patient: str, ed: Mapping[str, View], es: Mapping[str, View]) -> LeftHeart:
    """Volumes, ejection fraction and what to know of them, of the views at ED and at ES.

    The ejection fraction is of the views that were measured at both, so that both volumes are of
    the same method. Where a view's spacing is not known, the ejection fraction is, and volumes are
    not: the size of a pixel cancels, if ED and ES have the same.

    Args:
        patient: by name, for the notes.
        ed: what `measure_view` gives, by "2CH" and "4CH".
        es: the same at end-systole.

    Raises:
        ValueError: there is a view of another name.
    """
    unknown = sorted({*ed, *es} - {*VIEWS})
    if unknown:
        raise ValueError(f"{patient} has the view {unknown[0]}: expected 2CH, 4CH or both")
    both = tuple(view for view in VIEWS if _is_measured(ed, view) and _is_measured(es, view))
    in_mm = tuple(v for v in both if {each[v].ventricle.unit for each in (ed, es)} == {"mm"})
    used, known = in_mm or both, bool(in_mm)
    diastolic, systolic = (
        volume_of_discs(*(of[view].ventricle if view in used else None for view in VIEWS))
        for of in (ed, es)
    )
    to_ml = _TO_ML if known else math.nan
    atria = [es[view].atrium if view in es else None for view in VIEWS]
    atria = [each if each and each.unit == "mm" else None for each in atria]
    return LeftHeart(
        patient,
        used,
        edv=diastolic * to_ml,
        esv=systolic * to_ml,
        ef=100 * (1 - systolic / diastolic) if used else math.nan,
        atrium_discs=volume_of_discs(*atria) * _TO_ML,
        atrium_area_length=volume_of_area_and_length(*atria) * _TO_ML,
        ed=ed,
        es=es,
        notes=(
            *(note for of in (ed, es) for each in of.values() for note in each.notes),
            *_notes(patient, ed, es, used, known),
            *_of_phases(patient, diastolic, systolic),
        ),
    )


def _is_measured(views: Mapping[str, View], view: str) -> bool:
    return view in views and views[view].ventricle.is_measured


def _notes(
    patient: str,
    ed: Mapping[str, View],
    es: Mapping[str, View],
    used: tuple[str, ...],
    known: bool,
) -> list[str]:
    notes = []
    if not used:
        notes.append(f"{patient}: no view was measured at both ED and ES; no ejection fraction")
    elif len(used) == 1:
        other = VIEWS[1 - VIEWS.index(used[0])]
        notes.append(
            f"{patient}: {other} was not measured, in mm, at both ED and ES; volumes are of "
            f"{used[0]} alone"
        )
    if used and not known:
        notes.append(
            f"{patient}: the size of a pixel is not known; the ejection fraction takes pixels as "
            "square, and there are no volumes"
        )
    if len(used) == 2 and known:
        notes += _of_axes(patient, "ED", ed) + _of_axes(patient, "ES", es)
    return notes


def _of_axes(patient: str, phase: str, views: Mapping[str, View]) -> list[str]:
    two, four = (views[view].ventricle for view in VIEWS)
    short = foreshortening(two, four)
    if short <= _FORESHORTENED:
        return []
    return [
        f"{patient}: at {phase} the long axis is {two.length:.0f} mm in 2CH and {four.length:.0f} "
        f"mm in 4CH, which differ by {100 * short:.0f} %; the shorter may be foreshortened"
    ]


def _of_phases(patient: str, diastolic: float, systolic: float) -> list[str]:
    if systolic > diastolic:
        return [f"{patient}: the volume at ES exceeds that at ED; are the two exchanged?"]
    return []

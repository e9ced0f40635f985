"""Measurements of many patients beside those of a reference: tables and agreement."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from adapterkit.evaluation.clinical.bland_altman import Agreement, agreement
from adapterkit.evaluation.clinical.volumes import LeftHeart

Values = Mapping[str, float]
"""Measurements of one patient by the names in `QUANTITIES`; NaN where one is not known."""

QUANTITIES: dict[str, tuple[str, str]] = {
    "ef": ("EF", "%"),
    "edv_ml": ("EDV", "ml"),
    "esv_ml": ("ESV", "ml"),
    "stroke_volume_ml": ("stroke volume", "ml"),
    "la_volume_discs_ml": ("LA volume, discs", "ml"),
    "la_volume_area_length_ml": ("LA volume, area-length", "ml"),
}
"""What is compared, as files call it: what tables call it, and its unit."""


def values_of(heart: LeftHeart) -> dict[str, float]:
    """The measurements of a patient."""
    return {
        "ef": heart.ef,
        "edv_ml": heart.edv,
        "esv_ml": heart.esv,
        "stroke_volume_ml": heart.stroke_volume,
        "la_volume_discs_ml": heart.atrium_discs,
        "la_volume_area_length_ml": heart.atrium_area_length,
    }


@dataclass(frozen=True, eq=False)
class Comparison:
    """One quantity of all patients that have it in both.

    Attributes:
        title: what it is.
        unit: of it.
        measured: of each patient.
        reference: of the same patients.
        agreement: between the two.
    """

    title: str
    unit: str
    measured: Float[np.ndarray, "n"]
    reference: Float[np.ndarray, "n"]
    agreement: Agreement


def compare(
    measured: Mapping[str, Values], reference: Mapping[str, Values]
) -> dict[str, Comparison]:
    """The quantities that some patient has in both, in the order of `QUANTITIES`.

    Args:
        measured: by patient.
        reference: by patient; those in one of the two alone are left out.
    """
    patients = [each for each in measured if each in reference]
    found = {}
    for key, (title, unit) in QUANTITIES.items():
        pairs = [
            (measured[p].get(key, math.nan), reference[p].get(key, math.nan)) for p in patients
        ]
        known = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if known:
            ours, theirs = np.array(known).T
            found[key] = Comparison(title, unit, ours, theirs, agreement(ours, theirs))
    return found


HEADS = ("quantity", "patients", "bias", "limits of agreement", "MAE", "correlation")
"""Of `agreement_rows`."""


def agreement_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """A row for each quantity; statistics with their 95 % confidence intervals."""
    rows = []
    for each in comparisons:
        found = each.agreement
        cells = [str(found.bias), found.limits, str(found.mae), str(found.correlation)]
        rows.append([f"{each.title} ({each.unit})", str(found.count), *cells])
    return rows


def measurement_rows(measured: Mapping[str, Values]) -> tuple[list[str], list[list[str]]]:
    """Heads, and a row for each quantity that some patient has: over how many, mean, range."""
    rows = []
    for key, (title, unit) in QUANTITIES.items():
        known = [each[key] for each in measured.values() if math.isfinite(each[key])]
        if known:
            mean = f"{np.mean(known):.1f} ± {np.std(known):.1f}"
            spread = f"{min(known):.1f} to {max(known):.1f}"
            rows.append([f"{title} ({unit})", str(len(known)), mean, spread])
    return ["quantity", "patients", "mean ± SD", "range"], rows

"""Measurements of echocardiograms as tables: of each patient and of each frame."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from adapterkit.evaluation.clinical import VIEWS
from adapterkit.evaluation.clinical.patients import Values, values_of
from adapterkit.evaluation.echo_files import Measured


def patient_table(
    measured: Mapping[str, Measured], beside: Mapping[str, Mapping[str, Values]]
) -> pd.DataFrame:
    """A row of each patient; what is not known is empty.

    Args:
        measured: by patient.
        beside: further values of the patients, by what their columns' names end with.
    """
    rows = []
    for patient, found in measured.items():
        heart = found.heart
        row: dict[str, Any] = {"patient": patient, "method": heart.method, **values_of(heart)}
        for ending, values in beside.items():
            of_patient = values.get(patient, {})
            row |= {f"{key}_{ending}": value for key, value in of_patient.items()}
        rows.append(row | dict(_of_views(found)) | {"notes": "; ".join(found.notes)})
    columns = dict.fromkeys(key for row in rows for key in row if key != "notes")
    return pd.DataFrame(rows, columns=[*columns, "notes"])


def _of_views(found: Measured) -> Iterator[tuple[str, Any]]:
    for view in VIEWS:
        for phase, of in (("ED", found.heart.ed), ("ES", found.heart.es)):
            if view in of:
                ventricle = of[view].ventricle
                yield f"lv_area_{view}_{phase}_cm2", ventricle.area_cm2
                known = ventricle.unit == "mm"
                yield f"lv_length_{view}_{phase}_mm", ventricle.length if known else None
        if (recording := found.recordings.get(view)) is not None:
            yield f"ed_frame_{view}", recording.ed
            yield f"es_frame_{view}", recording.es
            yield f"jitter_{view}", recording.jitter


def frame_table(
    measured: Mapping[str, Measured], reference: Mapping[str, Measured]
) -> pd.DataFrame:
    """A row of each frame of each sequence: area of the left ventricle, and Dice with a reference.

    Args:
        measured: by patient.
        reference: by patient; {} where there is none.

    Raises:
        DataError: a sequence and its reference differ in size.
    """
    rows = []
    for patient, found in measured.items():
        dice = found.dice(reference[patient]) if patient in reference else {}
        for view, recording in found.recordings.items():
            for frame, area in enumerate(recording.areas):
                row = {"patient": patient, "view": view, "frame": frame}
                row[f"lv_area_{recording.unit}2"] = area
                if (view, None) in dice:
                    row["dice"] = dice[view, None][frame]
                rows.append(row)
    return pd.DataFrame(rows)

"""Volumes and ejection fraction of test patients, measured while their images are evaluated."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from jaxtyping import Float, UInt8
from torch import Tensor

from adapterkit.data.collections.camus import PHASES
from adapterkit.data.dataset import SegmentationDataset, to_label_map, to_native
from adapterkit.data.image_file import Spacing
from adapterkit.evaluation.clinical import (
    ATRIUM,
    VENTRICLE,
    VIEWS,
    LeftHeart,
    View,
    measure_patient,
    measure_view,
)
from adapterkit.evaluation.clinical.patients import (
    HEADS,
    Comparison,
    agreement_rows,
    compare,
    values_of,
)
from adapterkit.evaluation.evaluation import Predictions

_Key = tuple[str, str, str]
"""Patient, view and phase."""


@dataclass(frozen=True)
class Hearts:
    """The patients of a test, by predicted masks and by those of an expert.

    Attributes:
        predicted: by patient.
        reference: of the same patients.
    """

    predicted: Mapping[str, LeftHeart]
    reference: Mapping[str, LeftHeart]

    def comparisons(self) -> dict[str, Comparison]:
        """As `patients.compare`."""
        ours, theirs = (
            {patient: values_of(heart) for patient, heart in of.items()}
            for of in (self.predicted, self.reference)
        )
        return compare(ours, theirs)

    def table(self) -> pd.DataFrame:
        """A row of each patient."""
        rows: list[dict[str, Any]] = []
        for patient, heart in self.predicted.items():
            theirs = values_of(self.reference[patient])
            row = {"patient": patient, "method": heart.method, **values_of(heart)}
            row |= {f"{key}_reference": value for key, value in theirs.items()}
            rows.append(row | {"notes": "; ".join(heart.notes)})
        return pd.DataFrame(rows)

    def summary(self) -> dict[str, Any]:
        """The agreement of each quantity, with confidence intervals; None for what is not known."""
        return {key: _for_json(asdict(each.agreement)) for key, each in self.comparisons().items()}


class HeartsOfTest:
    """Measures the views of a data set that are evaluated; each of several processes its share.

    Args:
        dataset: the images; its records have the attributes patient, view and phase.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        self._dataset = dataset
        self._references: dict[int, tuple[View, torch.Size, Spacing | None]] = {}
        self._own: dict[str, list[tuple[_Key, View, View]]] = {}

    @staticmethod
    def has_some(dataset: SegmentationDataset) -> bool:
        """Whether it is of apical views at ED and ES with the left ventricle, as CAMUS is."""
        known = dataset.records[0].attributes
        views = known.get("view") in VIEWS and known.get("phase") in PHASES
        return views and "patient" in known and VENTRICLE in dataset.structures

    def measuring(self, of: str) -> Callable[[Predictions], None]:
        """What `evaluate` is to show its batches to; `of` says what was predicted, and how."""
        own = self._own.setdefault(of, [])

        def measure(predictions: Predictions) -> None:
            for i, index in enumerate(predictions.indices):
                known, name = predictions.attributes[i], predictions.names[i]
                reference, size, spacing = self._reference(index, name)
                logits = to_native(predictions.logits[i], size)
                predicted = measure_view(self._labels(logits), spacing, name, atrium=self._atrium)
                key = known["patient"], known["view"], known["phase"]
                own.append((key, predicted, reference))

        return measure

    @property
    def _atrium(self) -> int | None:
        return 3 if ATRIUM in self._dataset.structures else None

    def _reference(self, index: int, name: str) -> tuple[View, torch.Size, Spacing | None]:
        if index not in self._references:
            masks, spacing = self._dataset.native_reference(index)
            labels = self._labels(masks.float())
            view = measure_view(labels, spacing, name, atrium=self._atrium)
            self._references[index] = view, masks.shape[-2:], spacing
        return self._references[index]

    def _labels(self, maps: Float[Tensor, "k H W"]) -> UInt8[np.ndarray, "H W"]:
        """1 is the ventricle and 3 the atrium; where masks overlap, the highest value's."""
        structures = self._dataset.structures
        of = [0, *({VENTRICLE: 1, ATRIUM: 3}.get(name, 0) for name in structures)]
        return np.array(of, dtype=np.uint8)[to_label_map(maps)]

    def of_all(self) -> dict[str, Hearts]:
        """What all processes measured, by what was predicted."""
        found = {}
        for of, own in self._own.items():
            views = sorted(gather_object(own), key=lambda each: each[0])
            found[of] = Hearts(
                _patients({key: ours for key, ours, _ in views}),
                _patients({key: theirs for key, _, theirs in views}),
            )
        return found


def _patients(views: Mapping[_Key, View]) -> dict[str, LeftHeart]:
    return {
        patient: measure_patient(
            patient,
            *(
                {
                    view: views[patient, view, phase]
                    for view in VIEWS
                    if (patient, view, phase) in views
                }
                for phase in PHASES
            ),
        )
        for patient in sorted({patient for patient, *_ in views})
    }


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _for_json(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def heart_tables(
    found: Mapping[str, Hearts],
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, heads and rows of a table of agreement; none where nothing is known of any patient."""
    rows = [
        [of, *row]
        for of, hearts in found.items()
        for row in agreement_rows([*hearts.comparisons().values()])
    ]
    title = "Ejection fraction and volumes, against the reference masks"
    return [(title, ["model", *HEADS], rows)] if rows else []

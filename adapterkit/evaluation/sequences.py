"""What a segmenter makes of sequences of the heart: masks over time, and what is measured of them.

Beside the Dice of each frame: how steady the area of the left ventricle is, and the ejection
fraction of a patient, by `evaluation.clinical`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from adapterkit.data.clips import sequences_in
from adapterkit.data.dataset import SegmentationDataset, to_label_map, to_native
from adapterkit.evaluation.clinical import (
    ATRIUM,
    VENTRICLE,
    LeftHeart,
    Recording,
    agreement,
    dice_of_frames,
    measure_patient,
    measure_sequence,
)
from adapterkit.evaluation.evaluation import predict
from adapterkit.promptable.protocol import Promptable
from adapterkit.promptable.strategies import PromptStrategy


@dataclass(frozen=True, eq=False)
class SegmentedSequence:
    """A sequence with what a segmenter made of it, at its own size.

    Attributes:
        name: of the sequence.
        attributes: what else is known of it, "patient" and "view" say.
        structures: how many there are.
        images: its frames as the segmenter saw them, grey, in [0, 255].
        predicted: label maps, 1 for the first structure.
        reference: the same by an expert, where `labelled`; else 0.
        labelled: which frames have a reference.
        measured: of the predicted masks.
        by_expert: of the reference; None where not all frames are labelled.
    """

    name: str
    attributes: Mapping[str, str]
    structures: int
    images: Float[np.ndarray, "T S S"] = field(repr=False)
    predicted: UInt8[np.ndarray, "T H W"] = field(repr=False)
    reference: UInt8[np.ndarray, "T H W"] = field(repr=False)
    labelled: Bool[np.ndarray, "T"] = field(repr=False)
    measured: Recording = field(repr=False)
    by_expert: Recording | None = field(repr=False)

    @property
    def dice(self) -> Float[np.ndarray, "n K"]:
        """Dice, in [0, 1], of each labelled frame and structure."""
        predicted, reference = self.predicted[self.labelled], self.reference[self.labelled]
        labels = range(1, self.structures + 1)
        each = [dice_of_frames(predicted == label, reference == label) for label in labels]
        return np.stack(each, axis=1)


def segment_sequences(
    segmenter: Promptable,
    dataset: SegmentationDataset,
    *,
    seed: int,
    points: PromptStrategy = "class",
    batch_size: int = 16,
    progress: str = "",
) -> list[SegmentedSequence]:
    """Segment and measure every sequence of a data set, frames without a reference too.

    The left ventricle and the left atrium are measured, known by their names.

    Args:
        segmenter: any promptable model; one with temporal parts sees the frames together.
        dataset: frames of sequences; what is no sequence counts as one of a single frame.
        seed: of points, where these are asked with.
        points: how the prompts are chosen.
        batch_size: frames at a time.
        progress: as in `predict`.

    Raises:
        ValueError: no structure is called "left ventricle".
    """
    if VENTRICLE not in dataset.structures:
        raise ValueError(
            f'no structure is called "{VENTRICLE}": there is {", ".join(dataset.structures)}'
        )
    masks: dict[int, tuple[Tensor, Tensor]] = {}
    everything = range(len(dataset))
    for each in predict(
        segmenter,
        dataset,
        seed=seed,
        points=points,
        batch_size=batch_size,
        progress=progress,
        only=everything,
    ):
        for i, index in enumerate(each.indices):
            masks[index] = each.logits[i], each.images[i]
    return [_segmented(dataset, images, masks) for images in sequences_in(dataset)]


def _segmented(
    dataset: SegmentationDataset,
    images: Sequence[int],
    masks: Mapping[int, tuple[Tensor, Tensor]],
) -> SegmentedSequence:
    record = dataset.records[images[0]]
    attributes = dict(record.attributes)
    name = attributes.pop("sequence", record.name)
    predicted, reference, spacing = [], [], None
    for image in images:
        true, spacing = dataset.native_reference(image)
        logits = to_native(masks[image][0], true.shape[-2:])
        predicted.append(to_label_map(logits))
        reference.append(to_label_map(true.float()))
    found, true = np.stack(predicted), np.stack(reference)
    labelled = np.array([dataset.labelled[image] for image in images])
    labels = {name: label for label, name in enumerate(dataset.structures, 1)}
    ventricle, atrium = labels[VENTRICLE], labels.get(ATRIUM)
    return SegmentedSequence(
        name,
        {key: value for key, value in attributes.items() if key != "frame"},
        len(dataset.structures),
        np.stack([masks[image][1][0].numpy() for image in images]),
        found,
        true,
        labelled,
        measure_sequence(found, spacing, name, ventricle, atrium),
        measure_sequence(true, spacing, name, ventricle, atrium) if labelled.all() else None,
    )


def measure_patients(sequences: Sequence[SegmentedSequence]) -> dict[str, LeftHeart]:
    """Volumes and ejection fraction of each patient, of the frames that the area curves tell.

    Args:
        sequences: with the attributes "patient" and "view", "2CH" or "4CH".

    Returns:
        By patient, in sorted order.
    """
    found = {}
    for patient in sorted({each.attributes["patient"] for each in sequences}):
        views = {
            each.attributes["view"]: each.measured
            for each in sequences
            if each.attributes["patient"] == patient
        }
        found[patient] = measure_patient(
            patient,
            ed={view: each.at_ed for view, each in views.items() if each.at_ed},
            es={view: each.at_es for view, each in views.items() if each.at_es},
        )
    return found


def patient_table(
    sequences: Sequence[SegmentedSequence],
    structures: Sequence[str],
    true_ef: Mapping[str, float | None],
) -> pd.DataFrame:
    """A row for each patient, with the means over the frames and sequences.

    Columns: "patient", "dice" over all structures, the Dice of each structure by its name,
    "jitter", "jitter of the reference", "ef" and "true ef" in %; NaN for what is not known.

    Args:
        sequences: as `measure_patients` takes them.
        structures: their names.
        true_ef: of each patient, in %.
    """
    hearts = measure_patients(sequences)
    rows = []
    for patient, heart in hearts.items():
        own = [each for each in sequences if each.attributes["patient"] == patient]
        dice = np.concatenate([each.dice for each in own]).mean(axis=0)
        by_expert = [each.by_expert.jitter if each.by_expert else math.nan for each in own]
        rows.append(
            {
                "patient": patient,
                "dice": dice.mean(),
                **dict(zip(structures, dice, strict=True)),
                "jitter": _mean(np.array([each.measured.jitter for each in own])),
                "jitter of the reference": _mean(np.array(by_expert)),
                "ef": heart.ef,
                "true ef": true_ef.get(patient),
            }
        )
    return pd.DataFrame(rows).astype({"true ef": float})


def summary_of_patients(table: pd.DataFrame) -> dict[str, float]:
    """What a table of patients comes to: means, and the error of the ejection fraction.

    Returns:
        "dice", "jitter", "jitter of the reference", and of the ejection fraction in points "ef mae"
        and "ef bias" (measured less true), and "ef correlation"; NaN where nothing is known.
    """
    columns = ("dice", "jitter", "jitter of the reference", "ef", "true ef")
    dice, jitter, by_expert, ef, true = (table[name].to_numpy(float) for name in columns)
    known = np.isfinite(ef) & np.isfinite(true)
    found = agreement(ef, true, resamples=2) if known.any() else None
    return {
        "dice": float(dice.mean()),
        "jitter": _mean(jitter),
        "jitter of the reference": _mean(by_expert),
        "ef mae": found.mae.value if found else math.nan,
        "ef bias": found.bias.value if found else math.nan,
        "ef correlation": found.correlation.value if found else math.nan,
    }


def _mean(values: Float[np.ndarray, "n"]) -> float:
    """Of those that are known."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan

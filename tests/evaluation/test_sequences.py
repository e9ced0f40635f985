"""Sequences are measured as their masks say."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from adapterkit.data.collections import open_collection
from adapterkit.data.collections.camus import find_sequences, read_info
from adapterkit.data.dataset import SegmentationDataset
from adapterkit.data.synthetic.beat import Beat
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.sequence_figure import sequence_figure
from adapterkit.evaluation.sequences import (
    measure_patients,
    patient_table,
    segment_sequences,
    summary_of_patients,
)
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable

SIZE = 96
STRUCTURES = ("left ventricle", "myocardium", "left atrium")


@pytest.fixture(scope="module")
def beating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences") / "echo"
    return write_phantom(folder, 2, seed=4, image_size=SIZE, beat=Beat((40, 60), irregular=0))


def dataset(beating: Path, labelled: str = "all") -> SegmentationDataset:
    records = open_collection(beating, "camus_sequences", labelled=labelled).records
    return SegmentationDataset(records, SIZE)


class Planted(Promptable):
    """Predicts the masks that it is given for images that it knows by their values."""

    def __init__(self, data: SegmentationDataset, shrunk_every_other: int = 0):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.known = {}
        for i in range(len(data)):
            masks = data[i]["masks"].float()
            if i % 2 and shrunk_every_other:
                kernel = 2 * shrunk_every_other + 1
                masks = -nn.functional.max_pool2d(-masks, kernel, 1, shrunk_every_other)
            self.known[data[i]["image"].numpy().tobytes()] = masks

    def encode(self, images: Tensor, frames: int = 1) -> Embedding:
        return Embedding(images, SIZE)

    def decode(self, embedding: Embedding, prompts: Prompts | None = None) -> Masks:
        masks = torch.stack([self.known[each.numpy().tobytes()] for each in embedding.image])
        logits = 20.0 * masks[:, :, None] - 10
        return Masks(logits, torch.zeros(logits.shape[:3]), SIZE)


def test_perfect_masks_have_the_ejection_fraction_of_the_heart(beating: Path):
    data = dataset(beating)
    found = segment_sequences(Planted(data), data, seed=0)
    assert [each.name for each in found] == [each.name for each in find_sequences(beating)]
    for each in found:
        assert (each.dice == 1).all()
        assert each.by_expert is not None
        assert each.measured.areas == each.by_expert.areas
    for patient, heart in measure_patients(found).items():
        info = next(read_info(s) for s in find_sequences(beating) if s.patient == patient)
        assert info is not None
        assert heart.ef == pytest.approx(info.ejection_fraction, abs=3)


def test_masks_that_flicker_are_told(beating: Path):
    data = dataset(beating)
    steady, unsteady = (
        segment_sequences(Planted(data, by), data, seed=0, batch_size=7) for by in (0, 1)
    )
    for one, other in zip(steady, unsteady, strict=True):
        assert other.measured.jitter > 2 * one.measured.jitter
        assert other.dice.mean() < one.dice.mean()


def test_frames_without_a_reference_are_segmented_and_not_scored(beating: Path):
    everything, sparse = dataset(beating), dataset(beating, "ed-es")
    found = segment_sequences(Planted(everything), sparse, seed=0)
    assert all(len(each.dice) == 2 for each in found)
    assert all(each.by_expert is None for each in found)
    for each in found:
        assert len(each.measured.areas) == len(each.labelled)
        assert all(area > 0 for area in each.measured.areas)


def test_a_table_has_what_is_known_of_each_patient(beating: Path):
    data = dataset(beating)
    found = segment_sequences(Planted(data), data, seed=0)
    table = patient_table(found, STRUCTURES, {"patient0001": 50.0})
    assert table["patient"].to_list() == ["patient0001", "patient0002"]
    assert table["true ef"].isna().to_list() == [False, True]
    assert (table[list(STRUCTURES)].to_numpy() == 1).all()
    summary = summary_of_patients(table)
    assert summary["dice"] == 1
    assert summary["ef bias"] == pytest.approx(table["ef"][0] - 50)
    assert summary["jitter"] == pytest.approx(summary["jitter of the reference"])


def test_the_error_of_the_ejection_fraction_is_over_patients():
    rows = {"dice": 0.9, "jitter": [0.1, np.nan], "jitter of the reference": 0.02}
    table = pd.DataFrame({**rows, "ef": [40.0, 70.0], "true ef": [45.0, 60.0]})
    summary = summary_of_patients(table)
    assert (summary["ef mae"], summary["ef bias"]) == (7.5, 2.5)
    assert summary["jitter"] == 0.1


def test_a_patient_is_drawn(beating: Path, tmp_path: Path):
    data = dataset(beating)
    found = segment_sequences(Planted(data), data, seed=0)[:2]
    sequence_figure("patient0001: 50 %", {"one": found, "other": found}, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("unit", "said", "scale"), [("mm", "cm²", 100), ("px", "pixels", 1)])
def test_areas_are_drawn_in_their_unit(
    beating: Path, monkeypatch: pytest.MonkeyPatch, unit: Literal["mm", "px"], said: str, scale: int
):
    data = dataset(beating)
    found = segment_sequences(Planted(data), data, seed=0)[:1]
    found = [
        replace(each, measured=replace(each.measured, unit=unit), by_expert=None) for each in found
    ]
    figures = []
    monkeypatch.setattr(
        "adapterkit.evaluation.sequence_figure.save_figure",
        lambda figure, path: figures.append(figure),
    )
    sequence_figure("patient0001", {"one": found}, Path("p.png"))
    curves = figures[0].axes[-1]
    assert curves.get_ylabel() == f"left ventricle, {said}"
    areas = np.array(found[0].measured.areas) / scale
    np.testing.assert_allclose(curves.lines[0].get_ydata(), areas)

"""Volumes and ejection fraction of test patients, beside the metrics of their images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapterkit.data.collections.camus import CamusDataset, find_frames
from adapterkit.evaluation.clinical import measure_view
from adapterkit.evaluation.evaluation import evaluate
from adapterkit.evaluation.hearts import HeartsOfTest, heart_tables
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable


class Expert(Promptable):
    """Predicts the references, some of them without the ventricle."""

    def __init__(self, masks: Tensor, without: tuple[int, ...] = ()):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.logits = 20 * masks.float() - 10
        self.logits[list(without), 0] = -10
        self.seen = 0

    def encode(self, images: Tensor, frames: int = 1) -> Embedding:
        return Embedding(images, images.shape[-1])

    def decode(self, embedding: Embedding, prompts: Prompts | None = None) -> Masks:
        logits = self.logits[self.seen : self.seen + len(embedding), :, None]
        self.seen += len(embedding)
        return Masks(logits, torch.zeros(logits.shape[:3]), 64)


@pytest.fixture
def dataset(phantom: Path) -> CamusDataset:
    return CamusDataset(find_frames(phantom), 64)


def test_perfect_masks_have_the_reference_s_ejection_fraction(dataset: CamusDataset):
    masks = torch.stack([dataset[i]["masks"] for i in range(len(dataset))])
    assert HeartsOfTest.has_some(dataset)
    hearts = HeartsOfTest(dataset)
    for name, without in {"all": (), "some missing": (0, 1, 2, 3)}.items():
        show = [hearts.measuring(name)]
        evaluate(Expert(masks, without), dataset, seed=0, batch_size=4, show=show)
    found = hearts.of_all()
    assert list(found["all"].predicted) == ["patient0001", "patient0002", "patient0003"]
    compared = found["all"].comparisons()
    assert compared["ef"].agreement.mae.value == pytest.approx(0, abs=1e-6)
    assert compared["edv_ml"].agreement.count == 3
    record = dataset.records[0].read()
    view = measure_view(record.labels, record.spacing, "")
    ours = found["all"].predicted["patient0001"].ed["2CH"]
    assert ours.ventricle.length == pytest.approx(view.ventricle.length)
    # A patient without a ventricle has no number, and a note.
    missing = found["some missing"]
    assert missing.comparisons()["ef"].agreement.count == 2
    row = missing.table().to_dict("records")[0]
    assert row["method"] == "none"
    assert "patient0001_2CH_ED: the left ventricle is empty" in row["notes"]
    assert missing.summary()["ef"]["correlation"]["value"] is not None
    ((title, heads, rows),) = heart_tables(found)
    assert "Ejection fraction" in title
    assert [row[:3] for row in rows if row[1] == "EF (%)"] == [
        ["all", "EF (%)", "3"], ["some missing", "EF (%)", "2"]
    ]  # fmt: skip
    assert len(heads) == len(rows[0])


def test_images_of_something_else_are_not_measured(dataset: CamusDataset):
    other = [replace(dataset.records[0], view="PLAX")]
    assert not HeartsOfTest.has_some(CamusDataset(other, 64))
    assert HeartsOfTest(dataset).of_all() == {}
    assert heart_tables({}) == []

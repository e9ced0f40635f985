"""The number of clicks to a good mask, of a segmenter that gets better by as much as is known."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapterkit.data.collections import open_collection
from adapterkit.data.dataset import SegmentationDataset
from adapterkit.evaluation.clicks import MOST, clicks_needed, clicks_table
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable


class Improves(Promptable):
    """Gives each structure's reference when it has been clicked on often enough, and else nothing.

    Its `needs` are the clicks of each structure.
    """

    def __init__(self, masks: Tensor, needs: tuple[int, ...]):
        super().__init__()
        self.masks = masks
        self.needs = needs
        self.own = nn.Parameter(torch.zeros(1))
        self.asked: list[Prompts] = []

    @property
    def image_size(self) -> int:
        return 64

    @property
    def model(self) -> nn.Module:
        return self

    def encoder_tensors(self) -> dict[str, Tensor]:
        return {}

    def _encode(self, images: Tensor) -> Embedding:
        return Embedding(images, 64)

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        assert prompts.points is not None
        self.asked.append(prompts)
        count = prompts.points.shape[2]
        given = self.masks[: len(embedding)].clone()
        for k, needs in enumerate(self.needs):
            if count < needs:
                given[:, k] = False
        logits = torch.where(given, 9.0, -9.0)[:, :, None]
        return Masks(logits, torch.zeros(logits.shape[:3]), 64)


@pytest.fixture
def echo(phantom: Path) -> SegmentationDataset:
    return SegmentationDataset(open_collection(phantom).records[:4], 64)


def reference(dataset: SegmentationDataset) -> Tensor:
    return torch.stack([dataset[i]["masks"].bool() for i in range(len(dataset))])


def test_clicks_are_counted_until_the_mask_is_good_enough(echo: SegmentationDataset):
    model = Improves(reference(echo), needs=(1, 4, MOST + 5))
    found = clicks_needed(model, echo, seed=0, batch_size=4)
    assert found.needed.tolist() == [[1, 4, MOST + 1]] * 4
    assert len(model.asked) == MOST
    labels = model.asked[-1].labels
    assert labels is not None
    # Where nothing was found, all clicks are inside.
    assert labels[:, 2].all()
    summary = found.summary()
    assert [each["clicks"] for each in summary.values()] == [1, 4, MOST, pytest.approx(25 / 3)]
    assert [each["reached"] for each in summary.values()] == [1, 1, 0, pytest.approx(2 / 3)]
    assert "| myocardium | 4.0 | 100 % |" in clicks_table(summary)
    assert "| mean | 8.3 | 67 % |" in clicks_table(summary)


def test_it_stops_where_all_is_good_enough(echo: SegmentationDataset):
    model = Improves(reference(echo), needs=(2, 3, 2))
    assert clicks_needed(model, echo, seed=0, batch_size=4).needed.tolist() == [[2, 3, 2]] * 4
    assert len(model.asked) == 3

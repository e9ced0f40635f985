"""The benchmark of promptable segmentation, on planted answers and as a user runs it."""

import numpy as np
import pytest
import torch

import adapterkit as ak
from adapterkit.promptable.protocol import Masks
from adapterkit.promptable.stock_sam import save_sam
from benchmarks import held_out_scenes, promptability
from tests.models import ECHO


def test_the_middle_is_farthest_from_the_border():
    region = np.zeros((9, 12), bool)
    region[2:9, 3:10] = True
    assert held_out_scenes.middle(region).tolist() == [6, 5]
    assert held_out_scenes.middle(np.zeros((4, 4), bool)).tolist() == [0, 0]


class Planted(ak.Segmenter):
    """Answers a point or box with the target, in the third of its masks or in the first."""

    def __init__(self, sam, target):
        super().__init__(sam)
        self.target = torch.nn.functional.interpolate(
            torch.from_numpy(target)[None, None].float(), (64, 64)
        )
        self.prompts = []

    def _decode(self, embedding, prompts):
        self.prompts.append(prompts)
        right = 20 * self.target[0] - 10
        wrong = torch.full_like(right, -10)
        clear = right if prompts.points is None or prompts.points.shape[2] > 1 else wrong
        logits = torch.stack([clear, wrong, wrong, right], dim=1)[None]
        return Masks(logits, torch.tensor([[[0.5, 0.1, 0.2, 0.9]]]), self.image_size)


def test_planted_answers_are_scored():
    sam = ak.build_sam(ECHO, seed=0)
    side = held_out_scenes.SCENE_SIZE
    target = np.zeros((side, side), bool)
    target[side // 4 : side // 2, side // 8 : side // 2] = True
    segmenter = Planted(sam, target)
    image = np.zeros((side, side, 3), np.uint8)
    answers = held_out_scenes.ask(segmenter, image, target[None])
    for name in ("click", "oracle", "box", "five_clicks"):
        assert getattr(answers, name).item() > 0.95, name
    assert answers.true[0].tolist() == pytest.approx([0, 0, 1], abs=0.05)
    assert answers.predicted[0].tolist() == pytest.approx([0.1, 0.2, 0.9])

    # The prompts are in pixels of the model's input.
    scale = ECHO.image_size / side
    first = segmenter.prompts[0]
    x, y = (first.points[0, 0, 0] / scale).tolist()
    assert target[int(y), int(x)]
    assert first.labels.tolist() == [[[1]]]
    assert segmenter.prompts[-1].boxes.flatten().tolist() == [
        scale * side * each for each in (1 / 8, 1 / 4, 1 / 2, 1 / 2)
    ]


def test_it_prints_a_table_and_draws_a_picture(tmp_path, capsys):
    save_sam(ak.build_sam(ECHO, seed=0), tmp_path / "sam.safetensors")
    promptability.main(
        promptability.Config(
            weights=tmp_path / "sam.safetensors", scenes=2, masks=2, figure=tmp_path / "a.png"
        )
    )
    printed = capsys.readouterr().out
    assert "2 held-out scenes, 4 masks" in printed
    assert "| five clicks | 0." in printed
    assert "correlation" in printed
    assert (tmp_path / "a.png").stat().st_size > 10_000

"""The benchmark of promptable segmentation, on planted answers and as a user runs it."""

import numpy as np
import pytest
import torch

import adapterkit as ak
from adapterkit.data.synthetic.canvas import Scene
from adapterkit.promptable.protocol import Masks
from adapterkit.promptable.stock_sam import save_sam
from benchmarks import held_out_scenes, promptability
from tests.models import ECHO


def test_the_middle_is_farthest_from_the_border():
    region = np.zeros((9, 12), bool)
    region[2:9, 3:10] = True
    assert held_out_scenes.middle(region).tolist() == [6, 5]
    assert held_out_scenes.middle(np.zeros((4, 4), bool)).tolist() == [0, 0]


def test_a_disc_is_the_least_ragged():
    y, x = np.mgrid[-50:50, -50:50]
    disc, cross = x**2 + y**2 < 40**2, (abs(x) < 5) | (abs(y) < 5)
    of_disc, of_cross, of_none = held_out_scenes.raggedness(np.stack([disc, cross, x > 100]))
    assert of_disc == pytest.approx(1, abs=0.03)
    assert of_cross > 3
    assert np.isnan(of_none)


def test_everything_is_found_by_a_generator_that_knows_it(monkeypatch):
    masks = np.zeros((3, 512, 512), bool)
    masks[0, :100, :100] = masks[1, 200:, 200:] = masks[2, :4, :4] = True
    known = [{"segmentation": masks[0]}, {"segmentation": np.roll(masks[1], 150, axis=0)}]

    class Generator:
        def __init__(self, sam):
            pass

        def generate(self, image):
            return known

    monkeypatch.setattr(held_out_scenes, "SamAutomaticMaskGenerator", Generator)
    scene = Scene(np.zeros((512, 512, 3), np.uint8), masks)
    answer = held_out_scenes.find_everything(ak.build_sam(ECHO, seed=0), scene)
    assert answer.masks == 2
    assert answer.found.tolist() == [True, False]  # the third is smaller than 1 %


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
            weights=tmp_path / "sam.safetensors",
            scenes=2,
            masks=2,
            everything=1,
            figure=tmp_path / "a.png",
        )
    )
    printed = capsys.readouterr().out
    assert "2 held-out scenes, 4 masks" in printed
    assert "| five clicks | 0." in printed
    assert "correlation" in printed
    assert "times as ragged" in printed
    assert "of 1 scenes" in printed
    assert (tmp_path / "a.png").stat().st_size > 10_000

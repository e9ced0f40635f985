"""Detail that looks over time: to which frames, with which weights, and from files."""

from pathlib import Path

import pytest
import torch

import adapterkit as ak
from adapterkit.kernels.fast_forward import fast
from adapterkit.parts import Detail, Resize
from adapterkit.parts.detail import OverTime
from adapterkit.promptable.prompts import Prompts
from tests.models import ECHO

SIZE = 64


def test_a_sum_over_time_is_what_its_formula_says():
    layer, maps = OverTime(2, reach=1), torch.rand(6, 2, 4, 4)
    with torch.no_grad():
        layer.weights.copy_(torch.tensor([[0.1, 0.3], [0.5, 0.4], [0.4, -0.3]]))
    found = layer(maps, frames=3)
    for first in (0, 3):
        for frame in range(3):
            before, after = max(frame - 1, 0), min(frame + 1, 2)
            around = maps[[first + before, first + frame, first + after]]
            expected = (around * layer.weights[:, :, None, None]).sum(dim=0)
            torch.testing.assert_close(found[first + frame], expected)


def test_at_first_what_stands_still_stays():
    maps = torch.rand(1, 3, 4, 4).expand(5, -1, -1, -1)
    torch.testing.assert_close(OverTime(3, reach=2)(maps, frames=5), maps)


def with_detail(reach: int) -> ak.Segmenter:
    torch.manual_seed(0)
    sam = ak.inject(ak.build_sam(ECHO, seed=0), [Resize(SIZE), Detail(2, 4, reach=reach)])
    found = ak.Segmenter(sam).eval()
    with torch.no_grad():
        for name, each in found.named_parameters():
            if "detail" in name:
                each.add_(torch.randn(each.shape), alpha=0.1)
    return found


def segmented(segmenter: ak.Segmenter, images: torch.Tensor, frames: int) -> torch.Tensor:
    click = Prompts(torch.full((len(images), 1, 1, 2), 30.0), torch.ones(len(images), 1, 1).long())
    with torch.no_grad():
        return segmenter.decode(segmenter.encode(images, frames), click).low_res_logits


def test_a_frame_depends_on_those_within_reach_and_on_no_other():
    segmenter = with_detail(reach=1)
    assert segmenter.reach == 5
    assert with_detail(reach=0).reach == 0
    images = 255 * torch.rand(14, 3, SIZE, SIZE)
    found = segmented(segmenter, images, 7)
    changed = images.clone()
    changed[0] = 255 - changed[0]
    other = segmented(segmenter, changed, 7)
    differs = [(one != two).any().item() for one, two in zip(found, other, strict=True)]
    assert differs == [True] * 6 + [False] * 8
    torch.testing.assert_close(
        segmented(segmenter, images[:2], 1)[1:], segmented(segmenter, images[1:2], 1)
    )


def test_a_file_has_it_and_a_fast_model_computes_the_same(tmp_path: Path):
    segmenter, images = with_detail(reach=1), 255 * torch.rand(4, 3, SIZE, SIZE)
    expected = segmented(segmenter, images, 4)
    ak.save_adapter(segmenter.model, tmp_path / "a.safetensors")
    loaded = ak.load_adapter(fast(ak.build_sam(ECHO, seed=0)), tmp_path / "a.safetensors")
    found = segmented(ak.Segmenter(loaded).eval(), images, 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_reach_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="expected a reach of 0 to 16 frames"):
        Detail(reach=-1)

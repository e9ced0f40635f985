"""A window of a Sam's image, as a Sam of its own."""

from dataclasses import replace
from operator import attrgetter

import pytest
import torch

from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.segmenter import Segmenter
from adapterkit.promptable.stock_sam import MINI, build_sam
from recipes.minisam_windows import Window

SIZES = replace(MINI, width=32, num_heads=1, depth=2, global_blocks=(1,), window_size=4)


@pytest.fixture
def sam():
    return build_sam(replace(SIZES, image_size=128, prompt_width=32, decoder_mlp_width=32), seed=0)


def test_a_window_as_large_as_the_image_is_the_model(sam):
    image = 255 * torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    prompts = Prompts(
        points=torch.tensor([[[[30.0, 100.0]]]]),
        labels=torch.ones(1, 1, 1, dtype=torch.long),
        boxes=torch.tensor([[[20.0, 30.0, 90.0, 120.0]]]),
    )
    with torch.no_grad():
        whole = Segmenter(sam)
        window = Segmenter(Window(sam, 128).at(0, 0))
        expected = whole.decode(whole.encode(image), prompts)
        found = window.decode(window.encode(image), prompts)
    assert torch.equal(found.all_logits, expected.all_logits)


def test_positions_are_those_of_the_image(sam):
    window = Window(sam, 64)
    assert window.places == 5
    part, whole = window.at(1, 3), sam.image_encoder
    assert torch.equal(
        part.prompt_encoder.get_dense_pe(), sam.prompt_encoder.get_dense_pe()[..., 1:5, 3:7]
    )
    positions, table = "pos_embed", "blocks.1.attn.rel_pos_h"
    expected = whole.get_parameter(positions)[:, 1:5, 3:7]
    assert torch.equal(attrgetter(positions)(part.image_encoder), expected)
    expected = whole.get_parameter(table)[4:11]
    assert torch.equal(attrgetter(table)(part.image_encoder), expected)
    label = torch.ones(1, 1, dtype=torch.long)
    here, _ = part.prompt_encoder((torch.tensor([[[5.0, 7.0]]]), label), None, None)
    there, _ = sam.prompt_encoder((torch.tensor([[[53.0, 23.0]]]), label), None, None)
    assert torch.equal(here[:, 0], there[:, 0])


def test_what_a_window_learns_the_model_learns(sam):
    segmenter = Segmenter(Window(sam, 64).at(0, 2))
    embedding = segmenter.encode(255 * torch.rand(2, 3, 64, 64))
    masks = torch.randn(2, 1, 16, 16)
    boxes = torch.tensor([[[2.0, 3.0, 40.0, 50.0]]]).expand(2, 1, 4)
    answer = segmenter.decode(embedding, Prompts(boxes=boxes, masks=masks))
    (answer.all_logits.sum() + answer.all_iou.sum()).backward()
    untouched = {name for name, each in sam.named_parameters() if each.grad is None}
    assert untouched == {
        f"prompt_encoder.{name}.weight"
        for name in (
            "point_embeddings.0",
            "point_embeddings.1",
            "not_a_point_embed",
            "no_mask_embed",
        )
    }
    gradient = sam.image_encoder.pos_embed.grad[0].abs().sum(-1)
    assert (gradient[:4, 2:6] > 0).all()
    assert gradient.count_nonzero() == 16

"""The batched segmenter computes what the stock Sam computes, one image and prompt at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.promptable.protocol import Embedding
from tests.models import TINY


@pytest.fixture
def adapted(sam: Sam) -> Sam:
    return ak.inject_samus(sam)


@pytest.fixture
def pixels(image: Tensor) -> Tensor:
    return 255 * image


def random_prompts(batch: int, prompts: int, points: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coordinates = 256 * torch.rand(batch, prompts, points, 2, generator=generator)
    return coordinates, torch.randint(0, 2, (batch, prompts, points), generator=generator)


def test_it_agrees_with_the_stock_forward(adapted: Sam, pixels: Tensor):
    points, labels = random_prompts(2, 3, 2, seed=0)
    predicted = ak.Segmenter(adapted)(pixels, ak.Prompts(points, labels))
    stock = adapted(
        [
            {
                "image": image,
                "original_size": (256, 256),
                "point_coords": image_points,
                "point_labels": image_labels,
            }
            for image, image_points, image_labels in zip(pixels, points, labels, strict=True)
        ],
        multimask_output=False,
    )
    for b, expected in enumerate(stock):
        torch.testing.assert_close(
            predicted.low_res_logits[b], expected["low_res_logits"][:, 0], rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            predicted.predicted_iou[b], expected["iou_predictions"][:, 0], rtol=1e-4, atol=1e-5
        )
        assert torch.equal(predicted.logits()[b] > 0, expected["masks"][:, 0])


def test_all_masks_are_those_of_the_stock_decoder(sam: Sam):
    segmenter = ak.Segmenter(sam)
    size = segmenter.image_size
    points, labels = random_prompts(2, 3, 1, seed=1)
    boxes = torch.tensor([[20.0, 30, 90, 120]]).expand(2, 3, 4)
    with torch.no_grad():
        embedding = segmenter.encode(255 * torch.rand(2, 3, size, size))
        found = segmenter.decode(embedding, ak.Prompts(points, labels, boxes))
        for b in range(2):
            sparse, dense = sam.prompt_encoder((points[b], labels[b]), boxes[b], None)
            expected_logits, expected_iou = sam.mask_decoder.predict_masks(
                embedding.image[b : b + 1], sam.prompt_encoder.get_dense_pe(), sparse, dense
            )
            torch.testing.assert_close(found.all_logits[b], expected_logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.all_iou[b], expected_iou, rtol=1e-4, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 3), prompts=st.integers(1, 3), points=st.integers(1, 3), kind=st.data())
def test_outputs_and_gradients_are_those_of_one_prompt_at_a_time(batch, prompts, points, kind):
    sam = ak.build_sam(TINY, seed=0)
    segmenter = ak.Segmenter(sam)
    ak.inject(sam, [ak.parts.Resize(256), ak.parts.Train("mask_decoder")])
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(batch, 32, 16, 16, generator=generator, requires_grad=True)
    coordinates, labels = random_prompts(batch, prompts, points, seed=1)
    boxes = 256 * torch.rand(batch, prompts, 4) if kind.draw(st.booleans()) else None
    masks = torch.randn(batch, prompts, 64, 64) if kind.draw(st.booleans()) else None
    asked = ak.Prompts(coordinates, labels, boxes, masks)

    def one(b: int, k: int) -> Tensor:
        one = asked.map(lambda each: each[b : b + 1, k : k + 1])
        return segmenter.decode(Embedding(embedding[b : b + 1], 256), one).low_res_logits

    single = torch.cat([torch.cat([one(b, k) for k in range(prompts)], 1) for b in range(batch)])
    together = segmenter.decode(Embedding(embedding, 256), asked).low_res_logits
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-5)
    inputs = [embedding, *(each for each in sam.parameters() if each.requires_grad)]
    weight = torch.randn(together.shape)
    gradients = [
        torch.autograd.grad((each * weight).sum(), inputs, allow_unused=True)
        for each in (together, single)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_the_encoder_runs_once_per_image(adapted: Sam, pixels: Tensor):
    calls = []
    adapted.image_encoder.neck.register_forward_hook(lambda m, a, output: calls.append(len(output)))
    points, labels = random_prompts(2, 3, 1, seed=0)
    ak.Segmenter(adapted)(pixels, ak.Prompts(points, labels))
    assert calls == [2]


def test_normalisation_is_the_adapter_s(sam: Sam, pixels: Tensor):
    seen = []
    sam.image_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    ak.Segmenter(ak.inject_samus(sam)).encode(pixels)
    torch.testing.assert_close(seen[0], pixels / 255)


def test_logits_resize_to_any_size(adapted: Sam, pixels: Tensor):
    predicted = ak.Segmenter(adapted)(pixels, ak.Prompts(*random_prompts(2, 3, 1, seed=0)))
    assert predicted.low_res_logits.shape == (2, 3, 128, 128)
    assert predicted.logits().shape == (2, 3, 256, 256)
    assert predicted.logits((60, 90)).shape == (2, 3, 60, 90)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_explained(adapted: Sam, pixels: Tensor):
    segmenter = ak.Segmenter(adapted)
    points, labels = random_prompts(2, 1, 1, seed=0)
    with pytest.raises(ValueError, match="100x100 pixels, and this model takes 256x256"):
        segmenter(pixels[:, :, :100, :100], ak.Prompts(points, labels))
    with pytest.raises(ValueError, match="no prompt"):
        segmenter(pixels)
    with pytest.raises(ValueError, match="belong together"):
        segmenter(pixels, ak.Prompts(points))
    with pytest.raises(ValueError, match="1 images but prompts for 2"):
        segmenter.decode(segmenter.encode(pixels[:1]), ak.Prompts(points, labels))

"""The batched segmenter computes what the stock Sam computes, one image and prompt at a time."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling import Sam
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.promptable.protocol import Embedding
from adapterkit.promptable.segmenter import as_promptable
from tests.models import ECHO, TINY, random_prompts


@pytest.fixture
def adapted(sam: Sam) -> Sam:
    return ak.inject_samus(sam)


@pytest.fixture
def pixels(image: Tensor) -> Tensor:
    return 255 * image


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
    corners = 256 * torch.rand(batch, prompts, 2, 2).sort(dim=-2).values
    boxes = corners.flatten(-2) if kind.draw(st.booleans()) else None
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


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 256, 256)), "images is a ndarray: expected a tensor, \\(B, 3, H, W\\)"),
        (
            torch.zeros(3, 256, 256),
            r"the shape \(3, 256, 256\): expected \(B, 3, H, W\)",
        ),
        (torch.zeros(2, 1, 256, 256), "of a grey image, the same three times"),
        (torch.zeros(2, 3, 256, 256, dtype=torch.bool), "images is torch.bool: expected numbers"),
        (torch.full((2, 3, 256, 256), torch.nan), "images has values that are NaN"),
        (
            torch.full((2, 3, 256, 256), 300.0),
            "from 300 to 300: expected 0 to 255, before",
        ),
        (torch.full((2, 3, 256, 256), -2.0), "from -2 to -2: expected 0 to 255"),
        (torch.full((2, 3, 256, 256), 0.7), r"as if in \[0, 1\]: .*multiply them by 255"),
    ],
)
def test_images_are_checked_at_the_door(adapted: Sam, images: Any, message: str):
    with pytest.raises(ValueError, match=message):
        ak.Segmenter(adapted).encode(images)


@pytest.mark.parametrize("value", [0.0, 1.5, 255.0])
def test_dark_and_bright_images_are_images(adapted: Sam, value: float):
    with torch.no_grad():
        embedding = ak.Segmenter(adapted).encode(torch.full((1, 3, 256, 256), value))
    assert embedding.image.isfinite().all()


ONE = {"points": torch.full((1, 2, 1, 2), 30.0), "labels": torch.ones(1, 2, 1, dtype=torch.long)}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": [[[[3, 4]]]], "labels": ONE["labels"]}, "points is a list: expected a tensor"),
        (
            ONE | {"points": torch.ones(1, 2, 2)},
            r"the shape \(1, 2, 2\): expected \(B, K",
        ),
        (ONE | {"points": ONE["points"].long()}, "points is torch.int64: expected floating-point"),
        (ONE | {"labels": torch.ones(1, 2, 2, dtype=torch.long)}, "expected one for each point"),
        (
            ONE | {"labels": 7 * ONE["labels"]},
            "labels has the value 7: expected 1 inside",
        ),
        (ONE | {"labels": -2 * ONE["labels"]}, "labels has the value -2"),
        (ONE | {"points": torch.nan * ONE["points"]}, "points has values that are NaN or infinite"),
        ({"points": ONE["points"]}, "points and labels belong together"),
        (ONE | {"boxes": torch.ones(1, 3, 4)}, r"\(B, K\) differ among the prompts"),
        ({"classes": torch.tensor([[0, -2]])}, "classes has the value -2: expected from 0, or -1"),
        ({"classes": torch.tensor([[0.0]])}, "classes is torch.float32: expected integers"),
    ],
)
def test_prompts_are_checked_at_the_door(prompts: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ak.Prompts(**prompts)


def test_prompts_outside_of_the_images_are_refused(adapted: Sam, pixels: Tensor):
    segmenter = ak.Segmenter(adapted)
    with torch.no_grad():
        embedding = segmenter.encode(pixels[:1])
        outside = ONE | {"points": torch.full((1, 2, 1, 2), 256.0)}
        with pytest.raises(ValueError, match=r"points has \(256, 256\), .*from 0 to 255"):
            segmenter.decode(embedding, ak.Prompts(**outside))
        nowhere = outside | {"labels": -ONE["labels"]}
        assert segmenter.decode(embedding, ak.Prompts(**nowhere)).all_iou.isfinite().all()
        for box in ([0, 0, 257, 9], [9, 9, 9, 20], [20, 0, 10, 9]):
            boxes = torch.tensor([[box]], dtype=torch.float32)
            with pytest.raises(ValueError, match=r"boxes has .*expected \(x0, y0, x1, y1\) with"):
                segmenter.decode(embedding, ak.Prompts(boxes=boxes))


def test_prompts_scale_with_the_image():
    whole = ak.Prompts(**ONE, boxes=torch.tensor([[[0.0, 0, 64, 64], [8, 8, 16, 16]]]))
    half = whole.scaled(0.5)
    assert half.points is not None
    assert half.boxes is not None
    # The first pixel of two lies half of itself before their middle.
    assert half.points.unique().tolist() == [14.75]
    assert half.boxes[0, 0].tolist() == [0, 0, 32, 32]
    assert half.labels is whole.labels
    assert whole.shape == half.shape == (1, 2)
    assert ak.Prompts().shape is None


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "no model"])
def test_what_cannot_be_prompted_is_refused_at_once(model: Any):
    with pytest.raises(TypeError, match="cannot be prompted; expected a segment_anything Sam"):
        as_promptable(model)
    with pytest.raises(TypeError, match="expected a segment_anything Sam"):
        ak.Segmenter(model)


def test_a_wrapped_sam_is_promptable(sam: Sam):
    compiled = cast(nn.Module, torch.compile(sam, backend="eager"))
    found = as_promptable(compiled)
    assert found.model is sam
    assert ak.Segmenter(compiled).sam is sam
    assert as_promptable(found) is found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-3), (torch.bfloat16, 0.1)])
def test_it_computes_in_the_dtype_of_the_weights(dtype: torch.dtype, tolerance: float):
    images = 255 * torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[0.0, 0, 64, 64], [8, 8, 160, 160]]])
    prompts = ak.Prompts(**ONE, boxes=boxes, masks=torch.zeros(1, 2, 64, 64))
    sam = ak.build_sam(ECHO, seed=0)
    with torch.no_grad():
        expected = ak.Segmenter(sam)(images, prompts).low_res_logits
        found = ak.Segmenter(sam.to(dtype))(images, prompts).low_res_logits
    assert found.dtype == dtype
    difference = (found.float() - expected).abs().max()
    assert difference < tolerance * expected.abs().max()
    assert sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.dtype == dtype

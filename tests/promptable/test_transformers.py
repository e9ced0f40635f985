"""A Segment Anything model of transformers answers prompts as its own forward does."""

from typing import Any

import pytest
import torch
from torch import Tensor

import adapterkit as ak
from adapterkit.promptable.segmenter import as_promptable
from tests.models import random_prompts
from tests.transformers_models import MODELS, sam3_tracker_model, transformers

SIDE = 64


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


@pytest.fixture
def images() -> Tensor:
    return 255 * torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def asked(kinds: str, count: int = 3, seed: int = 0) -> ak.Prompts:
    """`count` prompts of each of two images, of these kinds."""
    generator = torch.Generator().manual_seed(seed)
    given: dict[str, Tensor] = {}
    if "points" in kinds:
        given["points"], given["labels"] = random_prompts(2, count, 2, seed, side=SIDE)
        given["labels"][0, 0, 1] = -1
    if "boxes" in kinds:
        corners = SIDE * torch.rand(2, count, 2, 2, generator=generator)
        given["boxes"] = corners.sort(dim=-2).values.flatten(-2)
    if "masks" in kinds:
        given["masks"] = torch.randn(2, count, 16, 16, generator=generator)
    return ak.Prompts(**given)


def own_forward(model: Any, images: Tensor, prompts: ak.Prompts, multimask: bool) -> Any:
    """What the library gives for one prompt of each image; it takes one mask for an image."""
    mean, std = ak.Segmenter(model).normalisation
    given = prompts.given
    return model(
        (images - mean) / std,
        input_points=given.get("points"),
        input_labels=given.get("labels"),
        input_boxes=given.get("boxes"),
        input_masks=given.get("masks"),
        multimask_output=multimask,
    )


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kinds", ["points", "boxes", "masks", "points, boxes", "points, masks"])
def test_masks_are_those_of_the_library_one_prompt_at_a_time(
    model: Any, images: Tensor, kinds: str
):
    prompts = asked(kinds)
    with torch.no_grad():
        found = ak.Segmenter(model)(images, prompts)
        assert found.all_logits.shape == (2, 3, 4, 16, 16)
        for k in range(3):
            one = prompts.map(lambda each, k=k: each[:, k : k + 1])
            for multimask, which in ((False, slice(0, 1)), (True, slice(1, None))):
                expected = own_forward(model, images, one, multimask)
                close(found.all_logits[:, k, which], expected.pred_masks[:, 0])
                close(found.all_iou[:, k, which], expected.iou_scores[:, 0])


def test_several_prompts_are_those_of_the_library_at_once(model: Any, images: Tensor):
    prompts = asked("points, boxes")
    with torch.no_grad():
        found = ak.Segmenter(model)(images, prompts)
        expected = own_forward(model, images, prompts, multimask=False)
    close(found.all_logits[:, :, :1], expected.pred_masks)
    close(found.all_iou[:, :, :1], expected.iou_scores)


@pytest.mark.parametrize("kinds", ["points", "masks"])
def test_a_neck_may_have_a_map_that_no_mask_is_made_of(images: Tensor, kinds: str):
    model = sam3_tracker_model(scale_factors=[4.0, 2.0, 1.0, 0.5])
    prompts = asked(kinds, count=1)
    with torch.no_grad():
        found = ak.Segmenter(model)(images, prompts).all_logits
        expected = own_forward(model, images, prompts, multimask=True)
    close(found[:, :, 1:], expected.pred_masks)


def test_gradients_are_those_of_the_library(model: Any, images: Tensor):
    prompts = asked("points, boxes", count=2)
    model.train()
    found = ak.Segmenter(model)(images, prompts).all_logits[:, :, :1]
    expected = own_forward(model, images, prompts, multimask=False).pred_masks
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    parameters = dict(model.named_parameters())
    ours, theirs = (
        torch.autograd.grad((each * weights).sum(), list(parameters.values()), allow_unused=True)
        for each in (found, expected)
    )
    assert sum(each is not None for each in theirs) > 50
    for name, mine, own in zip(parameters, ours, theirs, strict=True):
        if own is not None and own.any():
            assert mine is not None, name
            torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-4, msg=name)


def test_the_encoder_is_that_of_the_view(model: Any, sam: Any):
    for each in (model, sam):
        assert ak.Segmenter(each).family.encoder is ak.view(each).encoder


def test_an_image_is_encoded_once_and_decoded_often(model: Any, images: Tensor):
    calls: list[int] = []
    model.vision_encoder.register_forward_hook(lambda module, args, output: calls.append(1))
    segmenter = ak.Segmenter(model)
    with torch.no_grad():
        embedding = segmenter.encode(images)
        both = segmenter.decode(embedding, asked("points")).all_logits
        alone = segmenter.decode(
            embedding.select(slice(1, 2)), asked("points").map(lambda x: x[1:])
        )
    assert len(calls) == 1
    close(both[1:], alone.all_logits)


def published(model: Any) -> tuple[Tensor, Tensor]:
    """By what the library's processor of published checkpoints normalises, in [0, 255]."""
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    if isinstance(model, transformers.Sam3TrackerModel):
        mean, std = [0.5] * 3, [0.5] * 3
    return 255 * torch.tensor(mean).view(3, 1, 1), 255 * torch.tensor(std).view(3, 1, 1)


def test_images_are_normalised_as_the_adapter_says(model: Any, images: Tensor):
    seen: list[Tensor] = []
    model.vision_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    mean, std = published(model)
    with torch.no_grad():
        ak.Segmenter(model).encode(images)
        adapter = ak.parts.FeatureAdapter(at="block_out")
        ak.inject(model, [ak.parts.Normalise(std=(255, 128, 64)), adapter])
        seen.clear()
        ak.Segmenter(model).encode(images)
        close(seen[0], images / torch.tensor([255.0, 128, 64]).view(3, 1, 1))
        with ak.disabled(model):
            ak.Segmenter(model).encode(images)
    close(seen[1], (images - mean) / std)


@pytest.mark.parametrize("name", MODELS)
def test_a_base_pads_where_its_own_processor_does(name: str):
    found = as_promptable(MODELS[name]())
    assert (found.padding is not None) == (name in {"SamModel", "SamHQModel"})
    ak.inject(found.model, [ak.parts.FeatureAdapter(at="block_out")])
    assert found.padding is None

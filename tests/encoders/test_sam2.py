"""Every part works on SAM 2's hierarchical encoder, or is refused there with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

import adapterkit as ak
from adapterkit.parts import (
    ClassPrompts,
    CNNBranch,
    Detail,
    FeatureAdapter,
    LoRA,
    Normalise,
    PadBeforeNorm,
    PositionAdapter,
    ResidualSelfAttention,
    Resize,
    Train,
)
from tests.models import snapshot
from tests.transformers_models import HIERA, sam2_model

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def outputs(model: Any, images: Tensor) -> Tensor:
    """Whatever of it, that depends on all of the encoder."""
    encoder = model.vision_encoder if hasattr(model, "vision_encoder") else model
    found = encoder(images)
    maps = found.get("fpn_hidden_states") or [found.last_hidden_state]
    return torch.cat([each.flatten() for each in maps])


def test_the_view_has_its_stages():
    view = ak.view(sam2_model())
    assert [stage.width for stage in view.stages] == [16, 24, 32, 48]
    assert [stage.grid[0] for stage in view.stages] == [16, 8, 4, 2]
    assert [len(stage.blocks) for stage in view.stages] == HIERA["blocks_per_stage"]
    assert [block.index for block in view.select("global")] == HIERA["global_attention_blocks"]
    assert [block.index for block in view.select("windowed")] == [0, 1, 2, 3, 6, 7]
    assert [block.index for block in view.select("last_of_stage")] == [0, 2, 5, 7]
    assert (view.image_size, view.patch_size, view.grid) == (64, 4, (16, 16))
    assert view.decoder is not None
    assert view.decoder.grid == (4, 4)


def test_sites_are_what_the_modules_give():
    model = sam2_model()
    view = ak.view(model)
    seen: dict[tuple[int, str], torch.Size] = {}

    def keep(key: tuple[int, str]) -> Callable[..., None]:
        return lambda module, args, output: seen.update({key: output.shape})

    for block in view.blocks:
        for name in ("attn_in", "mlp", "block_out"):
            block.sites[name].modules[0].register_forward_hook(keep((block.index, name)))
    model.vision_encoder(IMAGES)
    for (index, name), shape in seen.items():
        site = view.blocks[index].sites[name]
        assert shape == (2, *site.grid, site.width), (index, name)
    assert len(seen) == 3 * len(view.blocks)
    assert view.blocks[3].sites["attn_in"].width == 24
    assert view.blocks[3].sites["attn_out"].width == 32


PARTS: dict[str, tuple[list[Any], bool]] = {
    **{
        f"FeatureAdapter at {at}": ([FeatureAdapter(at=at, reduction=2)], True)
        for at in ("tokens", "attn_in", "attn_out", "mlp", "block_out", "output")
    },
    "FeatureAdapter, last of stages": ([FeatureAdapter(blocks="last_of_stage")], True),
    "LoRA": ([LoRA(2, targets=("q", "k", "v"))], True),
    "CNNBranch": ([CNNBranch("global", 4, output_scale=0, zero_init=True)], True),
    "Train image_encoder": ([Train("image_encoder")], True),
    "Train neck": ([Train("neck")], True),
    "peft's LoRA": ([peft.LoraConfig(r=2, target_modules=["qkv", "proj"])], True),
    "Resize": ([Resize(32), FeatureAdapter()], False),
    "PadBeforeNorm": ([PadBeforeNorm(), FeatureAdapter()], False),
}
"""By name, and whether they start as the identity."""


@pytest.mark.parametrize("kind", ["Sam2Model", "Sam2VisionModel", "Sam2HieraDetModel"])
@pytest.mark.parametrize(("parts", "is_identity"), PARTS.values(), ids=PARTS)
def test_parts_start_train_and_eject(parts: list[Any], is_identity: bool, kind: str):
    whole = sam2_model()
    models = {"Sam2VisionModel": whole.vision_encoder, "Sam2HieraDetModel": whole.vision_encoder}
    model = models.get(kind, whole)
    model = model.backbone if kind == "Sam2HieraDetModel" else model
    if parts == [Train("neck")] and kind == "Sam2HieraDetModel":
        with pytest.raises(ValueError, match="expected 'rel_pos' or a component of this model"):
            ak.inject(model, parts)
        return
    before, base = snapshot(model), outputs(model, IMAGES)
    ak.inject(model, parts)
    found = ak.adapters_of(model)
    assert found is not None
    size = found["default"].image_size
    images = IMAGES[:, :, :size, :size]
    start = outputs(model, images)
    if is_identity:
        torch.testing.assert_close(start, base, rtol=1e-5, atol=1e-6)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2)
    outputs(model, images).square().mean().backward()
    assert trained
    assert all(each.grad is not None for each in trained.values())
    optimizer.step()
    assert not torch.equal(outputs(model, images), start)
    assert snapshot(ak.eject(model)) == before
    assert torch.equal(outputs(model, IMAGES), base)


def test_parts_in_the_decoder_change_masks_alone():
    model = sam2_model()
    segmenter = ak.Segmenter(model)
    before = snapshot(model)
    points, labels = torch.full((2, 1, 1, 2), 20.0), torch.ones(2, 1, 1, dtype=torch.int64)
    asked = ak.Prompts(points, labels)
    # A click beside says nothing of whether the structure is there.
    named = ak.Prompts(points, torch.zeros_like(labels), classes=torch.tensor([[1], [-1]]))
    with torch.no_grad():
        base = segmenter(255 * IMAGES, asked).logits()
        ak.inject(model, [ClassPrompts(("a", "b")), Detail(width=2, channels=3, classes=2)])
        # The base's, at the image's size.
        torch.testing.assert_close(
            segmenter(255 * IMAGES, asked).logits(), base, rtol=1e-4, atol=1e-4
        )
        found = segmenter(255 * IMAGES, named)
    assert found.presence is not None
    assert found.low_res_logits.shape == (2, 1, 64, 64)
    assert found.presence.flatten().tolist() == [0, 20]
    assert not torch.equal(found.low_res_logits, base)
    assert segmenter(255 * IMAGES).low_res_logits.shape == (2, 2, 64, 64)
    assert snapshot(ak.eject(model)) == before


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([PositionAdapter()], "no position embedding for its grid alone; leave it out"),
        ([Train("rel_pos")], "no relative-position tables"),
        ([ResidualSelfAttention()], "no mask decoder of segment_anything's"),
        ([Resize(40)], "takes multiples of 32 pixels.*; the nearest is 32"),
        ([Resize(64, patch_stride=2)], "patches of 4 pixels .*overlap already; leave it out"),
    ],
)
def test_what_it_has_no_place_for_is_refused(parts: list[Any], message: str):
    model = sam2_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        ak.inject(model, parts)
    assert snapshot(model) == before


def test_another_size_is_that_of_a_model_made_for_it():
    model = sam2_model()
    ak.inject(model, [Normalise(), Resize(32)])
    asked = {"input_points": torch.full((2, 1, 1, 2), 9.0), "multimask_output": False}
    small = IMAGES[:, :, :32, :32]
    found = model(pixel_values=small, **asked)
    assert found.pred_masks.shape[-2:] == (8, 8)
    segmented = ak.Segmenter(model)(
        255 * small, ak.Prompts(asked["input_points"], torch.ones(2, 1, 1, dtype=torch.int64))
    )
    torch.testing.assert_close(segmented.low_res_logits, found.pred_masks[:, :, 0])


def test_images_that_are_not_square_are_refused():
    model = sam2_model()
    model.vision_encoder.backbone.config.image_size = [64, 32]
    with pytest.raises(ValueError, match="images of 64x32 pixels; adapterkit takes square ones"):
        ak.view(model)


@pytest.mark.parametrize("method", ["samed", "msa", "medsam", "samus", "samus_plus"])
def test_methods_are_saved_and_loaded(tmp_path: Path, method: str):
    options: dict[str, Any] = {} if method == "medsam" else {"image_size": 32}
    model = ak.inject(sam2_model(), method, **options)
    side = ak.Segmenter(model).image_size
    images = 255 * IMAGES[:, :, :side, :side]
    asked = ak.Prompts(torch.full((2, 1, 1, 2), 9.0), torch.ones(2, 1, 1, dtype=torch.int64))
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(0.01 * torch.randn_like(each))
        ak.save_adapter(model, tmp_path / "adapter.safetensors")
        loaded = ak.load_adapter(sam2_model(), tmp_path / "adapter.safetensors")
        expected = ak.Segmenter(model.eval())(images, asked).all_logits
        assert torch.equal(ak.Segmenter(loaded)(images, asked).all_logits, expected)

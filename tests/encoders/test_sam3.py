"""Parts work on the encoders of SAM 3 and EdgeTAM, or are refused there with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    Peft,
    PositionAdapter,
    Resize,
    Train,
)
from tests.models import snapshot
from tests.transformers_models import (
    VIT_3,
    edgetam_model,
    sam3_detector_model,
    sam3_tracker_model,
    sam3_video_model,
)

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
WHOLE = {"Sam3TrackerModel": sam3_tracker_model, "EdgeTamModel": edgetam_model}
each_whole = pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)


def a_point(count: int = 1) -> ak.Prompts:
    points = torch.full((2, count, 1, 2), 20.0)
    return ak.Prompts(points, torch.ones(2, count, 1, dtype=torch.int64))


def moved(model: Any) -> Any:
    """With what is trained away from where it starts."""
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(0.02 * torch.randn_like(each))
    return model.eval()


def test_the_view_of_sam_3_has_windows_and_one_stage():
    view = ak.view(sam3_tracker_model())
    assert (view.family, view.image_size, view.patch_size) == ("transformers_sam3", 64, 16)
    assert [(stage.width, stage.grid) for stage in view.stages] == [(16, (4, 4))]
    assert [block.index for block in view.select("global")] == VIT_3["global_attn_indexes"]
    assert [block.index for block in view.select("windowed")] == [0, 2]
    assert [block.index for block in view.select("last_of_stage")] == [3]
    assert {*view.components} == {"image_encoder", "neck", "prompt_encoder", "mask_decoder"}
    assert view.tokens.layout.form == "row"
    assert [block.sites["attn_out"].layout.form for block in view.blocks] == ["windows", "grid"] * 2


def test_the_view_of_edgetam_has_its_stages():
    view = ak.view(edgetam_model())
    assert (view.family, view.image_size, view.patch_size) == ("transformers_edgetam", 64, 4)
    stages = [(stage.width, stage.grid[0], len(stage.blocks)) for stage in view.stages]
    assert stages == [(16, 16, 1), (16, 8, 1), (24, 4, 2), (32, 2, 1)]
    assert [block.index for block in view.select("last_of_stage")] == [0, 1, 3, 4]


def test_sites_of_sam_3_are_what_the_modules_give():
    model = sam3_tracker_model()
    view = ak.view(model)
    seen: dict[tuple[int, str], torch.Size] = {}

    def keep(key: tuple[int, str]) -> Callable[..., None]:
        return lambda module, args, output: seen.update({key: output.shape})

    for block in view.blocks:
        for name in ("attn_in", "mlp", "block_out"):
            block.sites[name].modules[0].register_forward_hook(keep((block.index, name)))
    model.vision_encoder(IMAGES)
    assert {*seen.values()} == {torch.Size((2, 4, 4, 16))}
    assert len(seen) == 3 * len(view.blocks)


@pytest.mark.parametrize("kind", ["Sam3VisionModel", "Sam3ViTModel"])
def test_the_encoder_alone_and_its_transformer_alone_are_taken(kind: str):
    model = sam3_tracker_model().vision_encoder
    model = model if kind == "Sam3VisionModel" else model.backbone
    before, plain = snapshot(model), model(IMAGES).last_hidden_state
    ak.inject(model, [LoRA(2, targets=("q", "k", "v")), FeatureAdapter(), CNNBranch("global", 4)])
    moved(model)
    model(IMAGES).last_hidden_state.square().mean().backward()
    trained = [each for each in model.parameters() if each.requires_grad]
    assert all(each.grad is not None for each in trained)
    assert not torch.equal(model(IMAGES).last_hidden_state, plain)
    assert snapshot(ak.eject(model)) == before
    assert torch.equal(model(IMAGES).last_hidden_state, plain)


@pytest.mark.parametrize("make", [sam3_detector_model, sam3_video_model])
def test_of_a_model_that_is_asked_by_words_the_encoder_is_adapted(make: Callable[[], Any]):
    model = make()
    detector = getattr(model, "detector_model", model)
    words = torch.tensor([[1, 2, 3]])
    before = snapshot(model)

    def masks() -> Tensor:
        return detector(pixel_values=IMAGES[:1], input_ids=words).pred_masks

    plain = masks()
    ak.inject(model, [LoRA(2), FeatureAdapter()])
    torch.testing.assert_close(masks(), plain)
    assert not torch.allclose(moved(model) and masks(), plain)
    masks().square().mean().backward()
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)
    assert snapshot(ak.eject(model)) == before
    with pytest.raises(TypeError, match=r"expected a segment_anything Sam, .* not a Sam3"):
        ak.Segmenter(model)


@each_whole
def test_parts_in_the_decoder_change_masks_alone(make: Callable[[], Any]):
    model = make()
    segmenter, before = ak.Segmenter(model), snapshot(model)
    with torch.no_grad():
        base = segmenter(255 * IMAGES, a_point()).logits()
        ak.inject(model, [ClassPrompts(("a", "b")), Detail(width=2, channels=3, classes=2)])
        found = segmenter(255 * IMAGES, a_point()).logits()
        torch.testing.assert_close(found, base, rtol=1e-4, atol=1e-4)
        assert segmenter(255 * IMAGES).low_res_logits.shape == (2, 2, 64, 64)
    assert snapshot(ak.eject(model)) == before


@pytest.mark.parametrize(
    ("make", "parts", "message"),
    [
        (sam3_tracker_model, [PositionAdapter()], "no position embedding for its grid alone"),
        (sam3_tracker_model, [Train("rel_pos")], "no relative-position tables"),
        (sam3_tracker_model, [Resize(90)], "multiple of the patch stride, 16; the nearest is 96"),
        (edgetam_model, [LoRA()], "no nn.Linear that projects q, .*; use FeatureAdapter, peft's"),
        (edgetam_model, [FeatureAdapter()], "no site 'mlp' in block 0; there is block_out"),
        (edgetam_model, [Resize(72)], "multiples of 32 pixels, which its stages divide.* is 64"),
        (edgetam_model, [Resize(64, 2)], "several convolutions, which cannot overlap"),
    ],
)
def test_what_it_has_no_place_for_is_refused(make: Any, parts: list[Any], message: str):
    model = make()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        ak.inject(model, parts)
    assert snapshot(model) == before


@each_whole
def test_another_size_is_that_of_a_model_made_for_it(make: Callable[[], Any]):
    model = make()
    ak.inject(model, [Normalise(), Resize(96)])
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = ak.Segmenter(model)(255 * images, a_point()).low_res_logits
        expected = model(
            pixel_values=images, input_points=a_point().points, multimask_output=False
        ).pred_masks
    assert found.shape == (2, 1, 24, 24)
    torch.testing.assert_close(found, expected[:, :, 0])


def test_sam_3_at_another_size_is_a_model_configured_for_it():
    model = sam3_tracker_model()
    larger = sam3_tracker_model(
        backbone_config={**VIT_3, "image_size": 112},
        backbone_feature_sizes=[[28] * 2, [14] * 2, [7] * 2],
    )
    larger.load_state_dict(model.state_dict())
    ak.inject(model, [Resize(112)])
    images = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        found, expected = (each.vision_encoder(images) for each in (model, larger))
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)
    ak.eject(model)
    ak.inject(model, [Resize(64, patch_stride=8)])
    assert ak.Segmenter(model)(255 * IMAGES, a_point()).low_res_logits.shape == (2, 1, 32, 32)


def test_layers_of_edgetam_take_pefts_lora():
    model = edgetam_model()
    base = ak.Segmenter(model)
    plain = base(255 * IMAGES, a_point()).all_logits
    ak.inject(model, [Peft("LoraConfig", {"r": 2, "target_modules": ["channel_mixer.conv1.c"]})])
    assert torch.equal(base(255 * IMAGES, a_point()).all_logits, plain)
    moved(model)
    assert not torch.equal(base(255 * IMAGES, a_point()).all_logits, plain)
    ak.eject(model)
    assert torch.equal(base(255 * IMAGES, a_point()).all_logits, plain)


@pytest.mark.parametrize(
    ("make", "method"),
    [
        *((sam3_tracker_model, method) for method in ("samed", "samus", "samus_plus")),
        *((edgetam_model, method) for method in ("samus_plus",)),
    ],
)
def test_methods_are_saved_and_loaded(tmp_path: Path, make: Callable[[], Any], method: str):
    options: dict[str, Any] = {} if method == "medsam" else {"image_size": 32}
    model = moved(ak.inject(make(), method, **options))
    side = ak.Segmenter(model).image_size
    images = 255 * IMAGES[:, :, :side, :side]
    with torch.no_grad():
        ak.save_adapter(model, tmp_path / "adapter.safetensors")
        loaded = ak.load_adapter(make(), tmp_path / "adapter.safetensors")
        expected = ak.Segmenter(model)(images, a_point()).all_logits
        assert torch.equal(ak.Segmenter(loaded)(images, a_point()).all_logits, expected)

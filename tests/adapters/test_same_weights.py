"""An adapter file is for SAM's weights, whichever library holds them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.encoders.sam_names import as_in_sam
from adapterkit.parts import FeatureAdapter, LoRA, Train
from tests.models import TINY, random_prompts
from tests.transformers_models import as_transformers

CONFIG = replace(TINY, image_size=64, window_size=3)
METHODS: dict[str, Any] = {
    "samus": ak.methods.parts_of("samus", image_size=32),
    "samed": ak.methods.parts_of("samed", image_size=64),
    "medsam": ak.methods.parts_of("medsam"),
    "samus_plus": ak.methods.parts_of("samus_plus", image_size=32, structures=("a", "b")),
    "neck": [FeatureAdapter(at="attn_out"), Train("neck"), Train("rel_pos")],
}
IMAGES = 255 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sam() -> Sam:
    return ak.build_sam(CONFIG, seed=0)


def moved(model: Any) -> Any:
    """With what is trained away from where it starts."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(0.02 * torch.randn(each.shape, generator=generator))
    return model.eval()


def masks(model: nn.Module) -> list[Tensor]:
    """Of the same images and prompts, and what is judged present."""
    segmenter = ak.Segmenter(model)
    side = segmenter.image_size
    points, labels = random_prompts(2, 2, 2, seed=0, side=side)
    named = {"classes": torch.tensor([[0, 1], [1, -1]])} if segmenter.structures else {}
    with torch.no_grad():
        found = segmenter(IMAGES[:, :, :side, :side], ak.Prompts(points, labels, **named))
    return [found.all_logits, found.all_iou, *([] if found.presence is None else [found.presence])]


@pytest.mark.parametrize("parts", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("first", ["segment_anything", "transformers"])
def test_a_file_of_one_library_loads_in_the_other(tmp_path: Path, sam: Sam, parts: Any, first: str):
    models = [sam, as_transformers(sam, CONFIG)]
    trained, other = models if first == "segment_anything" else reversed(models)
    trained = moved(ak.inject(trained, parts))
    ak.save_adapter(trained, tmp_path / "adapter.safetensors")
    loaded = ak.load_adapter(other, tmp_path / "adapter.safetensors")
    for found, expected in zip(masks(loaded), masks(trained), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert ak.adapters_of(loaded) is not None


def test_the_image_encoder_of_timm_takes_it_too(tmp_path: Path, sam: Sam):
    encoder: Any = timm.create_model(
        "samvit_base_patch16",
        img_size=64,
        depth=CONFIG.depth,
        embed_dim=CONFIG.width,
        num_heads=CONFIG.num_heads,
        window_size=3,
        global_attn_indexes=CONFIG.global_blocks,
        neck_chans=CONFIG.prompt_width,
    ).eval()
    theirs = sam.state_dict()
    names = {
        name: as_in_sam("timm_samvit", f"image_encoder.{name}") for name in encoder.state_dict()
    }
    encoder.load_state_dict({name: theirs[there] for name, there in names.items()})
    moved(ak.inject(sam, [LoRA(2), FeatureAdapter(), Train("rel_pos")]))
    ak.save_adapter(sam, tmp_path / "adapter.safetensors")
    ak.load_adapter(encoder, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        found = encoder.forward_features(IMAGES / 255)
        torch.testing.assert_close(found, sam.image_encoder(IMAGES / 255), rtol=1e-3, atol=1e-3)


def test_other_weights_are_refused_by_the_name_of_what_differs(tmp_path: Path, sam: Sam):
    model = as_transformers(sam, CONFIG)
    ak.save_adapter(ak.inject(sam, [LoRA(2)]), tmp_path / "adapter.safetensors")
    with torch.no_grad():
        model.mask_decoder.upscale_conv1.bias.add_(1)
    with pytest.raises(
        ak.AdapterFileError, match=r"another base: mask_decoder\.output_upscaling\.0"
    ):
        ak.load_adapter(model, tmp_path / "adapter.safetensors")


def test_a_part_for_one_library_is_refused_by_the_other(tmp_path: Path, sam: Sam):
    model = as_transformers(sam, CONFIG)
    ak.inject(sam, [ak.parts.ResidualSelfAttention(), LoRA(2)])
    ak.save_adapter(sam, tmp_path / "adapter.safetensors")
    with pytest.raises(ak.AdapterFileError, match="no mask decoder of segment_anything's"):
        ak.load_adapter(model, tmp_path / "adapter.safetensors")
    assert ak.adapters_of(model) is None

"""transformers' SAM computes, with adapters and without, what segment_anything's does."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.parts import LoRA, Train
from tests.models import TINY, snapshot, train_one_step

transformers = pytest.importorskip("transformers")

CONFIG = replace(TINY, image_size=128, window_size=3)
NAMES = (
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"^blocks\.", "layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"^neck\.0\.", "neck.conv1."),
    (r"^neck\.1\.", "neck.layer_norm1."),
    (r"^neck\.2\.", "neck.conv2."),
    (r"^neck\.3\.", "neck.layer_norm2."),
)
"""segment_anything's names of the image encoder's tensors, and transformers'."""


def renamed(name: str) -> str:
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name


@pytest.fixture
def sam() -> Sam:
    return ak.build_sam(CONFIG, seed=0)


@pytest.fixture
def vision_config() -> Any:
    return transformers.SamVisionConfig(
        hidden_size=CONFIG.width,
        num_hidden_layers=CONFIG.depth,
        num_attention_heads=CONFIG.num_heads,
        mlp_dim=4 * CONFIG.width,
        image_size=CONFIG.image_size,
        patch_size=CONFIG.patch_size,
        window_size=CONFIG.window_size,
        global_attn_indexes=list(CONFIG.global_blocks),
        output_channels=CONFIG.prompt_width,
        num_pos_feats=CONFIG.prompt_width // 2,
    )


@pytest.fixture
def sam_model(sam: Sam, vision_config: Any) -> Any:
    """transformers' `SamModel` with the image encoder's weights of segment_anything's `Sam`."""
    width = CONFIG.prompt_width
    config = transformers.SamConfig(
        vision_config=vision_config,
        prompt_encoder_config={"hidden_size": width, "image_size": 128, "patch_size": 16},
        mask_decoder_config={"hidden_size": width, "mlp_dim": 64, "num_attention_heads": 2},
    )
    torch.manual_seed(1)
    model = transformers.SamModel(config).eval()
    weights = {renamed(k): v for k, v in sam.image_encoder.state_dict().items()}
    model.vision_encoder.load_state_dict(weights, strict=True)
    return model


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def embedding(model: Any, image: Tensor) -> Tensor:
    if isinstance(model, Sam):
        return model.image_encoder(image)
    encoder = model.vision_encoder if isinstance(model, transformers.SamModel) else model
    return encoder(image).last_hidden_state


def test_the_base_gives_the_same_image_embedding(sam: Sam, sam_model: Any):
    image = images(128)
    torch.testing.assert_close(embedding(sam_model, image), embedding(sam, image))
    torch.testing.assert_close(sam_model.get_image_embeddings(image), embedding(sam, image))


METHODS = {
    "SAMUS": ak.methods.parts_of("samus", image_size=64),
    "SAMUS, patches that do not overlap": ak.methods.parts_of(
        "samus", image_size=64, patch_stride=16
    ),
    "MSA": ak.methods.parts_of("msa", image_size=96),
    "LoRA and relative positions": [LoRA(2), Train("rel_pos")],
}


@pytest.mark.parametrize("parts", METHODS.values(), ids=METHODS)
def test_the_same_adapter_gives_the_same_image_embedding(sam: Sam, sam_model: Any, parts: Any):
    ak.inject(sam, parts)
    ak.inject(sam_model, parts)
    found, theirs = ak.adapters_of(sam), ak.adapters_of(sam_model)
    assert found is not None
    assert theirs is not None
    image = images(found["default"].image_size)
    train_one_step(sam.image_encoder, image)
    tensors = found["default"].added.state_dict()
    theirs["default"].added.load_state_dict(tensors, strict=True)
    torch.testing.assert_close(embedding(sam_model, image), embedding(sam, image))

    for model in (sam, sam_model):
        model.zero_grad()
        embedding(model, image).square().mean().backward()
    ours = dict(found["default"].added.named_parameters())
    for name, each in theirs["default"].added.named_parameters():
        torch.testing.assert_close(each.grad, ours[name].grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("around", ["SamVisionModel", "its encoder"])
def test_the_vision_model_alone_takes_samus(vision_config: Any, around: str):
    torch.manual_seed(0)
    model: Any = transformers.SamVisionModel(vision_config).eval()
    model = model if around == "SamVisionModel" else model.vision_encoder
    before, plain = snapshot(model), embedding(model, images(128))
    ak.inject_samus(model, image_size=64)
    result = embedding(model, images(64))
    assert result.shape == (2, CONFIG.prompt_width, 8, 8)
    result.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("adapterkit" in name), name
    with ak.disabled(model):
        assert torch.equal(embedding(model, images(128)), plain)
    assert snapshot(ak.eject(model)) == before
    assert torch.equal(embedding(model, images(128)), plain)

"""A whole MSA as its published training script saves it gives the published masks.

The reference's weights follow from a formula, `drawn`; what the published code (commit 4dcdc63)
computed with them is in references/msa_sam_tiny.safetensors, whose header has their shapes.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.promptable.families import family_of
from adapterkit.promptable.sam_family import DecoderInput
from tests.models import snapshot

FILE = Path(__file__).parent / "references" / "msa_sam_tiny.safetensors"
BASE = ak.SamConfig(
    width=32, depth=2, num_heads=2, global_blocks=(1,), window_size=4, image_size=1024,
    prompt_width=32, decoder_mlp_width=64, iou_head_width=32,
)  # fmt: skip


def drawn(index: int, shape: tuple[int, ...]) -> Tensor:
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(n * 1.7 + index * 0.7 + (n * 0.013 + index) ** 1.5).float().reshape(shape)


def scale(key: str) -> float:
    if "norm" in key and key.endswith("weight"):
        return 1.0
    return 0.6 if key.startswith("mask_decoder.") else 0.2


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    with safe_open(FILE, framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
    return {key: drawn(i, shape) * scale(key) for i, (key, shape) in enumerate(shapes.items())}


@pytest.fixture
def base(weights: dict[str, Tensor]) -> Sam:
    """Its global relative positions, which the published code replaced by others, are random."""
    sam = ak.build_sam(BASE, seed=0)
    own = sam.state_dict()
    names = {key.replace(".rel_", ".rel_pos_"): key for key in weights}
    names = {k.replace(".mlp.layers.0.0.", ".mlp.lin1.").replace(".mlp.fc.", ".mlp.lin2."): v
             for k, v in names.items()}  # fmt: skip
    fitting = {
        key: weights[theirs]
        for key, theirs in names.items()
        if key in own and own[key].shape == weights[theirs].shape
    }
    assert len(own) - len(fitting) == 2
    sam.load_state_dict({**own, **fitting})
    return sam


def assert_computes_the_published(sam: Sam) -> None:
    expected = load_file(FILE)
    image = drawn(1000, (2, 3, 96, 96)).abs()
    points = torch.tensor([[[30.0, 40.0]], [[70.0, 20.0]]])
    with torch.no_grad():
        embedding = sam.image_encoder(image)
        sparse, dense = sam.prompt_encoder(
            points=(points, torch.ones(2, 1, dtype=torch.int)), boxes=None, masks=None
        )
        family = family_of(sam)
        assert family is not None
        given = DecoderInput(embedding, {}, family.positions(), sparse, dense, count=1)
        logits, scores = family.predict(given)
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(embedding, expected["image_embedding"], **close)
    torch.testing.assert_close(logits[:, :1], expected["logits"], **close)
    torch.testing.assert_close(scores[:, :1], expected["iou"], **close)


@pytest.mark.parametrize("kind", ["stock", "fast"])
def test_embedding_and_masks_are_the_published_ones(base: Sam, weights, tmp_path: Path, kind: str):
    before = snapshot(base)
    checkpoint = {"state_dict": weights, "model": "sam", "best_tol": np.float64(0.8), "epoch": 3}
    torch.save(checkpoint, tmp_path / "best_dice_checkpoint.pth")
    ak.load_published(base, tmp_path / "best_dice_checkpoint.pth", "msa")
    if kind == "fast":
        ak.fast(base)
    assert_computes_the_published(base)
    ak.save_adapter(base, tmp_path / "msa.safetensors")
    ak.stock(ak.eject(base))
    assert snapshot(base) == before
    assert_computes_the_published(ak.load_adapter(base, tmp_path / "msa.safetensors"))


@pytest.mark.parametrize("part", [ak.parts.PadBeforeNorm, ak.parts.ResidualSelfAttention])
def test_without_either_part_they_are_not(base: Sam, weights, part: type):
    ak.load_published(base, weights, "msa")
    adapters = ak.adapters_of(base)
    assert adapters is not None
    adapter = adapters["default"]
    adapters.activate(())
    adapter.remove(next(each for each in adapter.attached if isinstance(each.part, part)))
    adapters.activate(["default"])
    with pytest.raises(AssertionError, match="not close"):
        assert_computes_the_published(base)


def test_windows_that_fit_the_grid_are_not_filled_up():
    sam = ak.build_sam(BASE, seed=0)
    image = torch.rand(1, 3, 1024, 1024)
    with torch.no_grad():
        stock = sam.image_encoder(image)
        assert torch.equal(ak.inject(sam, [ak.parts.PadBeforeNorm()]).image_encoder(image), stock)


def test_parts_are_refused_where_there_is_no_place_for_them():
    encoder = ak.build_sam(BASE, seed=0).image_encoder
    with pytest.raises(ValueError, match="no mask decoder of segment_anything's"):
        ak.inject(encoder, [ak.parts.ResidualSelfAttention()])


def test_lora_of_the_published_code_is_refused_by_name(base: Sam, weights):
    lora = {**weights, "image_encoder.blocks.0.attn.q.lora_A": torch.zeros(4, 32)}
    with pytest.raises(ValueError, match=r"the state dict: it holds LoRA, .* sam_lora"):
        ak.load_published(base, lora, "msa")

"""AutoSAMUS gives the published masks, and prompts that it makes stand beside clicks.

The reference's weights follow from a formula, `drawn`; what the published code (commit 030ed07)
computed with them is in references/autosamus_tiny.safetensors, whose header has their shapes.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.methods.autosamus import generator_names
from adapterkit.parts import PromptGenerator, Resize
from adapterkit.training.losses import dice_bce_loss
from tests.adapters.test_msa_sam import drawn
from tests.models import snapshot

FILE = Path(__file__).parent / "references" / "autosamus_tiny.safetensors"
BASE = ak.SamConfig(
    width=32, depth=3, num_heads=2, global_blocks=(2,), prompt_width=32, decoder_mlp_width=64,
    iou_head_width=32,
)  # fmt: skip

Tensors = dict[str, Tensor]


def drawn_for(index: int, key: str, shape: tuple[int, ...]) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    values = drawn(index, shape)
    if key.endswith("running_var"):
        return values.abs() * 0.5 + 0.5
    if "norm" in key and key.endswith("weight"):
        return values
    return values * (0.55 if key.startswith("mask_decoder.") else 0.3)


@pytest.fixture(scope="module")
def published() -> Tensors:
    """A whole state dict, as the published code saves it."""
    with safe_open(FILE, framework="pt") as file:
        shapes = json.loads(file.metadata()["published"])
    return {key: drawn_for(i, key, shape) for i, (key, shape) in enumerate(shapes.items())}


@pytest.fixture
def base(published: Tensors) -> Sam:
    """Its global relative positions, which SAMUS resized and trained, are random."""
    sam = ak.build_sam(BASE, seed=0)
    own = sam.state_dict()
    fitting = {k: v for k, v in published.items() if k in own and v.shape == own[k].shape}
    assert len(own) - len(fitting) == 2
    sam.load_state_dict({**own, **fitting})
    return sam


@pytest.fixture
def images() -> Tensor:
    return 255 * drawn(1000, (2, 3, 256, 256)).abs()


@pytest.mark.parametrize("kind", ["stock", "fast"])
def test_masks_and_gradients_are_the_published_ones(
    base: Sam, published: Tensors, images: Tensor, kind: str, tmp_path: Path
):
    expected = load_file(FILE)
    before = snapshot(base)
    if kind == "fast":
        ak.fast(base)
    torch.save({f"module.{key}": value for key, value in published.items()}, tmp_path / "auto.pth")
    ak.load_published(base, tmp_path / "auto.pth", "autosamus", structures=["nodule"])
    segmenter = ak.Segmenter(base)
    assert segmenter.structures == ("nodule",)
    logits = segmenter(images).low_res_logits
    torch.testing.assert_close(logits[..., ::4, ::4], expected["logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits.mean(), expected["mean"][0], rtol=0, atol=1e-5)
    loss = dice_bce_loss(logits, (drawn(1001, (2, 1, 128, 128)) > 0).float())
    torch.testing.assert_close(loss, expected["loss"][0], rtol=0, atol=1e-5)

    loss.backward()
    found = ak.adapters_of(base)
    assert found is not None
    ours = dict(found["default"].added.named_parameters())
    names = generator_names(published)
    assert set(names.values()) == {name for name in ours if name.startswith("prompt_generator.")}
    # The published gradients are, in float32, up to 6e-3 from those in float64.
    relative = 1e-3 if kind == "stock" else 2e-3
    compared = 0
    for i, (key, value) in enumerate(published.items()):
        if f"grad/{key}" in expected:
            gradient = ours[names[key]].grad
            assert gradient is not None, key
            norm, product = expected[f"grad/{key}"]
            direction = drawn(2000 + i, tuple(value.shape))
            tolerance = relative * norm
            assert abs(gradient.norm() - norm) < tolerance, key
            difference = (gradient * direction).sum() - product
            assert abs(difference) < tolerance * direction.norm(), key
            compared += 1
    assert compared == len([key for key in expected if key.startswith("grad/")]) > 100

    ak.save_adapter(base, tmp_path / "auto.safetensors")
    ak.stock(ak.eject(base))
    assert snapshot(base) == before
    ak.load_adapter(base, tmp_path / "auto.safetensors")
    with torch.no_grad():
        again = ak.Segmenter(base)(images).low_res_logits
    torch.testing.assert_close(again, logits.detach(), rtol=0, atol=1e-4)


def small() -> Sam:
    return ak.build_sam(BASE, seed=0)


def test_each_structure_has_a_prompt_of_its_own_beside_those_of_others():
    sam = ak.inject(small(), [Resize(64), PromptGenerator(("wall", "cavity"))])
    segmenter = ak.Segmenter(sam)
    images = 255 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = segmenter(images).low_res_logits
        alone = segmenter(images[1:], ak.Prompts(classes=torch.tensor([[1]]))).low_res_logits
        torch.testing.assert_close(alone[0, 0], both[1, 1], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(both[:, 0], both[:, 1])
        points, labels = torch.full((2, 2, 1, 2), 20.0), torch.ones(2, 2, 1, dtype=torch.long)
        clicked = ak.Prompts(points, labels, classes=torch.tensor([[0, 1]] * 2))
        assert not torch.allclose(segmenter(images, clicked).low_res_logits, both)
        mixed = ak.Prompts(points, labels, classes=torch.tensor([[0, -1]] * 2))
        with pytest.raises(ValueError, match="a prompt has no class, and others have one"):
            segmenter(images, mixed)
        # Clicks alone are the base's.
        own = segmenter(images, ak.Prompts(points, labels)).low_res_logits
        sam = ak.inject(small(), [Resize(64)])
        base = ak.Segmenter(sam)(images, ak.Prompts(points, labels)).low_res_logits
    assert torch.equal(own, base)


def test_the_generator_alone_is_trained_beside_a_trained_samus(tmp_path: Path):
    sam = ak.inject(small(), "samus", image_size=64)
    ak.save_adapter(sam, tmp_path / "samus.safetensors")
    ak.load_adapter(ak.eject(sam), tmp_path / "samus.safetensors", "samus")
    ak.inject(sam, [PromptGenerator(("nodule",))], "auto")
    ak.activate(sam, "samus", "auto")
    found = ak.adapters_of(sam)
    assert found is not None
    found["samus"].requires_grad_(False)
    trained = {name for name, each in sam.named_parameters() if each.requires_grad}
    assert trained
    assert all(".auto.added.prompt_generator." in name for name in trained)
    ak.Segmenter(sam)(255 * torch.rand(1, 3, 64, 64)).low_res_logits.mean().backward()
    added = found["auto"].added
    assert added.get_parameter("prompt_generator.object_tokens").grad is not None


def test_what_does_not_fit_is_refused(base: Sam, published: Tensors, tmp_path: Path):
    before = snapshot(base)
    without = {k: v for k, v in published.items() if not k.startswith("prompt_generator.")}
    with pytest.raises(ValueError, match=r"lacks 'prompt_generator\.object_token'"):
        ak.load_published(base, without, "autosamus")
    with pytest.raises(ValueError, match="structures has 2 names, and it is of one structure"):
        ak.load_published(base, published, "autosamus", structures=["a", "b"])
    assert snapshot(base) == before
    ak.load_published(base, published, "autosamus")
    with pytest.raises(ValueError, match=r"PromptGenerator, which needs no prompt, cannot be exp"):
        ak.export(base, tmp_path / "out")

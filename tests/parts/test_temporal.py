"""Parts that look from a frame to others, at every site of encoders of many kinds."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.adapters.named import Adapters
from adapterkit.adapters.trial import SITES
from adapterkit.encoders.examples import EXAMPLES
from adapterkit.encoders.tokens import TokenLayout
from adapterkit.encoders.views import ENCODER_SITES
from adapterkit.parts import (
    AttentionOverTime,
    ConvOverTime,
    Resize,
    TemporalAttention,
    TemporalConv,
)
from adapterkit.training.checkpointing import checkpointed_blocks
from tests.encoders.test_matrix import fresh, tensors
from tests.models import TINY, train_one_step

KINDS = [
    "segment_anything ImageEncoderViT",
    "timm VisionTransformer",
    "timm VisionTransformerSAM",
    "timm SwinTransformer",
    "timm Twins (SVT)",
    "timm MaxxVit (CoAtNet)",
    "timm ConvNeXt",
    "transformers Sam2VisionModel",
    "transformers DINOv3ViTModel",
]
"""Rows with and without prefix tokens, grids, maps with channels first, windows, stages."""


def adapters(model: nn.Module) -> Adapters:
    found = ak.adapters_of(model)
    assert found is not None
    return found


def moved(model: nn.Module) -> nn.Module:
    """With random values in all that is trained, so that nothing is the identity."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(torch.randn(each.shape, generator=generator), alpha=0.2)
    return model


def everywhere(model: nn.Module) -> list[Any]:
    """Both parts at all sites at which tokens are in order, but one each in blocks."""
    base = ak.view(model)
    sites: list[Any] = [*ENCODER_SITES]
    parts: list[Any] = [TemporalConv(at, reduction=2) for at in sites]
    in_blocks: list[Any] = [at for at in SITES if at not in sites]
    for at in in_blocks:
        blocks = [b for b in base.blocks if at in b.sites and b.sites[at].layout.in_order]
        for part, block in zip((TemporalAttention, TemporalConv), blocks[::-1], strict=False):
            parts.append(part(at, blocks=(block.index,), reach=1, reduction=2))
    return parts


def of_images(model: nn.Module, images: Tensor, frames: int) -> Tensor:
    """What the encoder gives of each image, as a row of numbers."""
    with torch.no_grad(), adapters(model).sequences(frames):
        found = [each for each in tensors(model(images)) if len(each) == len(images)]
    return torch.cat([each.flatten(1) for each in found], dim=1)


@pytest.mark.parametrize("example", KINDS)
def test_at_every_site_clips_are_apart_and_single_images_are_clips_of_one(example: str):
    model = fresh(example)
    parts = everywhere(model)
    moved(ak.inject(model, parts))
    side = ak.view(model).image_size
    images = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(1))
    found = of_images(model, images, 3)
    other = of_images(model, torch.cat((images[3:], images[:3])), 3)
    torch.testing.assert_close(other, torch.cat((found[3:], found[:3])))
    single = of_images(model, images[:2], 1)
    torch.testing.assert_close(single[1:], of_images(model, images[1:2], 1))
    assert not torch.allclose(single[1], found[1])
    changed = images.clone()
    changed[0] = 1 - changed[0]
    assert not torch.allclose(of_images(model, changed, 3)[1], found[1])
    torch.testing.assert_close(of_images(model, changed, 3)[3:], found[3:])


def test_tokens_without_a_place_are_refused():
    hiera, sam = fresh("timm Hiera"), fresh("segment_anything ImageEncoderViT")
    for part in (TemporalAttention, TemporalConv):
        with pytest.raises(ValueError, match=r"the tokens there lie within windows in this timm"):
            ak.inject(hiera, [part()])
        # Within windows in one of its blocks, in order in the other.
        with pytest.raises(ValueError, match=r"attach it at another site or in other blocks"):
            ak.inject(sam, [part("attn_out", blocks=(0,))])
        ak.inject(sam, [part("attn_out", blocks="all")])
        assert ak.summary(sam).parts[0].blocks == (1,)
        ak.eject(sam)


@cache
def small(part: str, reach: int) -> nn.Module:
    sam = ak.build_sam(TINY, seed=0)
    parts = {
        "attention": TemporalAttention(blocks="all", reach=reach, reduction=8),
        "narrow": TemporalAttention(at="mlp", reach=reach, neighbourhood=1, distances=1),
        "conv": TemporalConv(at="attn_in", reach=reach),
    }
    return moved(ak.inject(sam, [Resize(32), parts[part]]))


@settings(max_examples=12, deadline=None)
@given(
    part=st.sampled_from(["attention", "narrow", "conv"]),
    reach=st.integers(1, 2),
    frames=st.integers(1, 9),
    data=st.data(),
)
def test_a_frame_depends_on_those_within_reach_and_on_no_other(
    part: str, reach: int, frames: int, data: st.DataObject
):
    model = small(part, reach)
    segmenter = ak.Segmenter(model)
    assert segmenter.reach == adapters(model).reach
    changes = data.draw(st.integers(0, frames - 1))
    generator = torch.Generator().manual_seed(frames)
    images = 255 * torch.rand(frames, 3, 32, 32, generator=generator)
    changed = images.clone()
    changed[changes] = 255 - changed[changes]
    with torch.no_grad():
        before, after = (segmenter.encode(each, frames).image for each in (images, changed))
    for frame in range(frames):
        if abs(frame - changes) > segmenter.reach:
            torch.testing.assert_close(after[frame], before[frame])
    assert not torch.allclose(after[changes], before[changes])
    if frames > 1:
        beside = changes - 1 if changes else 1
        assert not torch.allclose(after[beside], before[beside])


@settings(max_examples=8, deadline=None)
@given(frames=st.integers(1, 5), order=st.permutations(range(3)))
def test_clips_can_be_in_any_order(frames: int, order: list[int]):
    segmenter = ak.Segmenter(small("attention", 2))
    clips = 255 * torch.rand(3, frames, 3, 32, 32, generator=torch.Generator().manual_seed(frames))
    with torch.no_grad():
        found = segmenter.encode(clips.flatten(0, 1), frames).image.unflatten(0, (3, frames))
        other = segmenter.encode(clips[order].flatten(0, 1), frames).image
    torch.testing.assert_close(other.unflatten(0, (3, frames)), found[order])


@torch.no_grad()
def test_attention_over_time_is_what_its_formula_says():
    torch.manual_seed(0)
    layer = AttentionOverTime(8, reach=2, neighbourhood=3, reduction=2, num_heads=2, distances=1)
    for each in layer.parameters():
        each.add_(torch.randn_like(each), alpha=0.5)
    tokens = torch.randn(2 * 4, 1 + 9, 8)  # Two clips of four frames, a prefix token and 3 x 3.
    found = layer(tokens, 4, TokenLayout("row", 1)).unflatten(0, (2, 4))
    q, k, v = layer.qkv(layer.norm(tokens)).unflatten(0, (2, 4)).chunk(3, dim=-1)

    def expected(clip: int, frame: int, place: int) -> Tensor:
        values, logits = [], []
        for other in range(max(0, frame - 2), min(4, frame + 3)):
            for key in range(10):
                if (place == 0) != (key == 0):
                    continue
                rows, columns = ((key - 1) // 3 - (place - 1) // 3, (key - 1) % 3 - (place - 1) % 3)
                if place and max(abs(rows), abs(columns)) > 1:
                    continue
                rows, columns = (rows, columns) if place else (0, 0)
                time = min(max(other - frame, -1), 1)
                heads = (q[clip, frame, place] * k[clip, other, key]).view(2, 2).sum(-1) / 2**0.5
                logits.append(heads + layer.bias[time + 1, rows + 1, columns + 1])
                values.append(v[clip, other, key].view(2, 2))
        weights = torch.stack(logits).softmax(dim=0)
        return layer.proj((weights[..., None] * torch.stack(values)).sum(dim=0).flatten())

    for clip, frame, place in ((0, 0, 0), (0, 1, 5), (1, 3, 1), (1, 2, 9)):
        torch.testing.assert_close(found[clip, frame, place], expected(clip, frame, place))


@torch.no_grad()
def test_convolution_over_time_is_what_its_formula_says():
    torch.manual_seed(0)
    layer = ConvOverTime(8, reach=1, reduction=2)
    for each in layer.parameters():
        each.add_(torch.randn_like(each), alpha=0.5)
    tokens = torch.randn(6, 2, 2, 8)
    found = layer(tokens, 3, TokenLayout())
    down = layer.down(tokens)
    taps = layer.conv.weight[:, 0].T  # Of the frame before, its own, the next.
    middle = taps[0] * down[3] + taps[1] * down[4] + taps[2] * down[5] + layer.conv.bias
    first = taps[1] * down[3] + taps[2] * down[4] + layer.conv.bias
    torch.testing.assert_close(found[4], layer.up(nn.functional.gelu(middle)))
    torch.testing.assert_close(found[3], layer.up(nn.functional.gelu(first)))


@pytest.mark.parametrize("part", [TemporalAttention(at="mlp"), TemporalConv(at="attn_in")])
def test_blocks_that_are_run_again_give_the_same_gradients(part: Any):
    segmenter = ak.Segmenter(ak.inject(ak.build_sam(TINY, seed=0), [Resize(32), part])).train()
    moved(segmenter)
    images = 255 * torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    target = 1e3 * torch.rand(6, 32, 2, 2, generator=torch.Generator().manual_seed(2))
    trained = [each for each in segmenter.parameters() if each.requires_grad]

    def gradients() -> list[Tensor]:
        loss = (target * segmenter.encode(images, frames=3).image).sum()
        return list(torch.autograd.grad(loss, trained))

    expected = gradients()
    with checkpointed_blocks(segmenter):
        found = gradients()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_file_has_them_and_a_fast_model_computes_the_same(tmp_path: Path):
    parts = [Resize(64), TemporalAttention(reach=3, distances=2), TemporalConv("tokens", reach=2)]
    sam = ak.inject(ak.build_sam(TINY, seed=0), parts)
    images = 255 * torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    train_one_step(sam.image_encoder, images)
    with torch.no_grad():
        expected = ak.Segmenter(sam).encode(images, frames=4).image
        ak.save_adapter(sam, tmp_path / "video.safetensors")
        other = ak.load_adapter(ak.build_sam(TINY, seed=0), tmp_path / "video.safetensors")
        assert torch.equal(ak.Segmenter(other).encode(images, frames=4).image, expected)
        assert ak.inspect_adapter(tmp_path / "video.safetensors").parts == tuple(parts)
        fast = ak.Segmenter(ak.fast(copy.deepcopy(other)))
        torch.testing.assert_close(fast.encode(images, 4).image, expected, rtol=1e-4, atol=1e-4)
        with ak.disabled(sam):
            assert ak.Segmenter(sam).reach == 0


def test_an_export_which_knows_no_sequences_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="temporal parts, which compute a frame of 12 before and"):
        ak.export(small("attention", 2), tmp_path / "exported", format="torch")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "pos_embed"}, r"TemporalAttention\(at='pos_embed'\): expected one of"),
        ({"reach": 0}, r"TemporalAttention\(reach=0\): expected 1 to 64 frames"),
        ({"neighbourhood": 2}, r"\(neighbourhood=2\): expected 1, 3, 5 or 7"),
        ({"num_heads": 0}, r"\(num_heads=0\): expected 1 or more"),
        ({"distances": 3}, r"\(distances=3\): expected 1 to the reach, 2, or None"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        TemporalAttention(**options)


def test_every_kind_is_an_example():
    assert set(KINDS) <= set(EXAMPLES)

"""Merging folds LoRA and trained copies into the base without changing a bit of the output."""

from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.parts import FeatureAdapter, LoRA, LowRankUpdate, Resize, Train
from adapterkit.promptable.protocol import Embedding
from tests.models import snapshot


def perturb(sam: Sam) -> None:
    for parameter in sam.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape)


def outputs(sam: Sam, image: Tensor) -> list[Tensor]:
    size = sam.image_encoder.img_size
    image = torch.nn.functional.interpolate(image, (size, size))
    points = torch.full((len(image), 1, 1, 2), size / 2)
    labels = torch.ones(len(image), 1, 1, dtype=torch.long)
    with torch.no_grad():
        embedding = sam.image_encoder(image)
        return [
            embedding,
            ak.Segmenter(sam)
            .decode(Embedding(embedding, size), ak.Prompts(points, labels))
            .low_res_logits,
        ]


@pytest.mark.parametrize(
    ("parts", "left"),
    [
        ([LoRA(rank=3, targets=("q", "k", "v"), alpha=6)], []),
        ([Train("mask_decoder"), LoRA()], []),
        ([LoRA(), Train("image_encoder")], []),
        ([Resize(256), LoRA(), FeatureAdapter(zero_init=False)], ["Resize", "FeatureAdapter"]),
        (ak.methods.parts_of("samed", image_size=256), ["Resize", "Normalise"]),
        ([Resize(256), Train("rel_pos"), LoRA()], ["Resize", "Train"]),
    ],
    ids=[
        "LoRA",
        "LoRA and decoder",
        "LoRA over a copy",
        "LoRA and features",
        "samed",
        "resized positions",
    ],
)
def test_the_merged_model_computes_the_same_bits(
    sam: Sam, image: Tensor, parts: list[Any], left: list[str]
):
    ak.inject(sam, parts)
    perturb(sam)
    before = outputs(sam, image)
    ak.merge(sam)
    assert all(map(torch.equal, outputs(sam, image), before))
    assert [row.part.split("(")[0] for row in ak.summary(sam).parts] == left
    assert (ak.adapters_of(sam) is None) == (not left)
    assert not any(isinstance(module, LowRankUpdate) for module in sam.modules())


def test_a_fully_merged_model_is_a_plain_sam_that_trains_what_it_did(sam: Sam):
    flags = {name: each.requires_grad for name, each in sam.named_parameters()}
    ak.merge(ak.inject(sam, [LoRA()]))
    assert {name: each.requires_grad for name, each in sam.named_parameters()} == flags


def test_only_the_active_adapter_is_merged(sam: Sam):
    ak.inject(sam, [LoRA()], name="first")
    ak.inject(sam, [LoRA()], name="second")
    ak.merge(sam)
    found = ak.adapters_of(sam)
    assert found is not None
    assert (found.names, found.active) == (("first",), ())


def test_what_cannot_be_merged_is_refused(sam: Sam):
    with pytest.raises(ValueError, match="no adapter to merge"):
        ak.merge(sam)
    ak.inject(sam, [Resize(256), FeatureAdapter()])
    before = snapshot(sam)
    with pytest.raises(ValueError, match="is linear in the base's weights"):
        ak.merge(sam)
    assert snapshot(sam) == before


def test_tied_weights_are_not_merged_into_each_other(sam: Sam):
    first, other = (sam.get_submodule(f"image_encoder.blocks.{i}.attn.qkv") for i in (0, 1))
    other.register_parameter("weight", first.get_parameter("weight"))
    ak.inject(sam, [LoRA(), Train("neck")])
    before = snapshot(sam)
    tied = r"blocks\.0\.attn\.qkv\.weight and image_encoder\.blocks\.1\.attn\.qkv\.weight are one"
    with pytest.raises(ValueError, match=tied):
        ak.merge(sam)
    assert snapshot(sam) == before
    ak.inject(ak.eject(sam), [LoRA(blocks=(2, 3))])
    ak.merge(sam)

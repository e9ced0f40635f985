"""Every part on an encoder of every family: it works, or is refused with the reason."""

import copy
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.adapters.trial import SITES, TRIED
from adapterkit.attach.attachment import Adapter
from adapterkit.attach.probe import run_once
from adapterkit.encoders import timm_families, transformers_families
from adapterkit.encoders.examples import EXAMPLES
from adapterkit.parts import FeatureAdapter, LoRA, Peft, Resize
from tests.models import snapshot

CONVOLUTIONAL = {"ConvNeXt", "RepVit", "EfficientVit", "EfficientVitMsra", "EdgeTamVisionModel"}
PROJECTED_BY_CONVOLUTIONS = {"timm Levit (convolutions)", "timm MaxxVit (CoAtNet)"}
NOT_AN_IDENTITY = {"PositionAdapter", "Resize"}


@cache
def pristine(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = EXAMPLES[name]().eval()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn_like(each), alpha=0.1)
    # torch's attention is computed otherwise where it is trained.
    return model.requires_grad_(False)


def fresh(name: str) -> nn.Module:
    """A small model of which no layer is without influence, as some are when they are new."""
    return copy.deepcopy(pristine(name))


def tensors(output: Any) -> Iterator[Tensor]:
    """Those in what a model gives: a tensor, a tuple, or an output of transformers."""
    if isinstance(output, Tensor):
        yield output
    elif hasattr(output, "to_tuple"):
        yield from tensors(output.to_tuple())
    elif isinstance(output, tuple | list):
        for each in output:
            yield from tensors(each)


def result(model: nn.Module, size: int) -> Tensor:
    """Of two images, which to an adapter are a sequence."""
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    found = ak.adapters_of(model)
    with found.sequences(frames=2) if found else nullcontext():
        return torch.cat([each.flatten() for each in tensors(model(image))])


@torch.no_grad()
def computed(model: nn.Module, size: int) -> Tensor:
    return result(model, size)


def has_no_influence(name: str) -> bool:
    # Softmax takes no notice of what is added to all keys.
    return "cnn_branch" in name and name.endswith(".k.bias")


def refused(model: nn.Module, parts: Any) -> str | None:
    try:
        ak.inject(model, parts)
    except ValueError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Untouched:
    """A model without adapters, all there is to compare of it, and what it computes."""

    model: nn.Module
    before: dict[str, Any]
    plain: Tensor

    @classmethod
    def of(cls, model: nn.Module) -> "Untouched":
        return cls(model, snapshot(model), computed(model, ak.view(model).image_size))


@pytest.fixture(scope="module")
def untouched() -> Iterator[dict[str, Untouched]]:
    """By example, what the last test has left as it was: a test takes it out, and puts it back when
    it has shown that."""
    with run_once():
        yield {}


@pytest.mark.parametrize("part", TRIED)
@pytest.mark.parametrize("example", EXAMPLES)
def test_a_part_works_or_is_refused(untouched: dict[str, Untouched], example: str, part: str):
    given = untouched.pop(example, None) or Untouched.of(fresh(example))
    model, before, plain = given.model, given.before, given.plain
    base = ak.view(model)
    reason = refused(model, TRIED[part](base))
    if reason is not None:
        assert len(reason) > 40
        assert snapshot(model) == before
        untouched[example] = given
        return
    found = ak.adapters_of(model)
    assert found is not None
    size = found["default"].image_size
    if part not in NOT_AN_IDENTITY:
        assert torch.equal(computed(model, size), plain)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert all("adapterkit.default.added." in name for name in trained)
    with torch.no_grad():  # From its identity, at which some tensors have no gradient.
        for each in trained.values():
            each.add_(torch.randn_like(each), alpha=0.1)
    if trained:
        before_step = result(model, size)
        target = torch.rand(before_step.shape, generator=torch.Generator().manual_seed(2))
        (before_step - target).square().mean().backward()
        for name, each in trained.items():
            assert each.grad is not None, f"{name} takes no part"
            assert each.grad.any() or has_no_influence(name), f"{name} has no influence"
        torch.optim.SGD(trained.values(), lr=0.1).step()
        assert not torch.equal(result(model, size), before_step)
    result(model.train(), size)
    assert snapshot(ak.eject(model.eval())) == before
    assert torch.equal(computed(model, base.image_size), plain)
    untouched[example] = given


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_encoder_takes_lora_and_feature_adapters(example: str):
    model = fresh(example)
    base = ak.view(model)
    convolutional = example.split(" ")[1] in CONVOLUTIONAL
    assert all("block_out" in block.sites for block in base.blocks)
    has_all = any({*SITES[1:-1]} <= {*block.sites} for block in base.blocks)
    assert has_all != convolutional
    projecting = [block for block in base.blocks if {*"qkv"} <= {*block.projections}]
    assert bool(projecting) == (not convolutional and example not in PROJECTED_BY_CONVOLUTIONS)


def test_every_family_that_is_described_has_an_example():
    described = {**timm_families.FAMILIES, **transformers_families.FAMILIES}
    families = {ak.view(pristine(example)).family for example in EXAMPLES}
    assert {each.family for each in described.values()} <= families


@pytest.mark.parametrize("model", ["ViTModel", "SiglipVisionModel", "CLIPVisionModel"])
def test_resize_is_transformers_own_interpolation(model: str):
    encoder = fresh(f"transformers {model}")
    image = torch.rand(1, 3, 128, 128)
    expected = encoder(image, interpolate_pos_encoding=True).last_hidden_state
    ak.inject(encoder, [Resize(128, antialias=False)])
    torch.testing.assert_close(encoder(image).last_hidden_state, expected)


@pytest.mark.parametrize(
    "example",
    [
        "transformers Dinov2Model",
        "transformers DINOv3ViTModel",
        "transformers SegformerModel",
        "timm HieraDet (SAM 2)",
        "timm DaVit",
        "timm PyramidVisionTransformerV2",
        "timm Xcit",
        "timm ConvNeXt",
    ],
)
def test_where_any_size_is_taken_resize_changes_nothing_but_the_grid(example: str):
    encoder = fresh(example)
    expected = computed(encoder, 128)
    ak.inject(encoder, [Resize(128, antialias=False)])
    torch.testing.assert_close(computed(encoder, 128), expected)
    with pytest.raises(ValueError, match="64x64 pixels, but this encoder was adapted to 128x128"):
        computed(encoder, 64)


def test_batch_norms_keep_their_statistics_while_adapters_train():
    model = fresh("timm RepVit")
    before = {name: each.clone() for name, each in model.named_buffers()}
    ak.inject(model, [FeatureAdapter(at="block_out")])
    replica = copy.deepcopy(model).train()
    evaluated = computed(model.eval(), 64)
    assert torch.equal(computed(replica, 64), evaluated)
    assert all(torch.equal(each, before[name]) for name, each in replica.named_buffers())
    ak.eject(replica)
    assert not torch.equal(computed(replica, 64), evaluated)
    with pytest.raises(ValueError, match="is a batch norm, whose statistics"):
        ak.inject(model, [Peft("LNTuningConfig", {"target_modules": ["conv.bn"]})], name="norms")


def test_hieradet_says_which_sizes_its_windows_take():
    with pytest.raises(
        ValueError, match=r"no multiple of this encoder's windows, 8; .* multiple of 32"
    ):
        ak.inject(fresh("timm HieraDet (SAM 2)"), [Resize(80)])


def test_what_functions_remember_of_a_dry_run_is_forgotten():
    model = fresh("transformers BeitModel")
    expected = computed(copy.deepcopy(model), 64)
    cached = type(model.get_submodule("layers.0.relative_position_bias"))
    # By its name, since types know of no cache around it.
    index = getattr(cached, "generate_relative_position_index")  # noqa: B009
    ak.inject(model, [FeatureAdapter()])
    assert not index((4, 4)).is_meta
    assert torch.equal(computed(model, 64), expected)


MODULES = {name.partition(".")[0] for name in timm_families.FAMILIES}
VARIANTS = [
    name
    for name in timm.list_models()
    if timm.model_entrypoint(name).__module__.rpartition(".")[2] in MODULES
]


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_timm_is_taken(name: str):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    base = ak.view(model)
    Adapter(base, [FeatureAdapter(at="block_out")])
    if any(block.projections for block in base.blocks):
        Adapter(base, [LoRA(), FeatureAdapter(at="mlp"), FeatureAdapter(at="attn_in")])
    else:
        convolutional = "convnext|repvit|efficientvit|coatne|levit_conv|fastvit|maxvit_tiny_pm"
        assert re.search(convolutional, name)

"""Any legal list of parts injects, runs, trains only what it says, saves, loads and ejects."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.attach.attachment import Part
from adapterkit.parts import (
    CNNBranch,
    FeatureAdapter,
    LoRA,
    Normalise,
    PositionAdapter,
    Resize,
    Train,
)
from tests.models import TINY, snapshot

PATCH = 16
SITES = ("attn_in", "attn_out", "mlp", "block_out")


@dataclass(frozen=True)
class Case:
    """A family's small encoder, and how to make it."""

    family: str
    build: Callable[[], nn.Module]
    examples: int

    def __str__(self) -> str:
        return self.family


def small_timm(name: str, **arguments: Any) -> nn.Module:
    sizes = {"depth": 4, "embed_dim": 48, "num_heads": 2, "num_classes": 3, "img_size": 64}
    torch.manual_seed(0)
    return timm.create_model(name, **{**sizes, **arguments}).eval()


SAM = replace(TINY, image_size=128, window_size=3)
CASES = [
    Case("segment_anything", lambda: ak.build_sam(SAM, seed=0).image_encoder, 40),
    Case("timm_vit", lambda: small_timm("vit_small_patch16_224", reg_tokens=2), 25),
    Case("timm_eva", lambda: small_timm("eva02_tiny_patch14_224", patch_size=PATCH), 20),
    Case("timm_beit", lambda: small_timm("beit_base_patch16_224"), 20),
]


@cache
def pristine(case: Case) -> nn.Module:
    return case.build()


def fresh(case: Case) -> nn.Module:
    return copy.deepcopy(pristine(case))


def selections(case: Case, wanted: set[int] | None = None) -> st.SearchStrategy[Any]:
    """Selections of blocks, of any that the encoder has or of the `wanted` alone."""
    blocks = ak.view(pristine(case)).blocks
    indices = sorted(wanted if wanted is not None else {block.index for block in blocks})
    chosen = st.sets(st.sampled_from(indices), min_size=1).map(lambda found: tuple(sorted(found)))
    if wanted is not None:
        return chosen
    words = ["all", "global"]
    if not all(block.attends_globally for block in blocks):
        words.append("windowed")
    return chosen | st.sampled_from(words)


@st.composite
def legal_lists(draw: st.DrawFn, case: Case) -> list[Part]:
    """Lists of parts of which none is refused, and in which none hides another."""
    base = ak.view(pristine(case))
    parts: list[Part] = []
    if draw(st.booleans()):
        stride = draw(st.sampled_from([None, 4, 8, 12, 16]))
        grid = draw(st.integers(2, 8))
        parts.append(Resize(grid * (stride or PATCH), stride, draw(st.booleans())))
    components = draw(st.sets(st.sampled_from(sorted(base.components))))
    if "image_encoder" in components:
        components = {"image_encoder"}
    others: list[Part] = [Train(what) for what in sorted(components)]
    if draw(st.booleans()):
        others.append(Normalise(std=(draw(st.floats(0.1, 255)), 1.0, 2.0)))
    if base.pos_embed is not None and draw(st.booleans()):
        others.append(PositionAdapter())
    if any(block.rel_pos for block in base.blocks) and "image_encoder" not in components:
        others += draw(st.lists(selections(case).map(lambda b: Train("rel_pos", b)), max_size=1))
    features = st.builds(
        FeatureAdapter,
        at=st.sampled_from(("tokens", "output", *SITES)),
        blocks=selections(case),
        scale=st.sampled_from([1.0, 0.5, -2.0]),
        reduction=st.integers(1, 48),
        zero_init=st.booleans(),
    )
    others += draw(st.lists(features, max_size=4, unique_by=lambda part: part.at))  # pyright: ignore[reportArgumentType, reportCallIssue]
    if draw(st.booleans()):
        scale = draw(st.sampled_from([0.5, 1.0] if base.reads_patches else [0.0]))
        others.append(CNNBranch(draw(selections(case)), stem_channels=4, output_scale=scale))
    if draw(st.booleans()):
        # Two LoRAs may stand beside each other on different slices.
        targets = draw(st.permutations("qkv"))
        cuts = sorted(draw(st.sets(st.integers(1, 3), min_size=1, max_size=2)))
        for first, end in zip([0, *cuts], cuts, strict=False):
            rank, alpha = draw(st.integers(1, 24)), draw(st.sampled_from([None, 4.0]))
            others.append(LoRA(rank, tuple(targets[first:end]), draw(selections(case)), alpha))  # pyright: ignore[reportArgumentType]
    parts += draw(st.permutations(others))
    return parts or [FeatureAdapter()]


@st.composite
def any_lists(draw: st.DrawFn, case: Case) -> list[Part]:
    """Lists of parts that fit, with perhaps one put in anywhere that may not."""
    parts = draw(legal_lists(case))
    strays = st.one_of(
        st.builds(Resize, st.integers(-1, 200), st.none() | st.integers(-1, 20)),
        st.builds(FeatureAdapter, at=st.sampled_from(SITES), reduction=st.integers(-1, 60)),
        st.builds(FeatureAdapter, blocks=st.sampled_from([(), (99,), (-1,), "windowed", "some"])),
        st.builds(Train, st.sampled_from(["rel_pos", "neck", "head", "mask_decoder", ""])),
        st.builds(LoRA, rank=st.integers(1, 60)),
        st.builds(CNNBranch, blocks=st.sampled_from(["windowed", (0,), (7,)])),
        st.just(PositionAdapter()),
    )
    for stray in draw(st.lists(strays, max_size=1)):
        parts.insert(draw(st.integers(0, len(parts))), stray)
    return parts


def outputs(model: Any, size: int) -> Tensor:
    """What reaches every parameter: timm's classification alone may see the class token only."""
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    if not hasattr(model, "forward_head"):
        return model(image).flatten()
    features = model.forward_features(image)
    return torch.cat((features.flatten(), model.forward_head(features).flatten()))


ADDED_BY = {
    FeatureAdapter: "feature_adapter",
    PositionAdapter: "position_adapter",
    CNNBranch: "cnn_branch",
    LoRA: "lora",
    Train: "trained",
}


def check_that_it_works(case: Case, parts: list[Part]) -> None:
    model = fresh(case)
    before = snapshot(model)
    ak.inject(model, parts)
    found = ak.adapters_of(model)
    assert found is not None
    size = found["default"].image_size
    added = dict(found["default"].added.named_parameters())
    expected = {ADDED_BY[type(part)] for part in parts if type(part) in ADDED_BY}
    assert {name.split(".")[0] for name in added} == expected

    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {f"adapterkit.default.added.{name}" for name in added}
    if added:
        initial = {name: each.detach().clone() for name, each in added.items()}
        optimizer = torch.optim.Adam(added.values(), lr=1e-2)
        outputs(model, size).square().mean().backward()
        optimizer.step()
        for name, each in added.items():
            assert each.grad is not None, f"{name} takes no part in the forward"
            assert not torch.equal(each, initial[name]) or each.grad.abs().max() < 1e-6, name
    assert all(each.grad is None for name, each in model.named_parameters() if name not in trained)

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        ak.save_adapter(model, Path(folder) / "adapter.safetensors")
        loaded = ak.load_adapter(fresh(case), Path(folder) / "adapter.safetensors")
        kept = loaded.get_submodule("adapterkit.default.added").state_dict()
        assert kept.keys() == added.keys()
        assert all(torch.equal(kept[name], each) for name, each in added.items())
        assert torch.equal(outputs(loaded, size), outputs(model, size))
    for each in (model, loaded):
        assert snapshot(ak.eject(each)) == before


def taken(case: Case, parts: list[Part]) -> bool:
    """Whether `inject` takes the list; either way nothing of it is left behind."""
    model = fresh(case)
    before = snapshot(model)
    try:
        ak.inject(model, parts)
    except ValueError:
        assert snapshot(model) == before
        return False
    assert snapshot(ak.eject(model)) == before
    return True


def each_of(examples: int) -> settings:
    """Of so many lists by `--hypothesis-profile=thorough`; else of a quarter."""
    if settings.get_current_profile_name() != "thorough":
        examples //= 4
    slow = [HealthCheck.too_slow]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=slow
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_legal_list_of_parts_works(case: Case):
    @each_of(case.examples)
    @given(legal_lists(case))
    def test(parts: list[Part]) -> None:
        check_that_it_works(case, parts)

    test()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_list_is_taken_or_refused_without_a_trace(case: Case):
    outcomes: set[bool] = set()

    @each_of(case.examples)
    @given(any_lists(case))
    def test(parts: list[Part]) -> None:
        outcomes.add(taken(case, parts))

    test()
    assert outcomes == {True, False}


def test_resize_comes_before_what_is_made_for_its_grid():
    case = CASES[0]
    model = fresh(case)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"Resize\(image_size=64.*put it before the other parts"):
        ak.inject(model, [CNNBranch(stem_channels=4), Resize(64)])
    assert snapshot(model) == before


@pytest.mark.parametrize("case", CASES, ids=str)
def test_components_are_those_that_can_be_trained(case: Case):
    components = ak.view(pristine(case)).components
    assert all(any(True for _ in each.parameters()) for each in components.values())
    with pytest.raises(ValueError, match="expected 'rel_pos' or a component"):
        ak.inject(fresh(case), [Train("no such component")])

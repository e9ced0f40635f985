"""An encoder of the user's own, and models with an encoder in them."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.encoders import registry
from adapterkit.encoders.described import BlockNames, Description
from adapterkit.encoders.views import ViT
from adapterkit.parts import FeatureAdapter, LoRA, Train
from tests.models import snapshot, train_one_step

IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.trunk = nn.ModuleList(Block(16, num_heads=2) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).mT
        for block in self.trunk:
            x = block(x)
        return self.head(x.mean(dim=1))


MINE = Description("mine", patch_embed="stem", blocks=(BlockNames(r"trunk\.\d+"),))


def view_of_mine(model: nn.Module) -> ViT:
    return MINE.view(model, image_size=32)


@pytest.fixture(autouse=True)
def no_class_stays_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CLASSES", {})
    monkeypatch.setattr(registry, "_FAMILIES", [*registry._FAMILIES])


def test_a_view_given_to_inject_is_known_from_then_on(tmp_path: Path):
    torch.manual_seed(0)
    model = Mine().eval()
    other, before, plain = copy.deepcopy(model), snapshot(model), model(IMAGE)
    with pytest.raises(TypeError, match=r"Mine are; expected .* give inject a view"):
        ak.inject(model, [LoRA()])
    ak.inject(model, [LoRA(), FeatureAdapter(), Train("head")], view=view_of_mine)
    train_one_step(model, IMAGE)
    ak.save_adapter(model, tmp_path / "mine.safetensors")
    ak.load_adapter(other, tmp_path / "mine.safetensors")
    assert torch.equal(other(IMAGE), model(IMAGE))
    assert not torch.equal(model(IMAGE), plain)
    assert snapshot(ak.eject(model)) == before


def test_a_family_of_ones_own_is_registered():
    @ak.register_family
    def mine(model: nn.Module) -> ViT | None:
        return view_of_mine(model) if isinstance(model, Mine) else None

    found = ak.view(Mine())
    assert (found.family, found.patch_size, found.grid) == ("mine", 8, (4, 4))
    assert [*found.components] == ["image_encoder", "head"]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            Description("x", "patches", (BlockNames(r"trunk\.\d+"),)),
            "no module 'patches'; it has stem",
        ),
        (
            Description("x", "stem", (BlockNames("blocks"),)),
            "no module .* a path that blocks match",
        ),
        (Description("x", "trunk.0.norm1", (BlockNames(r"trunk\.\d+"),)), "neither an nn.Conv2d"),
        (
            Description("x", "stem", (BlockNames(r"trunk\.\d+"),), prefix_tokens=1),
            r"of shape \(2, 16, 16\) .* no square grid",
        ),
        (Description("x", "stem", (BlockNames(r"trunk\.\d+", attn_in="nrom"),)), "attn_in='nrom'"),
        (Description("x", "stem", (BlockNames(r"trunk\.\d+\.mlp"),)), "attn_in='norm1': no block"),
    ],
)
def test_a_description_that_does_not_fit_is_told(description: Description, message: str):
    with pytest.raises(ValueError, match=message):
        description.view(Mine(), image_size=32)


def test_an_image_size_that_does_not_fit_is_told():
    with pytest.raises(ValueError, match="mine encoder does not take an image of 4x4 pixels"):
        MINE.view(Mine(), image_size=4)


def test_what_is_seen_is_seen_once(monkeypatch: pytest.MonkeyPatch):
    model = Mine()
    view_of_mine(model)
    monkeypatch.setattr(nn.Module, "__call__", None)
    assert view_of_mine(model).grid == (4, 4)


def test_what_is_seen_does_not_keep_the_model():
    model = Mine()
    view_of_mine(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_changed_model_is_seen_again():
    model = Mine()
    view_of_mine(model)
    model.trunk.append(Block(16, num_heads=2))
    assert len(view_of_mine(model).blocks) == 3


class Segments(nn.Module):
    """A backbone with a linear head on its patch tokens."""

    def __init__(self, **options: Any):
        super().__init__()
        sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8}
        backbone = timm.create_model("vit_small_patch16_224", num_classes=0, **sizes, **options)
        self.net = nn.ModuleDict({"backbone": backbone, "head": nn.Conv2d(32, 5, 1)})

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.net["backbone"].forward_features(image)[:, 1:]  # pyright: ignore[reportCallIssue]
        return self.net["head"](tokens.mT.unflatten(2, (4, 4)))


def test_a_model_around_an_encoder_is_adapted_with_its_head(tmp_path: Path):
    torch.manual_seed(0)
    model = Segments().eval()
    before, other = snapshot(model), copy.deepcopy(model)
    assert "net.head" in ak.view(model).components
    ak.inject(model, [LoRA(), Train("net.head")])
    train_one_step(model, IMAGE)
    ak.save_adapter(model, tmp_path / "segments.safetensors")
    nn.init.normal_(other.net["head"].weight)  # pyright: ignore[reportArgumentType]
    ak.load_adapter(other, tmp_path / "segments.safetensors")
    assert torch.equal(other(IMAGE), model(IMAGE))
    assert snapshot(ak.eject(model)) == before


def test_a_model_with_several_encoders_is_refused():
    both = nn.ModuleDict({"left": Segments(), "right": Segments()})
    with pytest.raises(TypeError, match=r"several encoders: left.net.backbone, right.net.backbone"):
        ak.view(both)

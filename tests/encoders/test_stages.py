"""Parts take sizes from their sites, so that an encoder may have several stages."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.adapters.named import Adapters
from adapterkit.attach.attachment import Attachment
from adapterkit.encoders import registry
from adapterkit.encoders.tokens import TokenLayout
from adapterkit.encoders.views import Block, Site, Stage, ViT, projections
from adapterkit.parts import Bottleneck, CNNBranch, FeatureAdapter, LoRA, LowRankUpdate, Resize
from tests.models import snapshot, train_one_step

ROW = TokenLayout("row")
IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


class Pyramid(nn.Module):
    """A hierarchical ViT: two stages of two blocks, the second with a quarter of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 8, stride=8)
        self.stage1 = nn.ModuleList(TimmBlock(16, num_heads=2) for _ in range(2))
        self.merge = nn.Conv2d(16, 32, 2, stride=2)
        self.stage2 = nn.ModuleList(TimmBlock(32, num_heads=4) for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image).permute(0, 2, 3, 1)
        side = x.shape[1]
        x = x.flatten(1, 2)
        for block in self.stage1:
            x = block(x)
        x = self.merge(x.unflatten(1, (side, side)).permute(0, 3, 1, 2)).flatten(2).mT
        for block in self.stage2:
            x = block(x)
        return x


def pyramid_view(model: nn.Module) -> ViT | None:
    if not isinstance(model, Pyramid):
        return None
    stages: list[Stage] = []
    for blocks, width, side in ((model.stage1, 16, 8), (model.stage2, 32, 4)):
        site = partial(Site, width=width, grid=(side, side), layout=ROW)
        first = sum(len(stage.blocks) for stage in stages)
        found = tuple(_block(first + i, each, site) for i, each in enumerate(blocks))
        stages.append(Stage(found, width, (side, side)))
    return ViT(
        family="pyramid",
        model=model,
        encoder=model,
        components={"image_encoder": model},
        patch_embed=model.patch_embed,
        patch_projection=model.patch_embed,
        tokens=Site((model.patch_embed,), 16, (8, 8), TokenLayout()),
        pos_embed=None,
        stages=tuple(stages),
        output=Site((stages[-1].blocks[-1].module,), 32, (4, 4), ROW),
        image_size=64,
        patch_size=8,
        resizer=lambda changes, to: None,
    )


def _block(index: int, block: Any, site: Any) -> Block:
    sites = {
        "attn_in": site((block.norm1,)),
        "attn_out": site((block.attn,)),
        "mlp": site((block.mlp,), kind="parallel"),
        "block_out": site((block,)),
    }
    layers = projections(qkv=block.attn.qkv)
    return Block(
        index, block, sites, layers, block.attn.num_heads, attends_globally=True, rel_pos=()
    )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Pyramid:
    monkeypatch.setattr(registry, "_FAMILIES", [*registry._FAMILIES, pyramid_view])
    torch.manual_seed(0)
    return Pyramid().eval()


def found(model: nn.Module) -> Adapters:
    adapters = ak.adapters_of(model)
    assert adapters is not None
    return adapters


def test_every_part_has_the_width_of_its_stage_and_ejects(model: Pyramid):
    before, base = snapshot(model), model(IMAGE)
    parts = [
        *(FeatureAdapter(at=at) for at in ("attn_in", "attn_out", "mlp", "block_out", "output")),
        LoRA(),
        CNNBranch(blocks=(2, 3), stem_channels=4, zero_init=True),
    ]
    ak.inject(model, parts)
    assert torch.equal(model(IMAGE), base)
    added = found(model)["default"].added
    widths = [added.get_submodule(f"feature_adapter.mlp.{i}.down").in_features for i in range(4)]
    assert widths == [16, 16, 32, 32]
    assert added.get_submodule("feature_adapter.output.down").in_features == 32
    train_one_step(model, IMAGE)
    assert not torch.equal(model(IMAGE), base)
    ak.eject(model)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("blocks", "scale", "width", "side"), [((0, 1), 0.0, 16, 8), ((2,), 0.5, 32, 4)]
)
def test_the_cnn_branch_reaches_the_stage_that_reads_it(
    model: Pyramid, blocks: tuple[int, ...], scale: float, width: int, side: int
):
    ak.inject(model, [CNNBranch(blocks=blocks, stem_channels=4, output_scale=scale)])
    model(IMAGE)
    values = found(model)["default"].context.values
    assert {tuple(each.shape) for each in values.values()} == {(2, width, side, side)}


def test_the_cnn_branch_meets_each_stage_at_its_stride(model: Pyramid):
    ak.inject(model, [CNNBranch(blocks="all", stem_channels=4)])
    model(IMAGE).square().mean().backward()
    shapes = [tuple(each.shape) for each in found(model)["default"].context.values.values()]
    assert shapes == 2 * [(2, 16, 8, 8)] + 3 * [(2, 32, 4, 4)]
    for name, each in found(model)["default"].added.named_parameters():
        # Softmax takes no notice of what is added to all keys.
        assert each.grad is not None
        assert each.grad.any() or name.endswith(".k.bias"), name


def test_the_cnn_branch_refuses_tokens_within_windows(model: Pyramid):
    base, windows = ak.view(model), TokenLayout("windows")
    block = base.blocks[0]
    sites = {**block.sites, "attn_in": replace(block.sites["attn_in"], layout=windows)}
    stage = replace(base.stages[0], blocks=(replace(block, sites=sites),))
    with pytest.raises(
        ValueError, match=r"CNNBranch\(blocks=\(0,\)\): the tokens .* within windows"
    ):
        CNNBranch(blocks=(0,)).attach(Attachment(replace(base, stages=(stage,))))


def test_all_stages_follow_another_size(model: Pyramid):
    ak.inject(model, [Resize(128), CNNBranch(blocks=(3,), stem_channels=4)])
    assert model(torch.rand(1, 3, 128, 128)).shape == (1, 64, 32)
    values = found(model)["default"].context.values
    assert {tuple(each.shape) for each in values.values()} == {(1, 32, 8, 8)}


def test_blocks_are_selected_by_stage(model: Pyramid):
    found = ak.view(model)
    assert [block.index for block in found.select("last_of_stage")] == [1, 3]
    # All attend globally; of several stages, the last blocks see the most.
    assert [block.index for block in found.select("global")] == [1, 3]
    with pytest.raises(
        ValueError, match=r"'windowed' selects none of .* last of a stage are \[1, 3\]"
    ):
        found.select("windowed")
    with pytest.raises(
        ValueError, match="blocks='some': expected 'all', 'global', 'windowed', 'last"
    ):
        found.select("some")  # pyright: ignore[reportArgumentType]


def test_lora_updates_the_rows_of_each_group():
    update = LowRankUpdate(5, (2, 3), rank=2, groups=3)
    torch.nn.init.normal_(update.b)
    weight = torch.randn(12, 5)
    changed = (update(weight) != weight).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [2, 6, 10]
    torch.testing.assert_close(update(weight)[[2, 6, 10]], weight[[2, 6, 10]] + update.b @ update.a)


class Several(nn.Module):
    """What gives a tuple, as attention with its weights, of maps with channels first."""

    def forward(self, maps: Tensor) -> tuple[None, Tensor, int]:
        return None, 2 * maps, 3


def test_a_part_adds_to_one_item_of_a_tuple_with_channels_first(model: Pyramid):
    layout = TokenLayout("channels_first")
    site = Site((Several(),), 4, (3, 3), layout, item=1)
    to = Attachment(ak.view(model))
    block = replace(to.view.blocks[0], sites={"block_out": site})
    adapter = Bottleneck(4, zero_init=False)
    to.add_residual("block_out", adapter, scale=0.5, block=block)
    maps = torch.randn(2, 4, 3, 3)
    for action in to.actions:
        action.apply()
    first, result, last = site.modules[0](maps)
    tokens = 2 * maps.permute(0, 2, 3, 1)
    expected = (tokens + 0.5 * adapter(tokens)).permute(0, 3, 1, 2)
    assert (first, last) == (None, 3)
    torch.testing.assert_close(result, expected)

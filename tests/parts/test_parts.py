"""The modules behind the parts, alone; and how views select blocks."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import get_rel_pos

import adapterkit as ak
from adapterkit.parts import Bottleneck, ConvBranch, CrossBranchAttention, PooledPosition
from adapterkit.parts.resize import FitGrid
from adapterkit.parts.train import resize_rel_pos


@given(
    width=st.integers(4, 32),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=20)
def test_a_bottleneck_keeps_any_token_layout(width: int, shape: list[int]):
    adapter = Bottleneck(width, zero_init=False)
    tokens = torch.randn(*shape, width)
    expected = F.gelu(tokens @ adapter.down.weight.T + adapter.down.bias)
    expected = expected @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(adapter(tokens), expected)
    assert not Bottleneck(width)(tokens).any()


@pytest.mark.parametrize(("halvings", "grid"), [(0, 16), (1, 8), (2, 4)])
def test_pooled_position_halves_the_grid(halvings: int, grid: int):
    adapter = PooledPosition(8, halvings)
    assert adapter(torch.randn(1, 16, 16, 8)).shape == (1, grid, grid, 8)


def test_the_branch_gives_a_map_per_block_and_one_more():
    branch = ConvBranch(width=16, halvings=3, refinements=2, stem_channels=4)
    maps = branch(torch.rand(2, 3, 32, 48))
    assert [each.shape for each in maps] == [(2, 16, 4, 6)] * 3
    torch.testing.assert_close(branch.refine[1](maps[1]), maps[2])


def test_the_branch_reaches_a_grid_that_halving_does_not():
    branch = ConvBranch(width=16, halvings=3, refinements=1, stem_channels=4, grid=(5, 5))
    assert [each.shape for each in branch(torch.rand(2, 3, 70, 70))] == [(2, 16, 5, 5)] * 2


@pytest.mark.parametrize("tokens", [(2, 5, 16), (2, 3, 4, 16)])
def test_cross_branch_attention_is_multi_head_attention(tokens: tuple[int, ...]):
    attention = CrossBranchAttention(width=16, num_heads=4)
    reference = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    layers = (attention.q, attention.k, attention.v)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        reference.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        reference.out_proj.load_state_dict(attention.proj.state_dict())
    x, features = torch.randn(tokens), torch.randn(2, 16, 3, 2)
    pixels = features.flatten(2).mT
    expected, _ = reference(x.flatten(1, -2), pixels, pixels)
    torch.testing.assert_close(attention(x, features), expected.view_as(x))


def test_cross_branch_attention_needs_heads_that_divide_the_width():
    with pytest.raises(ValueError, match="num_heads=3 does not divide the token width, 16"):
        CrossBranchAttention(16, 3)


def test_fit_grid_keeps_a_fitting_embedding_and_resizes_another():
    embedding = torch.randn(1, 8, 8, 4)
    assert FitGrid((8, 8))(embedding) is embedding
    assert FitGrid((5, 5))(embedding).shape == (1, 5, 5, 4)
    flat = torch.ones(1, 8, 8, 4)
    torch.testing.assert_close(FitGrid((3, 3))(flat), torch.ones(1, 3, 3, 4))


@pytest.mark.parametrize(("old", "new"), [(64, 32), (14, 14), (16, 20)])
def test_relative_positions_are_resized_as_sam_resizes_them(old: int, new: int):
    table = torch.randn(2 * old - 1, 8)
    resized = resize_rel_pos(table, 2 * new - 1)
    torch.testing.assert_close(get_rel_pos(new, new, resized), get_rel_pos(new, new, table))


def test_a_view_names_the_sites(sam: Sam):
    found = ak.view(sam)
    assert found.family == "segment_anything"
    assert (found.image_size, found.grid, found.in_channels) == (1024, (64, 64), 3)
    assert [block.index for block in found.blocks if block.attends_globally] == [2, 5]
    [stage] = found.stages
    assert (stage.width, stage.grid, stage.blocks) == (48, (64, 64), found.blocks)
    for site, module in (
        (found.site("tokens"), sam.image_encoder.patch_embed),
        (found.site("attn_in", found.blocks[3]), sam.image_encoder.blocks[3].norm1),
        (found.site("output"), sam.image_encoder.blocks[5]),
    ):
        assert site.modules == (module,)
        assert (site.width, site.grid, site.kind) == (48, (64, 64), "output")
    assert found.site("mlp", found.blocks[0]).kind == "parallel"
    assert set(found.components) >= {"mask_decoder", "prompt_encoder", "neck"}


def test_an_absent_site_is_named_with_those_there_are(sam: Sam):
    found = ak.view(sam)
    with pytest.raises(ValueError, match="segment_anything encoder has no site 'x'; there is tok"):
        found.site("x")
    with pytest.raises(ValueError, match="no site 'tokens' in block 3; there is attn_in, attn_out"):
        found.site("tokens", found.blocks[3])


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("global", [2, 5]),
        ("windowed", [0, 1, 3, 4]),
        ([4, 1], [1, 4]),
        (range(2), [0, 1]),
        (lambda block: block.index > 3, [4, 5]),
    ],
)
def test_blocks_are_selected_in_order(sam: Sam, blocks, expected: list[int]):
    assert [block.index for block in ak.view(sam).select(blocks)] == expected


def test_the_tests_check_shapes():
    with pytest.raises(TypeCheckError):
        FitGrid((2, 2))(torch.zeros(8, 8, 4))

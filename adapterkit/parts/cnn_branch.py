"""The CNN branch: local detail beside the transformer, read by cross-branch attention."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.attach.context import Read
from adapterkit.encoders.tokens import TokenLayout
from adapterkit.encoders.views import Block, Blocks
from adapterkit.parts.conv import ConvBlock
from adapterkit.parts.registry import register_part
from adapterkit.system.pages import see


class ConvBranch(nn.Module):
    """A convolutional pyramid that reaches the token grid, then one refinement per attending block.

    A single-conv block (image -> c), then conv-pool blocks (c -> 2c -> 4c ... -> d), one for each
    halving from the image to the token grid, then `refinements` single-conv blocks (d -> d).

    Source: SAMUS (Lin et al. 2023), CNN branch.

    Args:
        width: d, channels of a token.
        halvings: log2 of pixels per token, rounded down.
        refinements: how many blocks read the branch.
        stem_channels: c.
        channels_in: of the image.
        grid: rows and columns of tokens, to which the first map is interpolated bilinearly where
            halving does not reach it (patches of 14 pixels); None: what halving gives.
    """

    def __init__(
        self,
        width: int,
        halvings: int,
        refinements: int,
        stem_channels: int = 64,
        grid: tuple[int, int] | None = None,
        channels_in: int = 3,
    ):
        super().__init__()
        self.grid = grid
        self.widths = [stem_channels * 2**i for i in range(halvings)] + [width]
        self.stem = ConvBlock(channels_in, self.widths[0])
        self.pools = nn.Sequential(
            *(ConvBlock(narrow, wide, pool=True) for narrow, wide in pairwise(self.widths))
        )
        self.refine = nn.ModuleList(ConvBlock(width, width) for _ in range(refinements))

    def forward(self, image: Float[Tensor, "b channels H W"]) -> list[Float[Tensor, "b width h w"]]:
        """The maps that the attending blocks read, in order, and the refined map after the last."""
        return list(self.levels(image))[len(self.pools) + 1 :]

    def levels(self, image: Float[Tensor, "b channels H W"]) -> Iterator[Float[Tensor, "b c h w"]]:
        """The map at each stride, 1, 2, 4 ..., and then what `forward` gives."""
        # In this layout norms and tokens, channels last too, are views of the convolutions' maps.
        level = self.stem(image.contiguous(memory_format=torch.channels_last))
        yield level
        for pool in self.pools:
            level = pool(level)
            yield level
        level = level if self.grid is None else _on_grid(level, self.grid)
        yield level
        for refine in self.refine:
            level = refine(level)
            yield level


def _on_grid(level: Float[Tensor, "b c H W"], grid: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    if tuple(level.shape[-2:]) == grid:
        return level
    return F.interpolate(level, grid, mode="bilinear", align_corners=False)


class DeeperBranch(nn.Module):
    """The branch from the tokens of one stage on to those of another: pooled, then refined.

    Args:
        width_in: channels of the map that it goes on from.
        width: of a token of this stage.
        halvings: log2 of how many times smaller this stage's grid is, rounded down.
        refinements: as in `ConvBranch`, within this stage.
        grid: rows and columns of tokens, to which the first map is interpolated where halving does
            not reach it.
    """

    def __init__(
        self, width_in: int, width: int, halvings: int, refinements: int, grid: tuple[int, int]
    ):
        super().__init__()
        self.grid = grid
        pooled = [ConvBlock(width_in, width, pool=halvings > 0)]
        pooled += [ConvBlock(width, width, pool=True) for _ in range(halvings - 1)]
        self.pools = nn.Sequential(*pooled)
        self.refine = nn.ModuleList(ConvBlock(width, width) for _ in range(refinements))

    def forward(self, before: Float[Tensor, "b c H W"]) -> list[Float[Tensor, "b width h w"]]:
        """The maps that this stage's attending blocks read, in order."""
        level = _on_grid(self.pools(before), self.grid)
        maps = [level]
        for refine in self.refine:
            maps.append(refine(maps[-1]))
        return maps


class AllStages:
    """What the branch computes of an image: the first stage's maps, and from these the others'."""

    def __init__(self, first: ConvBranch, deeper: list[DeeperBranch]):
        self.first = first
        self.deeper = deeper

    def __call__(self, image: Float[Tensor, "b channels H W"]) -> Iterator[Tensor]:
        level = image
        for level in self.first.levels(image):
            yield level
        for stage in self.deeper:
            maps = stage(level)
            yield from maps
            level = maps[-1]


class CrossBranchAttention(nn.Module):
    """Multi-head attention with tokens as queries and a map of the CNN branch as keys and values.

    Source: SAMUS (Lin et al. 2023), cross-branch attention; no relative positions, as published.

    Args:
        width: channels of a token and of the map.
        num_heads: must divide `width`.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the token width, {width}")
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "b *grid width"], features: Float[Tensor, "b width h w"]
    ) -> Float[Tensor, "b *grid width"]:
        queries = self._heads(self.q(tokens.flatten(1, -2)))
        pixels = rearrange(features, "b c h w -> b (h w) c")
        attended = self.attend(queries, self._heads(self.k(pixels)), self._heads(self.v(pixels)))
        return self.proj(rearrange(attended, "b heads n d -> b n (heads d)")).view_as(tokens)

    def attend(
        self,
        q: Float[Tensor, "b heads n d"],
        k: Float[Tensor, "b heads m d"],
        v: Float[Tensor, "b heads m d"],
    ) -> Float[Tensor, "b heads n d"]:
        """softmax(q k^T / sqrt(d)) v."""
        return F.scaled_dot_product_attention(q, k, v)

    def _heads(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b heads n d"]:
        return rearrange(x, "b n (heads d) -> b heads n d", heads=self.num_heads)


class AttendToMap:
    """What a block adds to its attention's input: cross-branch attention to its map."""

    def __init__(self, attention: CrossBranchAttention, read: Read):
        self.attention = attention
        self.read = read

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.attention(tokens, self.read())


class LastMap:
    """What is added to the last block's output: the branch's last map, at the patch tokens."""

    def __init__(self, read: Read, layout: TokenLayout):
        self.read = read
        self.layout = layout

    def __call__(self, tokens: Float[Tensor, "b *n width"]) -> Float[Tensor, "b *n width"]:
        return self.layout.of_grid(rearrange(self.read(), "b c h w -> b h w c"))


@register_part
@dataclass(frozen=True)
class CNNBranch:
    """A CNN on the image, read by cross-branch attention in some blocks and added at the end.

    In each chosen block, at `attn_in`: x + MHA(q = x, k = v = map); the map then passes the next
    single-conv block. After the last block, at the patch tokens: x + output_scale * map. In an
    encoder of several stages the pyramid goes on from each that reads it to the next, and meets
    each at its own stride.

    Args:
        blocks: which blocks attend to the branch.
        stem_channels: channels at full resolution; doubled at each pooling, up to the token width.
        output_scale: factor of the last map, added to the last block's output; 0: there is none,
            as it has to be where the encoder reads a class token alone.
        zero_init: start as the identity: the attention's projection, and the scale of the last
            map's normalisation, are zero. SAMUS starts from random weights instead.
    """

    blocks: Blocks = "global"
    stem_channels: int = 64
    output_scale: float = 0.5
    zero_init: bool = False

    def attach(self, to: Attachment) -> None:
        if to.view.drops_patches:
            raise ValueError(
                f"CNNBranch: this {to.view.family} encoder drops patch tokens in training, so that "
                "the branch's map does not fit them; build it with patch_drop_rate=0"
            )
        if self.output_scale and not to.view.reads_patches:
            raise ValueError(
                f"CNNBranch(output_scale={self.output_scale}): this {to.view.family} encoder reads "
                "the class token alone of its last block, so that the last map, which is added to "
                "the patch tokens, would get no gradient; give output_scale=0, or, where you use "
                "the tokens themselves, build the encoder with global_pool=''"
            )
        to.require_image_size()
        blocks = to.select(self.blocks, lambda block: "attn_in" in block.sites)
        stages = self._stages(to, blocks)
        first = stages[0]
        branch = ConvBranch(
            first.width,
            halvings=int(math.log2(to.image_size / first.grid[0])),
            refinements=first.maps - 1,
            stem_channels=self.stem_channels,
            grid=first.grid,
            channels_in=to.view.in_channels,
        )
        to.add("cnn_branch.convolutions", branch)
        deeper: list[DeeperBranch] = []
        for before, stage in pairwise(stages):
            halvings = max(0, int(math.log2(before.grid[0] / stage.grid[0])))
            more = DeeperBranch(before.width, stage.width, halvings, stage.maps - 1, stage.grid)
            to.add(f"cnn_branch.stage_{len(deeper) + 1}", more)
            deeper.append(more)
        widths = [stage.width for stage in stages for _ in range(stage.maps)]
        maps = {f"cnn_branch.map_{i}": width for i, width in enumerate(widths)}
        strides = {f"cnn_branch.stride_{2**i}": width for i, width in enumerate(branch.widths)}
        compute = AllStages(branch, deeper) if deeper else branch.levels
        to.context.computes(strides | maps, compute)
        for (name, width), block in zip(maps.items(), blocks, strict=False):
            attention = CrossBranchAttention(width, math.gcd(width, block.num_heads))
            if self.zero_init:
                nn.init.zeros_(attention.proj.weight)
                nn.init.zeros_(attention.proj.bias)
            to.add(f"cnn_branch.attention.{block.index}", attention)
            attend = AttendToMap(attention, to.context.reads(name))
            to.add_residual("attn_in", attend, block=block)
        if self.output_scale:
            if self.zero_init:
                of_last = [branch, *deeper][-1].modules()
                last_norm = [each for each in of_last if isinstance(each, LayerNorm2d)][-1]
                nn.init.zeros_(last_norm.weight)
            last = LastMap(to.context.reads(list(maps)[-1]), to.site("output").layout)
            to.add_residual("output", last, self.output_scale)

    def _stages(self, to: Attachment, blocks: tuple[Block, ...]) -> list["_Stage"]:
        """The runs of sites that meet the branch at one width and grid.

        Raises:
            ValueError: tokens of some lie within windows.
        """
        sites = [to.site("attn_in", block) for block in blocks]
        sites += [to.site("output")] if self.output_scale else []
        stages: list[_Stage] = []
        for site in sites:
            if not site.layout.in_order:
                raise ValueError(
                    f"CNNBranch(blocks={self.blocks!r}): the tokens that attention reads in this "
                    f"{to.view.family} encoder lie within windows, where the branch's map does not "
                    "fit them; choose other blocks, or leave it out; "
                    + see("encoders.md", "which-family-takes-which-part")
                )
            if stages and (stages[-1].width, stages[-1].grid) == (site.width, site.grid):
                stages[-1] = replace(stages[-1], maps=stages[-1].maps + 1)
            else:
                stages.append(_Stage(site.width, site.grid, maps=1))
        return stages


@dataclass(frozen=True)
class _Stage:
    """Tokens of one size that meet the branch, and how many maps meet them."""

    width: int
    grid: tuple[int, int]
    maps: int

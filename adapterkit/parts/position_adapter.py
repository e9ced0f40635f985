"""The position adapter: a pretrained position embedding, resized by pooling and convolution."""

import math
from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.attach.last_result import LastResult
from adapterkit.encoders.tokens import OnGrid
from adapterkit.parts.conv import ConvBlock
from adapterkit.parts.registry import register_part
from adapterkit.system.pages import see


class PooledPosition(nn.Module):
    """MaxPool2d(2) -> Conv2d 3x3 -> LayerNorm2d -> GELU, repeated for each halving of the grid.

    Source: SAMUS (Lin et al. 2023), position adapter. Not the identity at initialisation.

    Args:
        width: channels of a token.
        halvings: how often the grid is halved. 0: one convolution block that keeps the grid.
    """

    def __init__(self, width: int, halvings: int):
        super().__init__()
        stages = [ConvBlock(width, width, pool=True) for _ in range(halvings)]
        self.stages = nn.Sequential(*(stages or [ConvBlock(width, width)]))
        self._last = LastResult()

    def forward(self, pos_embed: Float[Tensor, "1 H W width"]) -> Float[Tensor, "1 h w width"]:
        return self._last.of((pos_embed, *self.parameters()), lambda: self._adapt(pos_embed))

    def _adapt(self, pos_embed: Float[Tensor, "1 H W width"]) -> Float[Tensor, "1 h w width"]:
        adapted = self.stages(rearrange(pos_embed, "b h w c -> b c h w"))
        return rearrange(adapted, "b c h w -> b h w c")


@register_part
@dataclass(frozen=True)
class PositionAdapter:
    """The encoder sees its frozen absolute position embedding through a `PooledPosition`.

    Its grid is halved until it is less than twice the token grid that `Resize`, earlier in the
    list, asks for; what then remains to be resized is interpolated. Its rows for prefix tokens stay
    as they are.
    """

    def attach(self, to: Attachment) -> None:
        positions = to.view.pos_embed
        if positions is None:
            raise ValueError(
                "PositionAdapter: this encoder has no position embedding for its grid alone; leave "
                "it out; " + see("encoders.md", "which-family-takes-which-part")
            )
        halvings = max(0, int(math.log2(positions.grid[0] / to.grid[0])))
        adapter = PooledPosition(positions.width, halvings)
        to.add("position_adapter", adapter)
        to.overlay(positions.module, positions.name, OnGrid(positions.layout, adapter))

"""Windows that are filled up before the norm rather than after it."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.encoders.views import Blocks
from adapterkit.parts.registry import register_part
from adapterkit.system.pages import see


@register_part
@dataclass(frozen=True)
class PadBeforeNorm:
    """Fills up the windows of SAM's blocks before norm1, as Medical SAM Adapter's code does.

    A grid that is no multiple of the window, 64 of 14, is filled up with zeros. SAM does so after
    norm1, so that its attention sees zeros there; before it, attention sees the norm's bias. Does
    nothing where the windows fit the grid.

    Args:
        blocks: those that attend within windows; blocks of others among them are left as they are.
    """

    blocks: Blocks = "windowed"

    def attach(self, to: Attachment) -> None:
        for block in to.select(self.blocks):
            window = getattr(block.module, "window_size", None)
            if not isinstance(window, int):
                raise ValueError(
                    f"PadBeforeNorm: the blocks of this {to.view.family} encoder have no windows; "
                    "leave it out; " + see("encoders.md", "which-family-takes-which-part")
                )
            before, after = (to.site(at, block).grid for at in ("attn_in", "block_out"))
            if window and any(side % window for side in before):
                to.require_image_size()
                # Norms and MLPs see each token by itself, so that around the whole block is as
                # good as around norm1 and attention.
                to.before(block.module, PadTokens(window))
                to.after(block.module, CropTokens(after))


@dataclass(frozen=True)
class PadTokens:
    """A forward pre-hook that appends rows and columns of zeros up to a multiple of `window`."""

    window: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, *others = args
        height, width = tokens.shape[1:3]
        return F.pad(tokens, (0, 0, 0, -width % self.window, 0, -height % self.window)), *others


@dataclass(frozen=True)
class CropTokens:
    """A forward hook that keeps the rows and columns of `grid`."""

    grid: tuple[int, int]

    def __call__(
        self, module: nn.Module, args: Any, output: Float[Tensor, "b H W width"]
    ) -> Float[Tensor, "b h w width"]:
        rows, columns = self.grid
        return output[:, :rows, :columns].contiguous()

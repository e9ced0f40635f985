"""Another input size and patch stride for a pretrained encoder."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.encoders.tokens import OnGrid
from adapterkit.encoders.views import Geometry
from adapterkit.parts.registry import register_part
from adapterkit.system.pages import see

Interpolation = Literal["bicubic", "bilinear"]

_MAX_GRID = 512
"""Tokens a side; attention over 512 times 512 has 69 billion products for each head."""


@register_part
@dataclass(frozen=True)
class Resize:
    """Gives the encoder another square input size and, optionally, overlapping patches.

    With a patch stride s smaller than the patch size p, the image is resized bilinearly to
    `image_size + p - s` before the patch embedding, so that the grid has `image_size / s` tokens
    a side (SAMUS: 256 -> 264 pixels, 16x16 patches every 8 pixels, 32x32 tokens). The position
    embedding is interpolated to the new grid unless a `PositionAdapter` does it; relative and
    rotary positions follow the grid. A `Sam`'s prompt encoder follows too, so `SamPredictor` and
    `SamAutomaticMaskGenerator` work at the new size. It stands before the parts that are made for
    the new grid, so first in a list.

    Args:
        image_size: side of the square input, in pixels; a multiple of the patch stride.
        patch_stride: pixels between patches; None keeps the encoder's own.
        antialias: whether the position embedding is interpolated with antialiasing, as timm does.
        interpolation: of the position embedding.
    """

    image_size: int
    patch_stride: int | None = None
    antialias: bool = True
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"Resize(interpolation={self.interpolation!r}): expected 'bicubic' or 'bilinear'"
            )

    def attach(self, to: Attachment) -> None:
        if next(to.modules.children(), None) is not None:
            raise ValueError(
                f"{self}: put it before the other parts, which are made for the grid that it sets"
            )
        view = to.view
        patch_size = view.patch_size
        stride = patch_size if self.patch_stride is None else self.patch_stride
        if not 1 <= stride <= patch_size:
            raise ValueError(
                f"Resize(patch_stride={stride}): expected 1 to the encoder's patch size, "
                f"{patch_size}"
            )
        if stride < patch_size and not view.patches_can_overlap:
            raise ValueError(
                f"Resize(patch_stride={stride}): this {view.family} encoder embeds patches of "
                f"{patch_size} pixels with several convolutions, which cannot overlap, or has them "
                "overlap already; leave it out; "
                + see("encoders.md", "which-family-takes-which-part")
            )
        if self.image_size < stride or self.image_size % stride:
            raise ValueError(
                f"Resize(image_size={self.image_size}): expected a multiple of the patch stride, "
                f"{stride}; the nearest is {max(1, round(self.image_size / stride)) * stride}"
            )
        if self.image_size // stride > _MAX_GRID:
            raise ValueError(
                f"{self}: {self.image_size // stride} tokens a side are more than attention can "
                f"take; expected at most {_MAX_GRID}"
            )
        to.image_size = self.image_size
        to.grid = (self.image_size // stride, self.image_size // stride)
        to.require_image_size()
        if stride < patch_size:
            # At the convolution rather than at the patch embedding, whose checks of the input size
            # are to see the image that other parts see.
            to.before(view.patch_projection, ResizeImage(self.image_size + patch_size - stride))
            to.set(view.patch_projection, "stride", (stride, stride))
        view.resizer(to, Geometry(self.image_size, stride, to.grid))
        positions = view.pos_embed
        if positions is not None:
            fit = OnGrid(positions.layout, FitGrid(to.grid, self.antialias, self.interpolation))
            to.overlay(positions.module, positions.name, fit, last=True)


@dataclass(frozen=True)
class ResizeImage:
    """A forward pre-hook that resizes the image bilinearly to a square of `size` pixels."""

    size: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        image, *others = args
        size = (self.size, self.size)
        return F.interpolate(image, size, mode="bilinear", align_corners=False), *others


@dataclass(frozen=True)
class FitGrid:
    """An overlay that interpolates a position embedding to a grid, if it has another.

    Args:
        grid: rows and columns of tokens.
        antialias: of the interpolation.
        interpolation: which.
    """

    grid: tuple[int, int]
    antialias: bool = True
    interpolation: Interpolation = "bicubic"

    def __call__(self, pos_embed: Float[Tensor, "1 H W width"]) -> Float[Tensor, "1 h w width"]:
        if tuple(pos_embed.shape[1:3]) == self.grid:
            return pos_embed
        channels_first = rearrange(pos_embed, "b h w c -> b c h w")
        if pos_embed.dtype in (torch.bfloat16, torch.float16):
            # On a CPU there is no such interpolation in 16 bits.
            channels_first = channels_first.float()
        resized = F.interpolate(
            channels_first,
            self.grid,
            mode=self.interpolation,
            align_corners=False,
            antialias=self.antialias,
        )
        return rearrange(resized.to(pos_embed.dtype), "b c h w -> b h w c")

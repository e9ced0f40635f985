"""Attention of each token to its place in the other frames of a sequence."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.encoders.tokens import TokenLayout
from adapterkit.encoders.views import Blocks
from adapterkit.parts.along_time import TokenSite, add_along_time, check_options
from adapterkit.parts.registry import register_part

Offset = tuple[int, int, int]
"""From a token to another: frames, rows, columns."""


class AttentionOverTime(nn.Module):
    """Multi-head attention from a token to those around its place in the frames around its own.

    Logits are q k / sqrt(d) + bias[relative time, relative place]; the tokens are normalised first.
    The space of a frame is left to the encoder's own attention: divided space-time attention.

    Source: TimeSformer (Bertasius et al. 2021, arXiv 2102.05095), which attends to the same place
    in all frames; MediViSTA (Kim et al. 2023, arXiv 2309.13539) for SAM on echocardiography.

    Args:
        width: channels of a token.
        reach: frames before and after its own that a token attends to.
        neighbourhood: places a side of the square that it attends to in each, odd; prefix tokens,
            which have no place, attend to themselves alone.
        reduction: queries, keys and values are this many times narrower than a token.
        num_heads: as many, or fewer where they do not divide that width.
        distances: relative times up to so many frames are told apart; those beyond are as these.
    """

    def __init__(
        self,
        width: int,
        reach: int = 2,
        neighbourhood: int = 3,
        reduction: int = 4,
        num_heads: int = 4,
        distances: int = 2,
    ):
        super().__init__()
        if not 1 <= reduction <= width:
            raise ValueError(f"reduction={reduction}: expected 1 to the token width, {width}")
        inner = width // reduction
        self.reach = reach
        self.distances = distances
        self.aside = neighbourhood // 2
        self.num_heads = math.gcd(inner, num_heads)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        times, places = 2 * distances + 1, (neighbourhood, neighbourhood)
        self.bias = nn.Parameter(torch.zeros(times, *places, self.num_heads))
        self.proj = nn.Linear(inner, width)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(
        self, tokens: Float[Tensor, "b *places width"], frames: int, layout: TokenLayout
    ) -> Float[Tensor, "b *places width"]:
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=-1)
        grids = (layout.grid(each) for each in (q, k, v))
        attended = self._attended(*grids, frames=frames, aside=self.aside)
        if not layout.num_prefix_tokens:
            return self.proj(layout.with_grid(q, attended))
        prefix = (each[:, None, : layout.num_prefix_tokens] for each in (q, k, v))
        before = self._attended(*prefix, frames=frames, aside=0)[:, 0]
        return self.proj(layout.with_grid(before, attended))

    def _attended(
        self,
        q: Float[Tensor, "b h w inner"],
        k: Float[Tensor, "b h w inner"],
        v: Float[Tensor, "b h w inner"],
        frames: int,
        aside: int,
    ) -> Float[Tensor, "b h w inner"]:
        """By one relative place after the other, so that no token is copied for its neighbours."""
        reach = min(self.reach, frames - 1)
        q, k, v = (self._heads(each, frames) for each in (q, k, v))
        border = (aside, aside, aside, aside, reach, reach)
        k, v = (F.pad(each, (0, 0, 0, 0, *border)) for each in (k, v))
        inside = F.pad(q.new_ones(q.shape[1:4], dtype=torch.bool), border)
        offsets = list(_offsets(reach, aside))
        q = q * q.shape[-1] ** -0.5
        logits: list[Tensor] = []
        for offset in offsets:
            part = _part(offset, (reach, aside), (q.shape[1], q.shape[2], q.shape[3]))
            logit = (q * k[:, *part]).sum(dim=-1) + self._bias(offset)
            logits.append(logit.masked_fill(~inside[part][..., None], -torch.inf))
        weights = torch.stack(logits, dim=-1).softmax(dim=-1)
        attended = torch.zeros_like(q)
        for index, offset in enumerate(offsets):
            part = _part(offset, (reach, aside), (q.shape[1], q.shape[2], q.shape[3]))
            attended = attended + weights[..., index, None] * v[:, *part]
        return attended.flatten(-2).flatten(0, 1)

    def _heads(
        self, x: Float[Tensor, "b h w inner"], frames: int
    ) -> Float[Tensor, "n t h w heads d"]:
        return x.unflatten(-1, (self.num_heads, -1)).unflatten(0, (-1, frames))

    def _bias(self, offset: Offset) -> Float[Tensor, "heads"]:
        frames, rows, columns = offset
        time = min(max(frames, -self.distances), self.distances) + self.distances
        middle = self.bias.shape[1] // 2
        return self.bias[time, middle + rows, middle + columns]


def _offsets(reach: int, aside: int) -> Iterator[Offset]:
    """From a token to those that it attends to."""
    places = range(-aside, aside + 1)
    for frames in range(-reach, reach + 1):
        yield from ((frames, rows, columns) for rows in places for columns in places)


def _part(
    offset: Offset, border: tuple[int, int], size: tuple[int, int, int]
) -> tuple[slice, slice, slice]:
    """Where the tokens at an offset are among frames, rows and columns with a border.

    Args:
        offset: from the tokens.
        border: in frames, and in rows and columns.
        size: frames, rows and columns without it.
    """
    frames, rows, columns = (
        slice(around + shift, around + shift + length)
        for around, shift, length in zip(
            (border[0], border[1], border[1]), offset, size, strict=True
        )
    )
    return frames, rows, columns


@register_part
@dataclass(frozen=True)
class TemporalAttention:
    """Adds `AttentionOverTime(x)` at a site, of frames that are a sequence.

    It starts as the identity. An image on its own is a sequence of one frame. How long sequences
    are, `Promptable.encode(images, frames=T)` says; they can be of any length.

    Args:
        at: the site, as in `FeatureAdapter`.
        blocks: in which blocks, as `ViT.select` takes them; a word means those that have the site,
            with tokens in the order of the image. The sites "tokens" and "output" are in none.
        reach: of how many frames before and after it a frame's tokens are computed.
        neighbourhood: places a side, odd, of the square around its own that a token attends to in
            each frame; 1: its own alone.
        reduction: queries, keys and values are this many times narrower than a token.
        num_heads: as many, or fewer where they do not divide that width.
        distances: relative times up to so many frames are told apart, and those beyond are as
            these, which they then learn from; None: up to the reach.
    """

    at: TokenSite = "block_out"
    blocks: Blocks = "global"
    reach: int = 2
    neighbourhood: int = 3
    reduction: int = 4
    num_heads: int = 4
    distances: int | None = None

    def __post_init__(self) -> None:
        check_options("TemporalAttention", self.at, self.reach)
        if self.neighbourhood % 2 == 0 or not 1 <= self.neighbourhood <= 7:
            raise ValueError(
                f"TemporalAttention(neighbourhood={self.neighbourhood}): expected 1, 3, 5 or 7"
            )
        if self.num_heads < 1:
            raise ValueError(f"TemporalAttention(num_heads={self.num_heads}): expected 1 or more")
        if self.distances is not None and not 1 <= self.distances <= self.reach:
            raise ValueError(
                f"TemporalAttention(distances={self.distances}): expected 1 to the reach, "
                f"{self.reach}, or None"
            )

    def attach(self, to: Attachment) -> None:
        def module(width: int) -> nn.Module:
            return AttentionOverTime(
                width,
                self.reach,
                self.neighbourhood,
                self.reduction,
                self.num_heads,
                self.distances or self.reach,
            )

        path = "temporal_attention"
        add_along_time(to, "TemporalAttention", path, self.at, self.blocks, self.reach, module)

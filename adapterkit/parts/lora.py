"""LoRA: a trained low-rank update of the query, key and value projections."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.encoders.views import Block, Blocks
from adapterkit.parts.registry import register_part

SLICES = ("q", "k", "v")
"""Of a fused projection's output, in order; each takes a third of its rows."""


class LowRankUpdate(nn.Module):
    """W' = W + scale * B A on some rows of a weight, as an overlay on it.

    A in R^{rank x columns} starts Kaiming-uniform, B in R^{rows x rank} at zero, so that W' = W.

    Source: LoRA (Hu et al. 2021).

    Args:
        columns: of the weight, its input channels.
        rows: (first, last + 1) of the weight's rows, its output channels, that are updated.
        rank: of the update.
        scale: its factor.
    """

    def __init__(self, columns: int, rows: tuple[int, int], rank: int, scale: float = 1.0):
        super().__init__()
        self.rows = rows
        self.scale = scale
        self.a = nn.Parameter(torch.empty(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows[1] - rows[0], rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        # In place, which autocast leaves alone: in bf16 a small update would be lost.
        updated = weight.to(self.a.dtype, copy=True).addmm_(self.of_all_rows(len(weight)), self.a)
        return updated.to(weight.dtype)

    def of_all_rows(self, rows: int) -> Float[Tensor, "rows rank"]:
        """scale * B, and zeros for the rows of the weight that are not updated."""
        first, end = self.rows
        return F.pad(self.scale * self.b, (0, 0, first, rows - end))


@register_part
@dataclass(frozen=True)
class LoRA:
    """Adds a `LowRankUpdate` to the weights that project queries, keys or values.

    Where one fused layer projects all three, to the slice of its weight.

    Starts as the identity. `merge` folds it into the base.

    Args:
        rank: of each update, 1 to the width of a token.
        targets: the projections that are updated, of "q", "k" and "v".
        blocks: in which blocks ("all", "global", "windowed", indices, or a callable of a `Block`).
        alpha: the update's factor is alpha / rank; None: 1.
    """

    rank: int = 4
    targets: Collection[Literal["q", "k", "v"]] = ("q", "v")
    blocks: Blocks = "all"
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA(rank={self.rank}): expected 1 or more")
        unknown = [target for target in self.targets if target not in SLICES]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"LoRA(targets={self.targets!r}): expected some of {SLICES}")

    def attach(self, to: Attachment) -> None:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for block in to.select(self.blocks):
            for target in self.targets:
                linear, rows = _projection(block, target, to.view.family)
                highest = min(rows[1] - rows[0], linear.in_features)
                if self.rank > highest:
                    raise ValueError(
                        f"LoRA(rank={self.rank}): expected at most {highest}, the smaller side of "
                        f"the weight that projects {target} in block {block.index}"
                    )
                update = LowRankUpdate(linear.in_features, rows, self.rank, scale)
                to.add(f"lora.{block.index}.{target}", update)
                # An overlay and not a hook: EVA02 and BEiT call F.linear(x, qkv.weight), which
                # runs no hook of qkv, and folding an overlay into the weight is exact.
                to.overlay(linear, "weight", update)


def _projection(block: Block, target: str, family: str) -> tuple[nn.Linear, tuple[int, int]]:
    """The layer that projects queries, keys or values, and the rows of its weight that do."""
    alone, fused = (
        block.sites[at].modules[0] if at in block.sites else None for at in (target, "qkv")
    )
    if isinstance(alone, nn.Linear):
        return alone, (0, alone.out_features)
    if isinstance(fused, nn.Linear) and fused.out_features % len(SLICES) == 0:
        height = fused.out_features // len(SLICES)
        first = SLICES.index(target) * height
        return fused, (first, first + height)
    raise ValueError(
        f"LoRA: block {block.index} of this {family} encoder has no nn.Linear that projects "
        f"{target}, or queries, keys and values at once; use FeatureAdapter, or another encoder"
    )

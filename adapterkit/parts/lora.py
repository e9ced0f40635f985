"""LoRA: a trained low-rank update of the query, key and value projections."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attachment import Attachment
from adapterkit.vit import Blocks

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
        first, end = self.rows
        updated = weight[first:end] + self.scale * (self.b @ self.a)
        return torch.cat((weight[:first], updated, weight[end:]))


@dataclass(frozen=True)
class LoRA:
    """Adds a `LowRankUpdate` to slices of the fused query-key-value projection's weight.

    Starts as the identity. `merge` folds it into the base.

    Args:
        rank: of each update, 1 to the width of a token.
        targets: the slices that are updated, of "q", "k" and "v".
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
        for block in to.view.select(self.blocks):
            qkv = block.sites.get("qkv")
            if not isinstance(qkv, nn.Linear) or qkv.out_features % len(SLICES):
                raise ValueError(
                    f"LoRA: block {block.index} of this {to.view.family} encoder has no fused "
                    f"query-key-value nn.Linear but {type(qkv).__name__}; use FeatureAdapter, or "
                    "another encoder"
                )
            height = qkv.out_features // len(SLICES)
            if self.rank > min(height, qkv.in_features):
                raise ValueError(
                    f"LoRA(rank={self.rank}): expected at most {min(height, qkv.in_features)}, "
                    f"the width of a query in block {block.index}"
                )
            scale = 1.0 if self.alpha is None else self.alpha / self.rank
            for target in self.targets:
                first = SLICES.index(target) * height
                update = LowRankUpdate(qkv.in_features, (first, first + height), self.rank, scale)
                to.add(f"lora.{block.index}.{target}", update)
                # An overlay and not a hook: EVA02 and BEiT call F.linear(x, qkv.weight), which
                # runs no hook of qkv, and folding an overlay into the weight is exact.
                to.overlay(qkv, "weight", update)

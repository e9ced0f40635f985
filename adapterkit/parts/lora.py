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
from adapterkit.system.pages import see

SLICES = ("q", "k", "v")
"""Of a fused projection's output, in order; each takes a third of its rows."""


class LowRankUpdate(nn.Module):
    """W' = W + scale * B A on some rows of a weight, as an overlay on it.

    A in R^{rank x columns} starts Kaiming-uniform, B in R^{rows x rank} at zero, so that W' = W.

    Source: LoRA (Hu et al. 2021).

    Args:
        columns: of the weight, its input channels.
        rows: (first, last + 1) of the weight's rows, its output channels, that are updated; in each
            group.
        rank: of the update.
        scale: its factor.
        groups: of equally many rows that the weight's rows fall into.
    """

    def __init__(
        self, columns: int, rows: tuple[int, int], rank: int, scale: float = 1.0, groups: int = 1
    ):
        super().__init__()
        self.rows = rows
        self.scale = scale
        self.groups = groups
        self.a = nn.Parameter(torch.empty(rank, columns))
        self.b = nn.Parameter(torch.zeros(groups * (rows[1] - rows[0]), rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        # In place, which autocast leaves alone: in bf16 a small update would be lost.
        updated = weight.to(self.a.dtype, copy=True).addmm_(self.of_all_rows(len(weight)), self.a)
        return updated.to(weight.dtype)

    def of_all_rows(self, rows: int) -> Float[Tensor, "rows rank"]:
        """scale * B, and zeros for the rows of the weight that are not updated."""
        first, end = self.rows
        padding = (0, 0, first, rows // self.groups - end)
        if self.groups == 1:
            return F.pad(self.scale * self.b, padding)
        by_group = (self.scale * self.b).unflatten(0, (self.groups, end - first))
        return F.pad(by_group, padding).flatten(0, 1)


@register_part
@dataclass(frozen=True)
class LoRA:
    """Adds a `LowRankUpdate` to the weights that project queries, keys or values.

    Where one fused layer projects all three, to the slice of its weight.

    Starts as the identity. `merge` folds it into the base.

    Args:
        rank: of each update, 1 to the width of a token.
        targets: the projections that are updated, of "q", "k" and "v".
        blocks: in which blocks, as `ViT.select` takes them; a word means those that project all
            targets.
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
        for block in to.select(self.blocks, lambda block: _projects(block, self.targets)):
            for target in self.targets:
                found = block.projections.get(target)
                if found is None:
                    raise ValueError(
                        f"LoRA: block {block.index} of this {to.view.family} encoder has no "
                        f"nn.Linear that projects {target}, or queries, keys and values at once; "
                        "use FeatureAdapter, peft's LoraConfig on layers that there are, or "
                        "another encoder; " + see("encoders.md", "which-family-takes-which-part")
                    )
                columns, (first, end) = found.layer.in_features, found.rows
                highest = min(found.groups * (end - first), columns)
                if self.rank > highest:
                    raise ValueError(
                        f"LoRA(rank={self.rank}): expected at most {highest}, the smaller side of "
                        f"the weight that projects {target} in block {block.index}"
                    )
                update = LowRankUpdate(columns, found.rows, self.rank, scale, found.groups)
                to.add(f"lora.{block.index}.{target}", update)
                # An overlay and not a hook: EVA02 and BEiT call F.linear(x, qkv.weight), which
                # runs no hook of qkv, and folding an overlay into the weight is exact.
                to.overlay(found.layer, "weight", update)


def _projects(block: Block, targets: Collection[str]) -> bool:
    return all(target in block.projections for target in targets)

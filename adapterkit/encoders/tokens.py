"""How tokens lie in a tensor."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class TokenLayout:
    """How tokens lie in a tensor: as a grid, (B, H, W, C), or in a row, (B, P + H * W, C).

    Attributes:
        in_a_row: row by row, after the prefix tokens, rather than as a grid.
        num_prefix_tokens: P, class, distillation and register tokens; 0 for a grid.
    """

    in_a_row: bool = False
    num_prefix_tokens: int = 0

    def grid(self, tokens: Float[Tensor, "b *n c"]) -> Float[Tensor, "b h w c"]:
        """The patch tokens, of a square grid, as a grid."""
        if not self.in_a_row:
            return tokens
        side = math.isqrt(tokens.shape[1] - self.num_prefix_tokens)
        return tokens[:, self.num_prefix_tokens :].unflatten(1, (side, side))

    def with_grid(
        self, tokens: Float[Tensor, "b *n c"], grid: Float[Tensor, "b h w c"]
    ) -> Float[Tensor, "b *m c"]:
        """`tokens` with other patch tokens, of any number, and the prefix tokens that it has."""
        if not self.in_a_row:
            return grid
        return torch.cat((tokens[:, : self.num_prefix_tokens], grid.flatten(1, 2)), dim=1)

    def of_grid(self, grid: Float[Tensor, "b h w c"]) -> Float[Tensor, "b *m c"]:
        """Patch tokens in this layout, with zeros for the prefix tokens."""
        if not self.in_a_row:
            return grid
        return F.pad(grid.flatten(1, 2), (0, 0, self.num_prefix_tokens, 0))


@dataclass(frozen=True)
class OnGrid:
    """An overlay that applies another to the grid of a position embedding, and not to its prefix.

    Args:
        layout: of the position embedding.
        transform: of a grid, (1, H, W, C) to (1, h, w, C).
    """

    layout: TokenLayout
    transform: Callable[[Tensor], Tensor]

    def __call__(self, pos_embed: Float[Tensor, "1 *n c"]) -> Float[Tensor, "1 *m c"]:
        return self.layout.with_grid(pos_embed, self.transform(self.layout.grid(pos_embed)))

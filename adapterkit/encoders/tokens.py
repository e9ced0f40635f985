"""How tokens lie in a tensor."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Form = Literal["grid", "row", "channels_first", "windows"]


@dataclass(frozen=True)
class TokenLayout:
    """How tokens lie in a tensor.

    Attributes:
        form: "grid", (B, H, W, C); "channels_first", (B, C, H, W); "row", (B, P + H * W, C), row
            by row after the prefix tokens; "windows", channels last, of which no part can tell
            where in the image they are: within windows, or in an order of the encoder's own.
        num_prefix_tokens: P, class, distillation and register tokens; 0 but in a row.
    """

    form: Form = "grid"
    num_prefix_tokens: int = 0

    @property
    def in_order(self) -> bool:
        """Whether the tokens of an image lie in one grid, row by row."""
        return self.form != "windows"

    def grid(self, tokens: Float[Tensor, "b *tokens"]) -> Float[Tensor, "b h w c"]:
        """The patch tokens, of a square grid, as a grid."""
        if self.form == "channels_first":
            return tokens.movedim(1, -1)
        if self.form != "row":
            return tokens
        side = math.isqrt(tokens.shape[1] - self.num_prefix_tokens)
        return tokens[:, self.num_prefix_tokens :].unflatten(1, (side, side))

    def with_grid(
        self, tokens: Float[Tensor, "b *tokens"], grid: Float[Tensor, "b h w c"]
    ) -> Float[Tensor, "b *others"]:
        """`tokens` with other patch tokens, of any number, and the prefix tokens that it has."""
        if self.form == "channels_first":
            return grid.movedim(-1, 1)
        if self.form != "row":
            return grid
        return torch.cat((tokens[:, : self.num_prefix_tokens], grid.flatten(1, 2)), dim=1)

    def of_grid(self, grid: Float[Tensor, "b h w c"]) -> Float[Tensor, "b *m c"]:
        """Patch tokens as a branch gives them, with zeros for the prefix tokens of a row."""
        if self.form != "row":
            return grid
        return F.pad(grid.flatten(1, 2), (0, 0, self.num_prefix_tokens, 0))


@dataclass(frozen=True)
class OnGrid:
    """An overlay that applies another to the grid of a position embedding, and not to its prefix.

    Args:
        layout: of the position embedding; without a batch, (P + H * W, C), where it is a row.
        transform: of a grid, (1, H, W, C) to (1, h, w, C).
    """

    layout: TokenLayout
    transform: Callable[[Tensor], Tensor]

    def __call__(self, pos_embed: Float[Tensor, "*tokens"]) -> Float[Tensor, "*others"]:
        if pos_embed.ndim == 2:  # Of an nn.Embedding.
            return self(pos_embed[None])[0]
        return self.layout.with_grid(pos_embed, self.transform(self.layout.grid(pos_embed)))

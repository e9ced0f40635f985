"""The feature adapter: a bottleneck MLP beside a site of the encoder."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.encoders.views import BLOCK_SITES, ENCODER_SITES, Blocks
from adapterkit.parts.registry import register_part


class Bottleneck(nn.Module):
    """A(x) = G(x E_d) E_u with G = GELU, E_d in R^{d x d/r} and E_u in R^{d/r x d}, with biases.

    Source: SAMUS (Lin et al. 2023), feature adapter; Houlsby et al. 2019 for the idea.

    Args:
        width: d, channels of a token.
        reduction: r, how much narrower the bottleneck is.
        zero_init: start with E_u and its bias at zero, so that A(x) = 0; otherwise both layers
            start as PyTorch initialises `nn.Linear`.
    """

    def __init__(self, width: int, reduction: int = 4, zero_init: bool = True):
        super().__init__()
        if not 1 <= reduction <= width:
            raise ValueError(f"reduction={reduction}: expected 1 to the token width, {width}")
        self.down = nn.Linear(width, width // reduction)
        self.activation = nn.GELU()
        self.up = nn.Linear(width // reduction, width)
        if zero_init:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*tokens width"]:
        return self.up(self.activation(self.down(x)))


@register_part
@dataclass(frozen=True)
class FeatureAdapter:
    """Adds `scale * Bottleneck(x)` at a site.

    Args:
        at: the site. "mlp": parallel to the MLP, x + mlp(norm2 x) + scale * A(norm2 x).
            "tokens", "attn_in", "attn_out", "block_out", "output": in series, y + scale * A(y).
        blocks: in which blocks, as `ViT.select` takes them; a word means those that have the site.
            The sites "tokens" and "output" are in none.
        scale: factor of the adapter's output.
        reduction: the bottleneck is this many times narrower than a token.
        zero_init: start as the identity. SAMUS and MSA start from random weights instead.
    """

    at: Literal["tokens", "attn_in", "attn_out", "mlp", "block_out", "output"] = "mlp"
    blocks: Blocks = "all"
    scale: float = 1.0
    reduction: int = 4
    zero_init: bool = True

    def __post_init__(self) -> None:
        sites = (*ENCODER_SITES, *BLOCK_SITES)
        if self.at not in sites:
            raise ValueError(f"FeatureAdapter(at={self.at!r}): expected one of {sites}")

    def attach(self, to: Attachment) -> None:
        in_blocks = self.at not in ENCODER_SITES
        chosen = (
            to.select(self.blocks, lambda block: self.at in block.sites) if in_blocks else [None]
        )
        for block in chosen:
            width = to.site(self.at, block).width
            adapter = Bottleneck(width, self.reduction, self.zero_init)
            path = f"feature_adapter.{self.at}"
            to.add(path if block is None else f"{path}.{block.index}", adapter)
            to.add_residual(self.at, adapter, self.scale, block)

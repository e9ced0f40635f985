"""A bottleneck with a convolution over time, beside a site of the encoder."""

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.encoders.tokens import TokenLayout
from adapterkit.encoders.views import Blocks
from adapterkit.parts.along_time import TokenSite, add_along_time, check_options
from adapterkit.parts.registry import register_part


class ConvOverTime(nn.Module):
    """A(x) = GELU(DWConv(x E_d)) E_u: each channel of the bottleneck is convolved over the frames.

    Source: ST-Adapter (Pan et al. 2022, arXiv 2206.13559), whose kernel is of 3 frames and one
    place.

    Args:
        width: d, channels of a token.
        reach: the kernel is of 2 * reach + 1 frames; beyond the ends of a sequence there is zero.
        reduction: how much narrower the bottleneck is. E_u starts at zero.
    """

    def __init__(self, width: int, reach: int = 1, reduction: int = 4):
        super().__init__()
        if not 1 <= reduction <= width:
            raise ValueError(f"reduction={reduction}: expected 1 to the token width, {width}")
        inner = width // reduction
        self.down = nn.Linear(width, inner)
        self.conv = nn.Conv1d(inner, inner, 2 * reach + 1, padding=reach, groups=inner)
        self.activation = nn.GELU()
        self.up = nn.Linear(inner, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(
        self, tokens: Float[Tensor, "b *places width"], frames: int, layout: TokenLayout
    ) -> Float[Tensor, "b *places width"]:
        down = self.down(tokens)
        # A place is one in all frames, wherever it lies.
        series = rearrange(down.flatten(1, -2), "(n t) p c -> (n p) c t", t=frames)
        convolved = rearrange(
            self.conv(series), "(n p) c t -> (n t) p c", p=down[0, ..., 0].numel()
        )
        return self.up(self.activation(convolved.reshape(down.shape)))


@register_part
@dataclass(frozen=True)
class TemporalConv:
    """Adds `ConvOverTime(x)` at a site, of frames that are a sequence.

    It starts as the identity. An image on its own is a sequence of one frame. How long sequences
    are, `Promptable.encode(images, frames=T)` says; they can be of any length.

    Args:
        at: the site, as in `FeatureAdapter`.
        blocks: in which blocks, as `ViT.select` takes them; a word means those that have the site,
            with tokens in the order of the image. The sites "tokens" and "output" are in none.
        reach: of how many frames before and after it a frame's tokens are computed.
        reduction: the bottleneck is this many times narrower than a token.
    """

    at: TokenSite = "block_out"
    blocks: Blocks = "global"
    reach: int = 1
    reduction: int = 4

    def __post_init__(self) -> None:
        check_options("TemporalConv", self.at, self.reach)

    def attach(self, to: Attachment) -> None:
        def module(width: int) -> nn.Module:
            return ConvOverTime(width, self.reach, self.reduction)

        path = "temporal_conv"
        add_along_time(to, "TemporalConv", path, self.at, self.blocks, self.reach, module)

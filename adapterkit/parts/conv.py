"""The convolution block that the position adapter and the CNN branch are made of."""

from timm.layers.norm import LayerNorm2d
from torch import nn


class ConvBlock(nn.Sequential):
    """[MaxPool2d(2) ->] Conv2d 3x3, no bias -> LayerNorm2d -> GELU, on (B, C, H, W).

    Source: SAMUS (Lin et al. 2023): "single-conv block" and, with `pool`, "conv-pool block".
    """

    def __init__(self, channels_in: int, channels_out: int, pool: bool = False):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
        layers += [
            nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(channels_out, eps=1e-6),
            nn.GELU(),
        ]
        super().__init__(*layers)

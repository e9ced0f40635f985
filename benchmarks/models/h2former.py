"""H2Former: in each stage of a ResNet-34, multi-scale channel attention and Swin blocks.

He et al. 2023, "H2Former: An Efficient Hierarchical Hybrid Transformer for Medical Image
Segmentation", IEEE Transactions on Medical Imaging 42(9), doi 10.1109/TMI.2023.3264513. The idea is
that of the abstract: convolutions, multi-scale channel attention and a transformer, merged in every
stage. How they are merged, and all sizes, are those of the authors' code
(github.com/NKUhealong/H2Former).

What follows from that code, and what is decided against it:
- The ResNet's first convolution has a stride of 1, so that the four stages have a half to a 16th of
  the image's side. Otherwise it is ResNet-34's, with its weights.
- The window is a 16th of the image's side, so that the last stage attends globally.
- Against it: channel attention after a block's MLP weighs the tokens' channels. The code reads the
  tokens as maps without moving the channels to the front, and so weighs, and returns, mixtures of
  tokens and channels. The parameters are the same.
- Against it: three input channels instead of four.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.conv_bn_act import ConvNormAct
from timm.layers.drop import calculate_drop_path_rates
from timm.layers.eca import EcaModule
from timm.layers.norm import LayerNorm2d
from timm.models.swin_transformer import SwinTransformerStage
from torch import Tensor, nn

from benchmarks.models.segmentation_model import SegmentationModel, check_side

STRIDE = 16


def h2former(classes: int, image_size: int, pretrained: bool = False) -> SegmentationModel:
    """H2Former at its published size.

    Args:
        classes: background and structures.
        image_size: side of the images, a multiple of 16.
        pretrained: whether the convolutions start from timm's weights (ImageNet), which it
            downloads.
    """
    return _h2former((64, 128, 256, 512), classes, image_size, pretrained)


def small_h2former(classes: int, image_size: int) -> SegmentationModel:
    """H2Former with a quarter of the channels in every stage."""
    return _h2former((16, 32, 64, 128), classes, image_size, pretrained=False)


def _h2former(
    widths: tuple[int, int, int, int], classes: int, image_size: int, pretrained: bool
) -> SegmentationModel:
    check_side(image_size, STRIDE, "H2Former")
    return SegmentationModel(
        H2Former(widths, classes, image_size, pretrained),
        IMAGENET_DEFAULT_MEAN,
        IMAGENET_DEFAULT_STD,
        image_size=image_size,
    )


class H2Former(nn.Module):
    """H2Former on normalised images.

    Args:
        widths: channels of the four stages.
        classes: background and structures.
        image_size: side of the images.
        pretrained: whether the convolutions start from timm's weights.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        classes: int,
        image_size: int,
        pretrained: bool,
    ):
        super().__init__()
        resnet: Any = timm.create_model(
            "resnet34.tv_in1k", pretrained=pretrained, channels=widths, num_classes=0
        )
        resnet.conv1.stride = (1, 1)
        stem = (resnet.conv1, resnet.bn1, resnet.act1, resnet.maxpool)
        convolutions = (
            nn.Sequential(*stem, resnet.layer1),
            resnet.layer2,
            resnet.layer3,
            resnet.layer4,
        )
        first = widths[0]
        embeddings = [
            nn.Sequential(MultiScaleEmbedding(3, first, kernels=(2, 4, 8, 16)), LayerNorm2d(first)),
            *(
                nn.Sequential(LayerNorm2d(width), MultiScaleEmbedding(width, 2 * width, (2, 4)))
                for width in widths[:-1]
            ),
        ]
        self.stages = nn.ModuleList(
            Stage(*parts)
            for parts in zip(
                convolutions, embeddings, transformers(widths, image_size), strict=True
            )
        )
        self.decoder = nn.ModuleList(DecoderStage(width) for width in reversed(widths[:-1]))
        self.head = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(first, classes, kernel_size=1, bias=False),
        )

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b classes H W"]:
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        _, *skips, x = maps
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            x = stage(x, skip)
        return self.head(x)


class Stage(nn.Module):
    """Half the resolution: the sum of convolutions and embedding, then Swin blocks."""

    def __init__(self, convolutions: nn.Module, embedding: nn.Module, transformer: nn.Module):
        super().__init__()
        self.convolutions = convolutions
        self.embedding = embedding
        self.transformer = transformer

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        x = self.convolutions(x) + self.embedding(x)
        x = self.transformer(rearrange(x, "b c h w -> b h w c"))
        return rearrange(x, "b h w c -> b c h w")


class MultiScaleEmbedding(nn.Module):
    """Multi-scale channel attention: convolutions of several kernel sizes, their channels weighed.

    Args:
        width: channels of the input.
        width_out: channels of the output; a half of them is from the smallest kernel, a quarter
            from the next, and so on, and the two largest kernels have equally many.
        kernels: sides of the kernels; all have a stride of 2.
    """

    def __init__(self, width: int, width_out: int, kernels: Sequence[int]):
        super().__init__()
        shares = [width_out // 2**i for i in range(1, len(kernels))]
        shares.append(shares[-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, share, kernel_size=kernel, stride=2, padding=kernel // 2 - 1)
            for share, kernel in zip(shares, kernels, strict=True)
        )
        self.attention = ChannelAttention()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        return self.attention(torch.cat([each(x) for each in self.convolutions], dim=1))


class ChannelAttention(nn.Module):
    """The input plus the input with its channels weighed (ECA: Wang et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = EcaModule(kernel_size=3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.weigh(x)


def transformers(widths: Sequence[int], image_size: int) -> list[SwinTransformerStage]:
    """Two Swin blocks for each stage, with channel attention after their MLPs."""
    rates = calculate_drop_path_rates(0.1, [2] * len(widths), stagewise=True)
    stages = [
        SwinTransformerStage(
            dim=width,
            out_dim=width,
            input_resolution=(image_size // 2**level, image_size // 2**level),
            depth=2,
            downsample=False,
            num_heads=2**level,
            window_size=image_size // STRIDE,
            drop_path=rate,
        )
        for level, (width, rate) in enumerate(zip(widths, rates, strict=True), start=1)
    ]
    for stage in stages:
        for block in stage.blocks:
            attention = nn.Sequential(
                block.get_submodule("mlp"),
                Rearrange("b n c -> b c n 1"),
                ChannelAttention(),
                Rearrange("b c n 1 -> b n c"),
            )
            block.register_module("mlp", attention)
    return stages


class DecoderStage(nn.Module):
    """Twice the resolution by a transposed convolution, the skip beside it, a 3x3 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2)
        self.fuse = ConvNormAct(2 * width, width, kernel_size=3, bias=True)

    def forward(
        self, x: Float[Tensor, "b c h w"], skip: Float[Tensor, "b d H W"]
    ) -> Float[Tensor, "b d H W"]:
        return self.fuse(torch.cat([self.upsample(x), skip], dim=1))

"""Swin-Unet: a U-Net of Swin transformer blocks.

Cao et al. 2022, "Swin-Unet: Unet-like Pure Transformer for Medical Image Segmentation", ECCV
Workshops, arXiv 2105.05537, Figure 1 and Section 3: a Swin-T encoder whose last stage is the
bottleneck, a mirrored decoder with patch expanding layers, and skips that are concatenated and
brought back to the stage's width by a linear layer.

Decided where the paper is silent, or where its published code (github.com/HuCaoFighting/Swin-Unet)
is not the paper:
- Two blocks in every stage, as in the paper's figure and the code; Swin-T has six in its third.
- A skip is what the stage's blocks read, not what they return, as in the code.
- The window is a 32nd of the image's side, so that it divides every stage's grid: 7 at 224 pixels,
  as published, 8 at 256, 12 at 384. The code keeps 7, and so takes multiples of 224 only.
- The decoder's blocks start from the encoder's pretrained weights, and their stochastic depth is
  the encoder's, up to 0.2, as in the code. Without pretraining, each block's weights are its own.
"""

from functools import partial
from typing import cast

import timm
import torch
from einops import rearrange
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.swin_transformer import SwinTransformer, SwinTransformerStage
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from benchmarks.models.segmentation_model import SegmentationModel, check_side

STRIDE = 32


def swin_unet(classes: int, image_size: int, pretrained: bool = False) -> SegmentationModel:
    """Swin-Unet at its published size.

    Args:
        classes: background and structures.
        image_size: side of the images, a multiple of 32.
        pretrained: whether encoder and decoder start from timm's weights (ImageNet), which it
            downloads.
    """
    return _swin_unet(96, (3, 6, 12, 24), classes, image_size, pretrained)


def small_swin_unet(classes: int, image_size: int) -> SegmentationModel:
    """Swin-Unet with 28 instead of 96 channels in its first stage, and two thirds of the heads."""
    return _swin_unet(28, (2, 4, 8, 16), classes, image_size, pretrained=False)


def _swin_unet(
    width: int, num_heads: tuple[int, ...], classes: int, image_size: int, pretrained: bool
) -> SegmentationModel:
    check_side(image_size, STRIDE, "Swin-Unet")
    create = partial(
        timm.create_model,
        "swin_tiny_patch4_window7_224.ms_in1k",
        img_size=image_size,
        window_size=image_size // STRIDE,
        embed_dim=width,
        num_heads=num_heads,
        num_classes=0,
    )
    encoder, mirror = (
        cast(SwinTransformer, create(depths=(2, 2, 2, 2), drop_path_rate=0.2)) for _ in range(2)
    )
    if pretrained:
        # timm refuses to load Swin-T's weights into fewer blocks than they have.
        weights = create(pretrained=True).state_dict()
        for swin in (encoder, mirror):
            swin.load_state_dict({key: weights[key] for key in swin.state_dict()})
    return SegmentationModel(
        SwinUnet(encoder, mirror, classes),
        IMAGENET_DEFAULT_MEAN,
        IMAGENET_DEFAULT_STD,
        image_size=image_size,
    )


class SwinUnet(nn.Module):
    """Swin-Unet on normalised images.

    Args:
        encoder: a Swin transformer with patches of 4 pixels.
        mirror: another of the same sizes; the decoder takes its blocks.
        classes: background and structures.
    """

    def __init__(self, encoder: SwinTransformer, mirror: SwinTransformer, classes: int):
        super().__init__()
        self.encoder = encoder
        width = encoder.embed_dim
        self.decoder = nn.ModuleList(
            DecoderStage(width * 2**level, stage.blocks)
            for level, stage in reversed(list(enumerate(stages_of(mirror)[:-1])))
        )
        self.norm = nn.LayerNorm(width)
        self.expand = PatchExpand(width, factor=4, width_out=width)
        self.classify = nn.Conv2d(width, classes, kernel_size=1, bias=False)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b classes H W"]:
        x = self.encoder.patch_embed(images)
        skips = []
        for stage in stages_of(self.encoder):
            x = stage.downsample(x)
            skips.append(x)
            x = stage.blocks(x)
        x = self.encoder.norm(x)
        for stage, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            x = stage(x, skip)
        x = self.expand(self.norm(x))
        return self.classify(rearrange(x, "b h w c -> b c h w"))


def stages_of(swin: SwinTransformer) -> list[SwinTransformerStage]:
    return [stage for stage in swin.layers if isinstance(stage, SwinTransformerStage)]


class DecoderStage(nn.Module):
    """Patch expanding, fusion with the skip, Swin blocks.

    Args:
        width: channels of the skip and of the output; the input has twice as many.
        blocks: of the encoder's stage at this resolution.
    """

    def __init__(self, width: int, blocks: nn.Module):
        super().__init__()
        self.expand = PatchExpand(2 * width, factor=2, width_out=width)
        self.fuse = nn.Linear(2 * width, width).apply(init_weights_vit_timm)
        self.blocks = blocks

    def forward(
        self, x: Float[Tensor, "b h w c"], skip: Float[Tensor, "b H W d"]
    ) -> Float[Tensor, "b H W d"]:
        return self.blocks(self.fuse(torch.cat([self.expand(x), skip], dim=-1)))


class PatchExpand(nn.Module):
    """A linear layer, the channels of which become the pixels of a finer grid.

    Args:
        width: channels of the input.
        factor: pixels a side that each becomes.
        width_out: channels of the output.
    """

    def __init__(self, width: int, factor: int, width_out: int):
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(width, factor**2 * width_out, bias=False)
        self.expand.apply(init_weights_vit_timm)
        self.norm = nn.LayerNorm(width_out)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b H W d"]:
        side = self.factor
        x = rearrange(self.expand(x), "b h w (p q d) -> b (h p) (w q) d", p=side, q=side)
        return self.norm(x)

"""TransUNet: a ResNet-50 whose last map passes a ViT-B, and a decoder with the ResNet's skips.

Chen et al. 2021, "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation",
arXiv 2102.04306, Figure 1 and Section 3: the hybrid R50-ViT-B/16 as encoder, the cascaded upsampler
(CUP) as decoder, skips at a half, a quarter and an eighth of the image's side.

Decided where the paper is silent, or where its published code (github.com/Beckschen/TransUNet) is
not the paper:
- No class token, as in the paper's Equation 1; its position embedding is dropped with it.
- The ResNet is timm's, with the padding and the 32 groups per normalisation that its pretrained
  weights were trained with. The code pads otherwise, which moves the strided maps by a pixel, and
  normalises each channel of a shortcut for itself.
- Channels of the decoder, batch normalisation, bilinear upsampling that keeps the corners, a 3x3
  convolution at the end: as in the code. The last of the four blocks has no skip.
- Dropout of 0.1 after the embedding and in the blocks, as in the code, but also after the
  attention, where the code has none: timm has one rate for both.
- Images are normalised to [-1, 1], as the encoder expects.
"""

from functools import partial
from itertools import pairwise
from typing import cast

import timm
import torch
from einops import rearrange
from jaxtyping import Float
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers.conv_bn_act import ConvNormAct
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.norm_act import GroupNormAct
from timm.layers.std_conv import StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.models.segmentation_model import SegmentationModel, check_side

STRIDE = 16
DROPOUT = 0.1


def transunet(classes: int, image_size: int, pretrained: bool = False) -> SegmentationModel:
    """TransUNet at its published size.

    Args:
        classes: background and structures.
        image_size: side of the images, a multiple of 16.
        pretrained: whether the encoder starts from timm's weights (ImageNet-21k), which it
            downloads.
    """
    check_side(image_size, STRIDE, "TransUNet")
    vit = timm.create_model(
        "vit_base_r50_s16_224.orig_in21k",
        pretrained=pretrained,
        img_size=image_size,
        num_classes=0,
        pos_drop_rate=DROPOUT,
        proj_drop_rate=DROPOUT,
    )
    return _transunet(cast(VisionTransformer, vit), (512, 256, 128, 64, 16), classes, image_size)


def small_transunet(classes: int, image_size: int) -> SegmentationModel:
    """TransUNet with a quarter of the convolutions' channels and 96 instead of 768 in the ViT."""
    check_side(image_size, STRIDE, "TransUNet")
    resnet = ResNetV2(
        layers=[3, 4, 9],
        channels=(64, 128, 256),
        stem_chs=16,
        num_classes=0,
        global_pool="",
        stem_type="same",
        preact=False,
        norm_layer=partial(GroupNormAct, num_groups=8),
        conv_layer=partial(StdConv2dSame, eps=1e-8),
    )
    vit = VisionTransformer(
        img_size=image_size,
        patch_size=1,
        num_classes=0,
        embed_dim=96,
        num_heads=6,
        embed_layer=partial(HybridEmbed, backbone=resnet),
        pos_drop_rate=DROPOUT,
        proj_drop_rate=DROPOUT,
    )
    return _transunet(vit, (128, 64, 32, 16, 16), classes, image_size)


def _transunet(
    vit: VisionTransformer, widths: tuple[int, ...], classes: int, image_size: int
) -> SegmentationModel:
    return SegmentationModel(
        TransUNet(vit, widths, classes),
        IMAGENET_INCEPTION_MEAN,
        IMAGENET_INCEPTION_STD,
        image_size=image_size,
    )


class TransUNet(nn.Module):
    """TransUNet on normalised images.

    Args:
        vit: a hybrid ViT with one token per pixel of its ResNet's map, and a class token.
        widths: channels of the decoder, from the tokens' grid to the image's resolution.
        classes: background and structures.
    """

    def __init__(self, vit: VisionTransformer, widths: tuple[int, ...], classes: int):
        super().__init__()
        self.resnet = vit.patch_embed.backbone
        self.embed = vit.patch_embed.proj
        self.pos_embed = nn.Parameter(vit.get_parameter("pos_embed")[:, 1:].detach().clone())
        self.dropout = vit.pos_drop
        self.blocks = vit.blocks
        self.norm = vit.norm

        skips = [*(info["num_chs"] for info in reversed(self.resnet.feature_info[:3])), 0]
        self.reduce = ConvNormAct(vit.embed_dim, widths[0], kernel_size=3)
        self.decoder = nn.ModuleList(
            DecoderBlock(width + skip, width_out)
            for (width, width_out), skip in zip(pairwise(widths), skips, strict=True)
        )
        self.classify = nn.Conv2d(widths[-1], classes, kernel_size=3, padding=1)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b classes H W"]:
        x, skips = self.resnet.forward_intermediates(images, indices=[0, 1, 2])
        x = self.embed(x)
        height = x.shape[-2]
        x = self.dropout(rearrange(x, "b c h w -> b (h w) c") + self.pos_embed)
        x = self.norm(self.blocks(x))
        x = self.reduce(rearrange(x, "b (h w) c -> b c h w", h=height))
        for block, skip in zip(self.decoder, [*reversed(skips), None], strict=True):
            x = block(x, skip)
        return self.classify(x)


class DecoderBlock(nn.Module):
    """Twice the resolution, the skip beside it, two 3x3 convolutions."""

    def __init__(self, width: int, width_out: int):
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.convolutions = nn.Sequential(
            ConvNormAct(width, width_out, kernel_size=3),
            ConvNormAct(width_out, width_out, kernel_size=3),
        )

    def forward(
        self, x: Float[Tensor, "b c h w"], skip: Float[Tensor, "b d H W"] | None
    ) -> Float[Tensor, "b e H W"]:
        x = self.upsample(x)
        return self.convolutions(x if skip is None else torch.cat([x, skip], dim=1))

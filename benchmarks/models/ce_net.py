"""CE-Net: a ResNet-34 encoder, a context extractor, a light decoder with added skips.

Gu et al. 2019, "CE-Net: Context Encoder Network for 2D Medical Image Segmentation", IEEE
Transactions on Medical Imaging 38(10), arXiv 1903.02740, Section "Method": feature encoder, context
extractor (dense atrous convolution, residual multi-kernel pooling), feature decoder.

Decided where the paper is silent, or where its published code (github.com/Guzaiwang/CE-Net) is not
the paper:
- The four branches of the dense atrous convolution share one convolution per dilation rate and one
  1x1 convolution, without activations between them, as in the code. The paper does not say;
  separate ones would add 10 M parameters.
- The four poolings share one 1x1 convolution, as in the code. A pooling window larger than the map
  is shrunk to it, which only happens below 192 pixels; the paper's images have 448.
- After the last decoder block: a 4x4 transposed convolution, two 3x3 convolutions, as in the code.
- Logits of all classes, where the code gives the sigmoid of one.
"""

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.conv_bn_act import ConvNormAct
from torch import Tensor, nn

from benchmarks.models.segmentation_model import SegmentationModel, check_side

STRIDE = 32


def ce_net(classes: int, image_size: int, pretrained: bool = False) -> SegmentationModel:
    """CE-Net at its published size.

    Args:
        classes: background and structures.
        image_size: side of the images, a multiple of 32; other multiples may follow.
        pretrained: whether the encoder starts from timm's weights (ImageNet), which it downloads.
    """
    return _ce_net((64, 128, 256, 512), classes, image_size, pretrained)


def small_ce_net(classes: int, image_size: int) -> SegmentationModel:
    """CE-Net with 18 instead of 64 channels in the encoder's first stage, and so on."""
    return _ce_net((18, 36, 72, 144), classes, image_size, pretrained=False)


def _ce_net(
    widths: tuple[int, int, int, int], classes: int, image_size: int, pretrained: bool
) -> SegmentationModel:
    check_side(image_size, STRIDE, "CE-Net")
    network = CENet(widths, classes, pretrained)
    return SegmentationModel(network, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, multiple=STRIDE)


class CENet(nn.Module):
    """CE-Net on normalised images.

    Args:
        widths: channels of the encoder's four stages.
        classes: background and structures.
        pretrained: whether the encoder starts from timm's weights.
    """

    def __init__(self, widths: tuple[int, int, int, int], classes: int, pretrained: bool):
        super().__init__()
        self.encoder = timm.create_model(
            "resnet34.tv_in1k",
            pretrained=pretrained,
            channels=widths,
            features_only=True,
            out_indices=(1, 2, 3, 4),
        )
        first, second, third, fourth = widths
        pooling = ResidualMultiKernelPooling(fourth)
        self.context = nn.Sequential(DenseAtrousConvolution(fourth), pooling)
        self.decoder = nn.ModuleList(
            [
                decoder_block(fourth + len(pooling.windows), third),
                decoder_block(third, second),
                decoder_block(second, first),
            ]
        )
        last = first // 2
        self.head = nn.Sequential(
            decoder_block(first, first),
            nn.ConvTranspose2d(first, last, kernel_size=4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(last, last, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(last, classes, kernel_size=3, padding=1),
        )

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b classes H W"]:
        *skips, x = self.encoder(images)
        x = self.context(x)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = block(x) + skip
        return self.head(x)


class DenseAtrousConvolution(nn.Module):
    """The input plus four branches of dilated convolutions, which see 3 to 19 pixels a side."""

    def __init__(self, width: int):
        super().__init__()
        self.rate1, self.rate3, self.rate5 = (
            nn.Conv2d(width, width, kernel_size=3, padding=rate, dilation=rate)
            for rate in (1, 3, 5)
        )
        self.project = nn.Conv2d(width, width, kernel_size=1)
        for convolution in (self.rate1, self.rate3, self.rate5, self.project):
            nn.init.zeros_(convolution.get_parameter("bias"))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        near = self.rate1(x)
        far = self.rate3(near)
        branches = (
            near,
            self.project(self.rate3(x)),
            self.project(far),
            self.project(self.rate5(far)),
        )
        return x + sum(F.relu(branch) for branch in branches)


class ResidualMultiKernelPooling(nn.Module):
    """Appends one channel for each of four poolings of the whole map, interpolated back."""

    windows = (2, 3, 5, 6)

    def __init__(self, width: int):
        super().__init__()
        self.squeeze = nn.Conv2d(width, 1, kernel_size=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h w"]:
        size = x.shape[-2:]
        pooled = (F.max_pool2d(x, min(window, *size)) for window in self.windows)
        context = [
            F.interpolate(self.squeeze(each), size, mode="bilinear", align_corners=False)
            for each in pooled
        ]
        return torch.cat([*context, x], dim=1)


def decoder_block(width: int, width_out: int) -> nn.Sequential:
    """Twice the resolution: 1x1 convolution to a quarter of the channels, transposed, 1x1."""
    middle = width // 4
    return nn.Sequential(
        ConvNormAct(width, middle, kernel_size=1, bias=True),
        nn.ConvTranspose2d(middle, middle, kernel_size=3, stride=2, padding=1, output_padding=1),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        ConvNormAct(middle, width_out, kernel_size=1, bias=True),
    )

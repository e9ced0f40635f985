"""What networks there are.

A network segments background and all structures at once, without a prompt:

    model = NETWORKS["TransUNet"].published(classes=4, image_size=256, pretrained=True)
    logits = model(images)  # (b, 3, 256, 256) in [0, 255] to (b, 4, 256, 256)
"""

from dataclasses import dataclass
from typing import Protocol

from benchmarks.models.ce_net import ce_net, small_ce_net
from benchmarks.models.dynunet import dynunet, small_dynunet
from benchmarks.models.h2former import h2former, small_h2former
from benchmarks.models.segmentation_model import SegmentationModel
from benchmarks.models.swin_unet import small_swin_unet, swin_unet
from benchmarks.models.transunet import small_transunet, transunet
from benchmarks.models.unet import small_unet, unet


class Published(Protocol):
    """Builds a network at its published size."""

    def __call__(
        self, classes: int, image_size: int, pretrained: bool = False
    ) -> SegmentationModel: ...


class Small(Protocol):
    """Builds a network with 2 to 3 M parameters, for CPUs.

    The widths were chosen for about 2.5 M parameters, not by a result.
    """

    def __call__(self, classes: int, image_size: int) -> SegmentationModel: ...


@dataclass(frozen=True)
class Architecture:
    """A comparison network.

    Attributes:
        encoder: which pretrained encoder it is built on; "none" if none.
        published: builds it at its published size.
        small: builds it small.
        parameters: how many the published network has.
        source: where that number is from.
    """

    encoder: str
    published: Published
    small: Small
    parameters: int
    source: str


NETWORKS = {
    "U-Net": Architecture(
        encoder="none",
        published=unet,
        small=small_unet,
        parameters=31_030_658,
        source="Figure 1 of Ronneberger et al. 2015, counted: one input channel, two classes",
    ),
    "CE-Net": Architecture(
        encoder="ResNet-34",
        published=ce_net,
        small=small_ce_net,
        parameters=29_003_093,
        source="the authors' code, counted: Guzaiwang/CE-Net at d7f0865, one class",
    ),
    "Swin-Unet": Architecture(
        encoder="Swin-T",
        published=swin_unet,
        small=small_swin_unet,
        parameters=27_168_900,
        source="the authors' code, counted: HuCaoFighting/Swin-Unet at f48f623, 224 pixels, "
        "nine classes",
    ),
    "TransUNet": Architecture(
        encoder="R50 + ViT-B/16",
        published=transunet,
        small=small_transunet,
        parameters=105_276_066,
        source="Sun et al. 2024 (DA-TransUNet), Table 3; so has the authors' code: "
        "Beckschen/TransUNet at 02ef001, 224 pixels, two classes",
    ),
    "H2Former": Architecture(
        encoder="ResNet-34",
        published=h2former,
        small=small_h2former,
        parameters=33_698_720,
        source="the authors' code, counted: NKUhealong/H2Former at 8dad87e, 256 pixels, "
        "four input channels, two classes",
    ),
    "DynUNet": Architecture(
        encoder="none",
        published=dynunet,
        small=small_dynunet,
        parameters=20_619_082,
        source="the authors' code, counted: MIC-DKFZ/dynamic-network-architectures at d35f85c, "
        "PlainConvUNet of six stages, which is for 224 pixels, one input channel, two classes",
    ),
}

"""U-Net, as MONAI has it.

Ronneberger, Fischer, Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
arXiv 1505.04597, Section 2 and Figure 1: five levels of two 3x3 convolutions with 64 to 1024
channels, max pooling between them, up-convolutions and concatenated skips on the way back.

Decided where MONAI's `BasicUNet` or the paper leaves it open:
- Convolutions are padded, so that the output is as large as the input (the paper crops).
- Batch normalisation after each convolution, as in the implementations that others compare with;
  the paper has none.
- The last up-convolution keeps its 128 channels, as MONAI does; the paper halves them. This is the
  0.3 % that is above the paper's parameter count.
- Images are normalised to [-1, 1]. There is no encoder to pretrain.
"""

from monai.networks.nets.basic_unet import BasicUNet
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD

from benchmarks.models.segmentation_model import SegmentationModel, check_side

STRIDE = 16


def unet(classes: int, image_size: int, pretrained: bool = False) -> SegmentationModel:
    """U-Net at its published size.

    Args:
        classes: background and structures.
        image_size: side of the images, a multiple of 16; other multiples may follow.
        pretrained: without effect, there is nothing pretrained.
    """
    return _unet(64, classes, image_size)


def small_unet(classes: int, image_size: int) -> SegmentationModel:
    """U-Net with 18 instead of 64 channels at the top."""
    return _unet(18, classes, image_size)


def _unet(width: int, classes: int, image_size: int) -> SegmentationModel:
    check_side(image_size, STRIDE, "U-Net")
    network = BasicUNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=classes,
        features=(width, 2 * width, 4 * width, 8 * width, 16 * width, width),
        act="relu",
        norm="batch",
    )
    return SegmentationModel(
        network, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD, multiple=STRIDE
    )

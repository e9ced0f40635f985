"""DynUNet: a U-Net as nnU-Net builds one for a size of images, as MONAI has it.

Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation", Nature Methods 18, arXiv 1904.08128: as many levels as halve the image to no less
than 4 pixels, of two 3x3 convolutions each, 32 channels at the top and 512 at most, strided
convolutions, instance normalisation, leaky ReLU.

Decided where MONAI's `DynUNet` or the paper leaves it open:
- Convolutions before a normalisation have no bias, as MONAI does; nnU-Net's do.
- Without deep supervision: all systems of the comparison have one loss on one prediction. So it is
  nnU-Net's network and not nnU-Net, which brings its own patches, augmentation, loss, 1000 epochs
  and ensemble.
- Images are normalised to [-1, 1]. There is no encoder to pretrain.
"""

from monai.networks.nets.dynunet import DynUNet
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD

from benchmarks.models.segmentation_model import SegmentationModel, check_side

STRIDE = 16
"""The least: smaller networks are not nnU-Net's."""


def dynunet(classes: int, image_size: int, pretrained: bool = False) -> SegmentationModel:
    """DynUNet with nnU-Net's channels.

    Args:
        classes: background and structures.
        image_size: side of the images, a multiple of 16.
        pretrained: without effect, there is nothing pretrained.
    """
    return _dynunet(32, classes, image_size)


def small_dynunet(classes: int, image_size: int) -> SegmentationModel:
    """DynUNet with 11 instead of 32 channels at the top, and at most 176."""
    return _dynunet(11, classes, image_size)


def _dynunet(width: int, classes: int, image_size: int) -> SegmentationModel:
    check_side(image_size, STRIDE, "DynUNet")
    halvings = 0
    while image_size % 2 ** (halvings + 1) == 0 and image_size >> (halvings + 1) >= 4:
        halvings += 1
    strides = [1, *[2] * halvings]
    network = DynUNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=classes,
        kernel_size=[3] * len(strides),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(width * 2**level, 16 * width) for level in range(len(strides))],
    )
    # It computes with its skip layers, which hold these blocks: no tensor has two names.
    for name in ("input_block", "downsamples", "bottleneck", "upsamples"):
        delattr(network, name)
    return SegmentationModel(
        network, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD, multiple=2**halvings
    )

"""A network that needs no prompt, as a promptable model."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.promptable.class_maps import ClassMaps
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Promptable
from benchmarks.models.segmentation_model import SegmentationModel


class Unprompted(Promptable):
    """A network as a promptable model: `training` and `evaluation` take both.

    It segments all structures at once and does not look at the prompts.

    Args:
        network: of background and the structures, in the order of the data set.
        input_size: side of the images that it is given; others are resized.
    """

    def __init__(self, network: SegmentationModel, input_size: int):
        super().__init__()
        self.network = network
        self.input_size = input_size

    @property
    def image_size(self) -> int:
        """Side of the network's input, in pixels."""
        return self.input_size

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.network

    def encoder_tensors(self) -> dict[str, Tensor]:
        """The network's."""
        return self.network.state_dict(keep_vars=True)

    def _encode(self, images: Float[Tensor, "b 3 S S"]) -> Embedding:
        return Embedding(self.network(resize(images, self.input_size)), images.shape[-1])

    def _decode(self, embedding: Embedding, prompts: Prompts) -> ClassMaps:
        return ClassMaps.of(embedding.image, embedding.image_size)


def resize(images: Float[Tensor, "b 3 S S"], size: int) -> Float[Tensor, "b 3 s s"]:
    """Square images at another size, as a data set resizes them."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)

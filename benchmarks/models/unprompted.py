"""A network that needs no prompt, called as a promptable segmenter is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.models.segmentation_model import SegmentationModel


@dataclass(frozen=True)
class ClassMaps:
    """What a network predicts for background and K structures in each of B images.

    Attributes:
        class_logits: background first; their softmax over the classes is the probabilities.
        image_size: side of the images, in pixels.
    """

    class_logits: Float[Tensor, "b classes h w"]
    image_size: int

    @property
    def low_res_logits(self) -> Float[Tensor, "b k h w"]:
        """The structures' log odds: their sigmoid is the softmax's probabilities.

        So a loss on single masks is one on the network's own probabilities.
        """
        return _against_others(self.class_logits, torch.logsumexp)

    def logits(self, size: tuple[int, int] | None = None) -> Float[Tensor, "b k H W"]:
        """How far a structure is above the best other class, at `size`; None: at the images'.

        Above 0 is where the structure is the most probable class.
        """
        size = size or (self.image_size, self.image_size)
        maps = F.interpolate(self.class_logits, size, mode="bilinear", align_corners=False)
        return _against_others(maps, torch.amax)


def _against_others(
    logits: Float[Tensor, "b classes h w"], reduce: Callable[..., Tensor]
) -> Float[Tensor, "b k h w"]:
    """Each structure's logit less what `reduce` makes of those of the other classes."""
    maps = []
    for k in range(1, logits.shape[1]):
        others = torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1)
        maps.append(logits[:, k] - reduce(others, dim=1))
    return torch.stack(maps, dim=1)


class Unprompted(nn.Module):
    """A network behind the interface of a `Segmenter`: `training` and `evaluation` take both.

    It segments all structures at once and does not look at the prompts.

    Args:
        network: of background and the structures, in the order of the data set.
        input_size: side of the images that it is given; others are resized.
    """

    def __init__(self, network: SegmentationModel, input_size: int):
        super().__init__()
        self.network = network
        self.input_size = input_size

    def forward(
        self,
        images: Float[Tensor, "b 3 S S"],
        points: Float[Tensor, "b k n 2"] | None = None,
        labels: Int[Tensor, "b k n"] | None = None,
    ) -> ClassMaps:
        """Segment RGB images in [0, 255]."""
        return ClassMaps(self.network(resize(images, self.input_size)), images.shape[-1])


def resize(images: Float[Tensor, "b 3 S S"], size: int) -> Float[Tensor, "b 3 s s"]:
    """Square images at another size, as a data set resizes them."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)

"""A network that needs no prompt, as a promptable model."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable
from benchmarks.models.segmentation_model import SegmentationModel


@dataclass(frozen=True)
class ClassMaps(Masks):
    """What a network predicts for background and K structures in each of B images.

    Its low-resolution logits are the structures' log odds: their sigmoid is the softmax's
    probabilities. So a loss on single masks is one on the network's own probabilities, which are
    its estimate of the masks' quality too.

    Attributes:
        class_logits: background first; their softmax over the classes is the probabilities.
    """

    class_logits: Float[Tensor, "b classes h w"] = field(kw_only=True)

    @classmethod
    def of(cls, class_logits: Float[Tensor, "b classes h w"], image_size: int) -> "ClassMaps":
        """From the logits of a network for images of this side, in pixels."""
        odds = _against_others(class_logits, torch.logsumexp)[:, :, None]
        quality = odds.detach().sigmoid().amax(dim=(-2, -1))
        return cls(odds, quality, image_size, class_logits=class_logits)

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

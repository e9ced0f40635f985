"""What a model predicts that gives every structure at once: of each pixel, its class."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from adapterkit.promptable.protocol import Masks


@dataclass(frozen=True)
class ClassMaps(Masks):
    """What is predicted for background and the structures in each of B images.

    Its low-resolution logits are the structures' log odds: their sigmoid is the softmax's
    probabilities. So a loss on single masks is one on the model's own probabilities.

    Attributes:
        class_logits: background first; their softmax over the classes is the probabilities.
        asked: which of the structures these masks are of, in order.
    """

    class_logits: Float[Tensor, "b classes h w"] = field(kw_only=True)
    asked: Int[Tensor, "b k"] = field(kw_only=True)

    @classmethod
    def of(
        cls,
        class_logits: Float[Tensor, "b classes h w"],
        image_size: int,
        asked: Int[Tensor, "b k"] | None = None,
        iou: Float[Tensor, "b structures"] | None = None,
    ) -> "ClassMaps":
        """From logits for images of this side, in pixels.

        Args:
            class_logits: background first.
            image_size: side of the images, in pixels.
            asked: which of the structures; None: all.
            iou: the model's estimate of each structure's mask; None: the highest probability in it.
        """
        odds = _against_others(class_logits, torch.logsumexp)
        if iou is None:
            iou = odds.detach().sigmoid().amax(dim=(-2, -1))
        if asked is None:
            images, structures = odds.shape[:2]
            asked = torch.arange(structures, device=odds.device).expand(images, structures)
        return cls(
            _of_each(odds, asked)[:, :, None],
            iou.gather(1, asked)[..., None],
            image_size,
            class_logits=class_logits,
            asked=asked,
        )

    def logits(self, size: tuple[int, int] | None = None) -> Float[Tensor, "b k H W"]:
        """How far a structure is above the best other class, at `size`; None: at the images'.

        Above 0 is where the structure is the most probable class.
        """
        size = size or (self.image_size, self.image_size)
        maps = F.interpolate(self.class_logits, size, mode="bilinear", align_corners=False)
        return _of_each(_against_others(maps, torch.amax), self.asked)


def _of_each(
    maps: Float[Tensor, "b structures h w"], asked: Int[Tensor, "b k"]
) -> Float[Tensor, "b k h w"]:
    return maps.gather(1, asked[..., None, None].expand(-1, -1, *maps.shape[-2:]))


def _against_others(
    logits: Float[Tensor, "b classes h w"], reduce: Callable[..., Tensor]
) -> Float[Tensor, "b structures h w"]:
    """Each structure's logit less what `reduce` makes of those of the other classes."""
    return logits[:, 1:] - _of_others(logits, reduce)


def _of_others(
    logits: Float[Tensor, "b classes h w"], reduce: Callable[..., Tensor]
) -> Float[Tensor, "b structures h w"]:
    """For each structure, what `reduce` makes of the logits of background and other structures."""
    maps = [
        reduce(torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1), dim=1)
        for k in range(1, logits.shape[1])
    ]
    return torch.stack(maps, dim=1)


def against_other_classes(
    logits: Float[Tensor, "b k m h w"],
    by_name: Float[Tensor, "b structures h w"],
    classes: Int[Tensor, "b k"],
) -> Float[Tensor, "b k m h w"]:
    """The log odds of masks of structures that exclude each other.

    They are those of a softmax over the classes: of a mask itself, of background, whose logit is 0,
    and of the other structures. Their sigmoid is the probabilities, so no pixel is above 0 for two
    structures that are asked for by name.

    Args:
        logits: of the masks.
        by_name: of each structure's mask, asked for by its name alone.
        classes: which structure each mask is of; -1: of none, so that its logits stay.
    """
    background = torch.zeros_like(by_name[:, :1])
    others = _of_others(torch.cat([background, by_name], dim=1), torch.logsumexp)
    odds = logits - _of_each(others, classes.clamp(min=0))[:, :, None]
    return torch.where(classes[..., None, None, None] < 0, logits, odds)

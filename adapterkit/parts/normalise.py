"""What pixel values the encoder sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.encoders.views import ViT
from adapterkit.parts.registry import register_part


@register_part
@dataclass(frozen=True)
class Normalise:
    """Says how images are normalised: (image - mean) / std, per channel, image in [0, 255].

    The default maps to [0, 1], as the published SAMUS does instead of SAM's ImageNet statistics.
    It is set on a `Sam` of segment_anything, which keeps these numbers.
    Elsewhere whoever calls the encoder normalises: a `Segmenter` as this part says, which an
    adapter file records.

    Args:
        mean: red, green, blue, in [0, 255].
        std: the same.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"Normalise(mean={self.mean}, std={self.std}): expected three values each, "
                "std above 0"
            )

    def attach(self, to: Attachment) -> None:
        if _keeps_its_own(to.view.model):
            for name, values in (("pixel_mean", self.mean), ("pixel_std", self.std)):
                value = to.view.model.get_buffer(name).new_tensor(values).view(3, 1, 1)
                to.set(to.view.model, name, value)


def normalisation_of(view: ViT, parts: Sequence[object]) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation, (3, 1, 1) each, by which images in [0, 255] are normalised.

    Args:
        view: of the model, as it is with the parts.
        parts: of the adapters in use.

    Returns:
        None where only the caller knows.
    """
    set_by = [part for part in parts if isinstance(part, Normalise)]
    if not set_by or _keeps_its_own(view.model):
        return view.normalisation
    mean, std = (torch.tensor(each) for each in (set_by[-1].mean, set_by[-1].std))
    return mean.float().view(3, 1, 1), std.float().view(3, 1, 1)


def _keeps_its_own(model: nn.Module) -> bool:
    """Whether the numbers are buffers of the model, which this part then sets."""
    return isinstance(getattr(model, "pixel_mean", None), Tensor)

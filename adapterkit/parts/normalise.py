"""What pixel values the encoder sees."""

from dataclasses import dataclass

from torch import Tensor

from adapterkit.attach.attachment import Attachment
from adapterkit.parts.registry import register_part


@register_part
@dataclass(frozen=True)
class Normalise:
    """Sets how a `Sam` normalises its input: (image - mean) / std, per channel, image in [0, 255].

    The default maps to [0, 1], as the published SAMUS does instead of SAM's ImageNet statistics.
    A bare encoder takes images that its caller has normalised; there, this part records how.

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
        for name, values in (("pixel_mean", self.mean), ("pixel_std", self.std)):
            buffer = getattr(to.view.model, name, None)
            if isinstance(buffer, Tensor):
                to.set(to.view.model, name, buffer.new_tensor(values).view(3, 1, 1))

"""Augmentation of images together with their label maps, through MONAI.

Point prompts need no transform: they are drawn from the masks after it.
"""

from jaxtyping import Float, UInt8
from torch import Generator, Tensor


class SamusAugmentation:
    """The augmentation of the published SAMUS, for `SegmentationDataset(..., augmentation=...)`."""

    def __call__(
        self, image: Float[Tensor, "c S S"], labels: UInt8[Tensor, "1 S S"], generator: Generator
    ) -> tuple[Float[Tensor, "c S S"], UInt8[Tensor, "1 S S"]]:
        raise NotImplementedError
